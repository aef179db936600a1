"""What a training sample is made of: a piece of a clip, its reference picture, and how much of it is given.

The choice follows the authors of OmniAvatar: the reference is any frame of the clip; the first 1, 5, 9 or 13 frames are
given; now and then none are. A piece of which one frame is given is the beginning of a video, as when one is made: it
is the clip's beginning, and its first frame is the reference.

In a long video the given frames are not as sharp as a clip's, each window having passed them through the VAE once
more. With `TakeSettings.again` samples are so too, and the transformer learns to take from the reference what is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Annotated, Protocol, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from omniavatar.engine.geometry import Geometry, rounded_down
from omniavatar.errors import InputError
from omniavatar.training.data.clip import FRAME_SAMPLES, Clip, random_piece
from omniavatar.training.data.clips import Clips
from omniavatar.training.data.generated import ClipGenerator, Filmed
from omniavatar.training.trainer import generator

Result = TypeVar("Result")


class TakeSettings(BaseModel):
    """How samples are drawn from clips."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    frames: int = Field(81, ge=2, description="frames of a sample, 4n+1; shorter clips give what they have")
    prefixes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 5, 9, 13), min_length=1, description="given frames, one drawn, each 4n+1"
    )
    no_prefix: float = Field(0.1, ge=0, le=1, description="how often nothing is given")
    no_reference: float = Field(0.0, ge=0, le=1, description="how often there is no reference picture either")
    again: tuple[Annotated[int, Field(ge=0, le=100)], ...] = Field(
        (0,), min_length=1, description="times that given frames have been through the VAE already, one drawn"
    )

    max_tokens: int | None = Field(
        None, ge=64, description="tokens of a sample at most; larger pictures have fewer frames"
    )

    _geometry: Geometry | None = PrivateAttr(None)

    def fitted(self, geometry: Geometry) -> TakeSettings:
        """The same for these networks, by which takes can be drawn. Raises InputError if the VAE takes other counts."""
        factor = geometry.temporal_factor
        for name, counts in (("frames", (self.frames,)), ("prefixes", self.prefixes)):
            for count in counts:
                if count != rounded_down(count, factor):
                    raise InputError(f"samples.{name}: {count} is not {factor}n+1 frames, which the VAE takes")
        fitted = self.model_copy()
        fitted._geometry = geometry
        return fitted

    @property
    def geometry(self) -> Geometry:
        """The networks' that takes are for; `fitted` says it."""
        assert self._geometry is not None, "takes are drawn for networks: settings.fitted(geometry)"
        return self._geometry

    def at(self, height: int, width: int) -> TakeSettings:
        """The same for pictures of this size: no more frames than `max_tokens` allow."""
        if self.max_tokens is None:
            return self
        most = max(1 + self.geometry.temporal_factor, self.geometry.frames_for(self.max_tokens, height, width))
        return self.model_copy(update={"frames": min(self.frames, most)})

    def narrowed(self, draw: torch.Generator) -> TakeSettings:
        """The same with what decides the shapes of a sample drawn, so that several of one shape can be joined."""
        chances = torch.rand(2, generator=draw).tolist()
        without, nothing = chances[0] < self.no_reference, chances[1] < self.no_prefix
        prefix = self.prefixes[int(torch.randint(len(self.prefixes), (), generator=draw))]
        return self.model_copy(
            update={"prefixes": (prefix,), "no_reference": float(without), "no_prefix": float(nothing)}
        )


@dataclass(frozen=True)
class Choice:
    """Frames [start, start + count) of a clip, of which the first `given` are; the frame of the reference, or None.

    again: times that the given frames have been through the VAE already.
    """

    start: int
    count: int
    given: int
    reference: int | None
    again: int = 0

    @classmethod
    def draw(cls, frames: int, settings: TakeSettings, draw: torch.Generator) -> Choice:
        """One of a clip of so many frames."""

        def number(end: int) -> int:
            return int(torch.randint(end, (), generator=draw))

        def chance(probability: float) -> bool:
            return float(torch.rand((), generator=draw)) < probability

        factor = settings.geometry.temporal_factor
        piece, reference = random_piece(frames, settings.frames, factor, draw), number(frames)
        start, count = piece.start, piece.count
        given = settings.prefixes[number(len(settings.prefixes))]
        nothing, without = chance(settings.no_prefix), chance(settings.no_reference)
        if without:
            return cls(start, count, 0, None)
        if nothing or given >= count:
            return cls(start, count, 0, reference)
        if given == 1:
            return cls(0, count, 1, 0)
        return cls(start, count, given, reference, settings.again[number(len(settings.again))])


