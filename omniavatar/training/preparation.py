"""Samples: what the frozen units of a plan make of a take, as when a video is made.

    preparation = Preparation(split, models, device="cuda", dtype=torch.bfloat16)
    sample = preparation.sample(take)

A sample is a window: its clean latents and the values that its steps will read. So there is no second data path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from omniavatar.engine.engine import Engine, Models
from omniavatar.engine.loop import Loop
from omniavatar.engine.plan import Plan
from omniavatar.engine.scopes import Previous, Request
from omniavatar.engine.windows import Span
from omniavatar.errors import PlanError
from omniavatar.training.data.clip import Unusable
from omniavatar.training.split import Split
from omniavatar.training.takes import Take
from omniavatar.units.audio import SAMPLE_RATE

CLEAN = "clean"
"""Under this name a sample holds the latents (1 c t h w) that training wants back."""
Sample = Mapping[str, Tensor]
"""`CLEAN` and the values of `Split.values` that are there, each for a batch of one."""


class Preparation:
    """Runs the prepared units of a split on takes."""

    def __init__(self, split: Split, models: Models, *, device: torch.device | str, dtype: torch.dtype) -> None:
        self.split = split
        self.engine = Engine(Plan(split.prepared), models, device=device, dtype=dtype)
        if "vae" not in models:
            raise PlanError("training needs a model for the role 'vae', which makes latents of pictures")
        with torch.no_grad():
            self.engine.set_up()

    @torch.no_grad()
    def sample(self, take: Take) -> Sample:
        """The sample, on the engine's device. Raises Unusable if not all of its numbers are finite."""
        engine, frames = self.engine, self._frames(take)
        clean = engine.model("vae").encode(frames.to(engine.dtype), latents_per_pass=4).float()
        with closing(Loop(engine, engine.plan, self._request(take))) as loop:
            loop.job.frames = take.clip_frames
            loop.begin([Span(0, take.clip_frames, 0, 0, take.clip_frames)])
            before = self._before(loop, take, frames)
            window = loop.open_window(0, span_of(take), before, latents=torch.zeros_like(clean))
            found = {name: window.get(name) for name in self.split.values}
        found = {name: value for name, value in found.items() if not callable(value)}  # what units ask of each other
        for name, value in found.items():
            if value is not None and not isinstance(value, Tensor):
                raise PlanError(f"'{name}' is no tensor but {type(value).__name__}; a unit that makes it must run live")
        sample = {CLEAN: clean, **{name: value for name, value in found.items() if value is not None}}
        for name, value in sample.items():
            if not value.isfinite().all():
                raise Unusable("not finite", f"the networks make of it '{name}' with numbers that are not finite")
        return sample

    def _frames(self, take: Take) -> Tensor:
        """The pictures as the VAE takes them (1 3 t h w) in [-1, 1]."""
        pictures = torch.from_numpy(take.pictures).to(self.engine.device)
        return pictures.permute(3, 0, 1, 2)[None].float() / 127.5 - 1

    def _request(self, take: Take) -> Request:
        """The video that the take is a part of."""
        height, width = take.pictures.shape[1:3]
        offered = {"image": take.reference, "audio": (take.sound, SAMPLE_RATE), "prompt": take.prompt}
        taken = self.engine.plan.input_fields
        inputs = {name: value for name, value in offered.items() if value is not None and name in taken}
        return Request(inputs, height=height, width=width)

    def _before(self, loop: Loop, take: Take, frames: Tensor) -> Previous | None:
        """The window before, which ends with the given frames; none at the beginning of a video."""
        if not take.given or (take.given == 1 and take.start == 0):
            return None
        pictures = (self._again(frames[:, :, : take.given], take.again) + 1) / 2
        return Previous(loop.job, 0, Span(0, take.given, 0, 0, 0), {"frames": pictures})

    def _again(self, frames: Tensor, times: int) -> Tensor:
        """Frames (1 3 t h w) in [-1, 1] after passing through the VAE so often, each time as the beginning of a clip.

        In a video they are the end of a decoded window, which costs them about as much.
        """
        vae, dtype = self.engine.model("vae"), self.engine.dtype
        for _ in range(times):
            frames = vae.decode(vae.encode(frames.to(dtype), latents_per_pass=4), latents_per_pass=4).float()
        return frames


def span_of(take: Take) -> Span:
    """Where the take is in its clip."""
    stop = take.start + len(take.pictures)
    return Span(take.start, stop, take.given, take.start + take.given, stop)


def joined(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Samples of equal shapes as one batch."""
    return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}


@dataclass(frozen=True)
class Shapes:
    """The names and shapes of a sample's values; samples that share them can be joined."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, sample: Sample) -> Shapes:
        return cls(tuple((name, tuple(value.shape)) for name, value in sorted(sample.items())))
