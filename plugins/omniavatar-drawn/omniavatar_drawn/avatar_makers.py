"""Who makes the videos that `omniavatar_drawn.tiny_quality` judges: engines, or oracles that know the truth."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from omniavatar.checkpoints import Bundle
from omniavatar.config import RunConfig
from omniavatar.engine.engine import Engine
from omniavatar.engine.loop import to_bytes
from omniavatar.engine.plan import Catalog, Plan, build_plan, parse
from omniavatar.engine.scopes import Request
from omniavatar.engine.windows import plan_spans
from omniavatar.errors import InputError
from omniavatar.plugins import Plugins
from omniavatar.testing.models import WAN
from omniavatar_drawn.faces.clips import Clip
from omniavatar_drawn.faces.mouth import SAMPLE_RATE


@dataclass(frozen=True)
class Asked:
    """A video that is asked for, with the clip that would be its perfect answer.

    The clip's waveform is the sound as the video plays it; its first `silence` seconds are the engine's own. scale and
    audio_scale: those of guidance, if they are not the configuration's.
    """

    clip: Clip
    picture: np.ndarray | None
    silence: float
    scale: float | None = None
    audio_scale: float | None = None

    @property
    def frames(self) -> int:
        return len(self.clip.mouth)

    @property
    def sound(self) -> np.ndarray:
        """(n,) float32 at 16 kHz, without the silence in front."""
        return self.clip.waveform[round(self.silence * SAMPLE_RATE) :]


@dataclass(frozen=True)
class Made:
    """A video (t h w 3) uint8, the numbers of the frames with which its further chunks begin, and what it took."""

    frames: np.ndarray
    borders: tuple[int, ...]
    seconds: float


class Maker(Protocol):
    """side: pixels of the square pictures it wants and makes; silence: seconds that it puts in front of a sound."""

    @property
    def side(self) -> int: ...

    @property
    def silence(self) -> float: ...

    @property
    def description(self) -> dict[str, Any]: ...

    def make(self, asked: Asked) -> Made: ...


# Engines --------------------------------------------------------------------------------------------------------------


class Engines:
    """Videos by an engine of each setting that is asked for.

    engine: makes one for these settings by unit, of a plan that writes no file.
    """

    def __init__(
        self, engine: Callable[[dict[str, dict[str, Any]]], Engine], seed: int = 42, files: Sequence[str] = ()
    ) -> None:
        self._make_engine, self._seed, self._files = engine, seed, list(files)
        self._engines: dict[tuple[tuple[str, float], ...], Engine] = {(): engine({})}

    @classmethod
    def of(cls, config: RunConfig, plugins: Plugins, device: torch.device, dtype: torch.dtype) -> Engines:
        """By a configuration, as `omni run` does, without files."""
        catalog = plugins.catalog()
        roles = [entry.role for entry in config.models]
        registry = plugins.registry()

        def engine(changes: dict[str, dict[str, Any]]) -> Engine:
            bundle = Bundle.open(config.model_files(), registry, roles)
            expression = without_file(config.units, catalog)
            plan = build_plan(expression, catalog, bundle.settings(), config.settings, changes)
            return Engine(plan, bundle, device=device, dtype=dtype)

        return cls(engine, config.seed, [str(file) for file in config.model_files()])

    @property
    def plan(self) -> Plan:
        """That of videos without special settings."""
        return self._engines[()].plan

    @property
    def side(self) -> int:
        sizes = self._setting("reference-image", "sizes", ())
        square = [height for height, width in sizes if height == width]
        if not square:
            raise InputError(f"reference-image.sizes has no square one, which procedural faces need: {list(sizes)}")
        return int(square[0])

    @property
    def silence(self) -> float:
        return float(self._setting("audio", "silence", 0.0))

    @property
    def description(self) -> dict[str, Any]:
        engine = self._engines[()]
        dtype = str(engine.dtype).removeprefix("torch.")
        units = [repr(unit) for unit in self.plan.units]
        return {"maker": "engine", "units": units, "dtype": dtype, "files": self._files, "seed": self._seed}

    def make(self, asked: Asked) -> Made:
        engine = self._engine({"scale": asked.scale, "audio_scale": asked.audio_scale})
        inputs = {
            "image": asked.picture,
            "audio": None if asked.sound is None else (asked.sound, SAMPLE_RATE),
            "prompt": asked.clip.caption,
        }
        given = {name: value for name, value in inputs.items() if value is not None}
        side = self.side
        request = Request(given, self._seed + asked.clip.who.seed, side, side, seconds=asked.frames / 25)
        started = time.perf_counter()
        with engine.start(request) as run:
            chunks = list(run)
        seconds = time.perf_counter() - started
        frames = np.concatenate([chunk.frames for chunk in chunks])
        return Made(frames, tuple(chunk.start for chunk in chunks[1:]), seconds)

    def _engine(self, guidance: Mapping[str, float | None]) -> Engine:
        """Each has networks of its own, since setting one up may change them."""
        changes = {name: value for name, value in guidance.items() if value is not None}
        key = tuple(changes.items())
        if key not in self._engines:
            self._engines[key] = self._make_engine({"guidance": changes} if changes else {})
        return self._engines[key]

    def _setting(self, unit: str, name: str, default: Any) -> Any:
        return next((getattr(one.settings, name) for one in self.plan.units if one.name == unit), default)


def without_file(expression: str, catalog: Catalog) -> str:
    """The plan without a file."""
    return f"{expression}-write-video" if "write-video" in parse(expression, catalog) else expression


# Oracles --------------------------------------------------------------------------------------------------------------

WINDOW, OVERLAP = 49, 13


@dataclass(frozen=True)
class Drawn:
    """The renderer itself: what is asked for, perfectly. A smaller audio scale opens the mouth less."""

    side: int = 128
    silence: float = 0.3
    description: dict[str, Any] = field(default_factory=lambda: {"maker": "the renderer"})

    def make(self, asked: Asked) -> Made:
        started = time.perf_counter()
        frames = self.draw(asked.clip, 1.0 if asked.audio_scale is None else scale_share(asked.audio_scale))
        if asked.picture is not None:
            frames[0] = asked.picture
        borders = tuple(span.keep_start for span in plan_spans(asked.frames, WINDOW, OVERLAP, WAN)[1:])
        return Made(frames, borders, time.perf_counter() - started)

    def draw(self, clip: Clip, opening: float) -> np.ndarray:
        """Its pictures (t h w 3), the mouth opened by this share of the truth."""
        mouth = clip.mouth * np.array([opening, 1], np.float32)
        return Clip(clip.who, clip.performance, clip.waveform, mouth, clip.caption).pictures(self.side)


def scale_share(audio_scale: float) -> float:
    """How far a mouth opens at an audio scale, of all the way."""
    return audio_scale / (1 + audio_scale)


class ThroughVae:
    """Another maker's videos, encoded and decoded chunk by chunk as an engine would: the best a transformer can do.

    vae: `omniavatar.models.wan_vae.WanVAE`. Each chunk begins with decoded frames of the one before.
    """

    def __init__(self, inner: Maker, vae: Any, device: torch.device) -> None:
        self.inner, self.vae, self.device = inner, vae.to(device), device
        self.side, self.silence = inner.side, inner.silence
        self.description = {"maker": f"{inner.description['maker']}, through the VAE"}

    @torch.inference_mode()
    def make(self, asked: Asked) -> Made:
        started = time.perf_counter()
        frames = self.inner.make(asked).frames
        spans = plan_spans(len(frames), WINDOW, OVERLAP, WAN)
        filled = np.concatenate([frames, *[frames[-1:]] * (WAN.rounded_up(len(frames)) - len(frames))])
        parts: list[np.ndarray] = []
        before: np.ndarray | None = None
        for span in spans:
            chunk = filled[span.start : span.stop].copy()
            if before is not None:
                chunk[: span.given] = before[-span.given :]
            before = self._decoded(chunk)
            parts.append(before[span.keep])
        borders = tuple(span.keep_start for span in spans[1:])
        return Made(np.concatenate(parts), borders, time.perf_counter() - started)

    def _decoded(self, frames: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].to(self.device).float() / 127.5 - 1
        video = self.vae.decode(self.vae.encode(pixels, latents_per_pass=13), latents_per_pass=13)
        return to_bytes((video + 1) / 2)


def through_vae(files: Sequence[str], plugins: Plugins, device: torch.device) -> ThroughVae:
    """The renderer through the VAE that some of the model files hold."""
    bundle = Bundle.open(files, plugins.registry())
    return ThroughVae(Drawn(), bundle.load("vae", device=device, dtype=torch.float32), device)