@dataclass(frozen=True)
class Take:
    """A sample before any network has seen it.

    pictures (t h w 3) and reference (h w 3) uint8; sound: that of the whole clip from its frame 1 on, so that row n-1
    of its features goes with frame n; start and clip_frames say where in the clip the pictures are; again: times that
    the given ones have been through the VAE already.
    """

    pictures: np.ndarray
    reference: np.ndarray | None
    sound: np.ndarray
    prompt: str
    start: int
    given: int
    clip_frames: int
    again: int = 0

    @classmethod
    def of(cls, clip: Filmed, choice: Choice) -> Take:
        """Read what was chosen."""
        pictures = clip.pictures(choice.start, choice.count)
        reference = None
        if choice.reference is not None:
            inside = choice.reference - choice.start
            is_inside = 0 <= inside < choice.count
            reference = pictures[inside] if is_inside else clip.pictures(choice.reference, 1)[0]
        return cls(
            pictures=pictures,
            reference=reference,
            sound=clip.sound()[FRAME_SAMPLES:],
            prompt=clip.prompt,
            start=choice.start,
            given=choice.given,
            clip_frames=clip.frames,
            again=choice.again,
        )


@dataclass(frozen=True)
class Share:
    """So many takes of every clip, but for those that are `done`; of these every `parts`-th clip from `part` on."""

    variants: int
    done: Container[str] = ()
    part: int = 0
    parts: int = 1

    def of(self, clips: int) -> Iterator[tuple[str, int, int]]:
        """The key of each take, the number of its clip and that of its variant."""
        for variant in range(self.variants):
            for clip in range(self.part, clips, self.parts):
                key = f"{clip}/{variant}"
                if key not in self.done:
                    yield key, clip, variant


class Source(Protocol):
    """Where takes come from; its length is the number of clips. What goes wrong in `make` is the clip's fault."""

    def __len__(self) -> int: ...

    def draw(self, settings: TakeSettings, draw: torch.Generator, make: Callable[[Take], Result]) -> Result:
        """What `make` makes of a random take of a random clip."""
        ...

    def each(
        self, settings: TakeSettings, share: Share, make: Callable[[Take], Result]
    ) -> Iterator[tuple[str, Result]]:
        """What `make` makes of each take of the share, with its key; the same takes in every call."""
        ...


@dataclass(frozen=True)
class FilmedSource:
    """Clips of files."""

    clips: Clips

    def __len__(self) -> int:
        return len(self.clips)

    def draw(self, settings: TakeSettings, draw: torch.Generator, make: Callable[[Take], Result]) -> Result:
        return self.clips.draw(draw, lambda clip, own: make(taken(clip, settings, own)))

    def each(
        self, settings: TakeSettings, share: Share, make: Callable[[Take], Result]
    ) -> Iterator[tuple[str, Result]]:
        def read(draw: torch.Generator, clip: Clip) -> Result:
            return make(taken(clip, settings, draw))

        for key, number, variant in share.of(len(self.clips.entries)):
            made = self.clips.read(self.clips.entries[number], partial(read, generator(number, variant)))
            if made is not None:
                yield key, made


@dataclass(frozen=True)
class GeneratedSource:
    """Clips that a package makes."""

    clips: ClipGenerator

    def __len__(self) -> int:
        return len(self.clips)

    def draw(self, settings: TakeSettings, draw: torch.Generator, make: Callable[[Take], Result]) -> Result:
        number = int(torch.randint(len(self.clips), (), generator=draw))
        return make(taken(self.clips.clip(number), settings, draw))

    def each(
        self, settings: TakeSettings, share: Share, make: Callable[[Take], Result]
    ) -> Iterator[tuple[str, Result]]:
        takes = sorted(share.of(len(self.clips)), key=itemgetter(1))
        for number, variants in groupby(takes, key=itemgetter(1)):
            clip = self.clips.clip(number)
            for key, _, variant in variants:
                yield key, make(taken(clip, settings, generator(number, variant)))


def taken(clip: Filmed, settings: TakeSettings, draw: torch.Generator) -> Take:
    """A random take of a clip."""
    return Take.of(clip, Choice.draw(clip.frames, settings.at(*clip.bucket), draw))
