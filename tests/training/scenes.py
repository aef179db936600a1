"""A small training run: the tiny networks, striped clips and the default units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from omniavatar import builtin
from omniavatar.engine.plan import Catalog, Plan, build_plan
from omniavatar.media.sound import Samples
from omniavatar.media.writer import Soundtrack, VideoWriter
from omniavatar.testing.tiny import TinyModels
from omniavatar.training.data.generated import ClipGenerator
from omniavatar.training.diffusion import Diffusion, DiffusionConfig
from omniavatar.training.start import KnownModels
from omniavatar.training.takes import Choice, Take, TakeSettings

SETTINGS: dict[str, dict[str, Any]] = {
    "audio": {"silence": 0},
    "reference-image": {"sizes": [[32, 32]]},
    "prompt": {"tokenizer": "tokenizer", "length": 16, "negative": "bad"},
}


def catalog() -> Catalog:
    """The built-in units and presets."""
    return Catalog({unit.name: unit for unit in builtin.omni_units()}, builtin.omni_presets())


def plan(expression: str = "default") -> Plan:
    return build_plan(expression, catalog(), SETTINGS)


def config(folder: Path, **fields: Any) -> DiffusionConfig:
    """The configuration of a run in a folder; fields lie over it."""
    content: dict[str, Any] = {
        "data": {"generated": {"stripes": {"clips": 2}}},
        "samples": {"frames": 9, "prefixes": [1, 5]},
        "train": {"weights": ["audio_adapter.*"]},
        "trainer": {"steps": 3, "learning_rate": 1e-3, "log_every": 1},
        "output": folder / "out",
    }
    return DiffusionConfig(**{**content, **fields})


def diffusion(folder: Path, *, expression: str = "default", **fields: Any) -> Diffusion:
    """A run of that configuration on the tiny networks, on the CPU."""
    device = torch.device("cpu")
    return opened(config(folder, **fields), plan(expression), TinyModels(), device=device, dtype=torch.float32)


def opened(settings: DiffusionConfig, plan: Plan, models: KnownModels, **options: Any) -> Diffusion:
    """A run that can have clips of stripes."""
    return Diffusion.open(settings, plan, models, generators={"stripes": Stripes}, **options)


class Striped:
    """A clip whose frame n is of the grey 3 n, with a sound whose row n is a tone of its own."""

    def __init__(self, frames: int = 25, side: int = 32) -> None:
        self._frames, self.side = frames, side

    @property
    def frames(self) -> int:
        return self._frames

    @property
    def prompt(self) -> str:
        return "Stripes."

    @property
    def bucket(self) -> tuple[int, int]:
        return self.side, self.side

    def pictures(self, start: int, count: int) -> np.ndarray:
        greys = np.arange(start, start + count, dtype=np.uint8)[:, None, None, None] * 3
        return np.broadcast_to(greys, (count, self.side, self.side, 3)).copy()

    def sound(self) -> np.ndarray:
        times = np.arange(self.frames * 640) / 16000
        rows = np.repeat(np.arange(self.frames), 640)
        return (0.3 * np.sin(2 * np.pi * (200 + 40 * rows) * times)).astype(np.float32)


class StripesSettings(BaseModel):
    """How many clips, and the frames of the first; each further one has a frame more."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clips: int = Field(ge=1)
    frames: int = 25


class Stripes(ClipGenerator):
    """Clips without a file, and without a package that makes them."""

    name = "stripes"
    Settings = StripesSettings
    settings: StripesSettings

    def __len__(self) -> int:
        return self.settings.clips

    def clip(self, number: int) -> Striped:
        return Striped(self.settings.frames + number)


def write_clip(clip: Striped, path: Path, sound: np.ndarray) -> None:
    """As a file with a sound (n,) float32 at 16 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    track = Soundtrack(Samples(sound[:, None], 16000), delay_seconds=1 / 25)
    with VideoWriter(path, width=clip.side, height=clip.side, fps=25, soundtrack=track) as video:
        video.write(clip.pictures(0, clip.frames))


def take(
    start: int = 4, given: int = 5, reference: int | None = 20, count: int = 9, clip: Striped | None = None
) -> Take:
    return Take.of(clip or Striped(), Choice(start, count, given, reference))


DRAWS = TakeSettings(frames=9, prefixes=(1, 5))
