"""What came of the windows of a run, to look at when the run itself has let everything go.

recorder = WindowRecorder()
engine.generate(request, observers=[recorder])
recorder.windows[0]["frames"]       # (1 3 t h w), all frames of the window as they were decoded
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omniavatar.engine.scopes import Frames, Job, Previous, Step, Window
from omniavatar.engine.windows import Span
from omniavatar.hookspecs import hookimpl


@dataclass
class SeenWindow:
    """A window as it was when it ended: `values` are those that could be read in it.

    frames: as decoded, output_frames: as shown before they become bytes, both (1 3 t h w) and of the whole window, None
    without a decoder. output: what entered the video (t h w 3) uint8. noise: what the window started from.
    """

    index: int
    span: Span
    is_last: bool
    noise: Tensor
    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    video_latents: Tensor = field(default_factory=lambda: torch.empty(0))
    steps: tuple[Step, ...] = ()
    previous: Previous | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    frames: Tensor | None = None
    output_frames: Tensor | None = None
    output: np.ndarray | None = None

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name) if name in ("frames", "output_frames") else self.values[name]

    def __contains__(self, name: object) -> bool:
        return getattr(self, name) is not None if name in ("frames", "output_frames") else name in self.values

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or `default` when no unit has stored it."""
        return self[name] if name in self else default  # noqa: SIM401 - this is the get

    def tensors(self) -> dict[str, Tensor]:
        """The latents and the frames, as far as there are any."""
        found = {"latents": self.latents, "frames": self.frames, "output_frames": self.output_frames}
        return {name: value for name, value in found.items() if value is not None}


class WindowRecorder:
    """Observes runs; `windows` are those of the last one."""

    def __init__(self) -> None:
        self.windows: list[SeenWindow] = []
        self._decoded: list[Tensor] = []
        self._shown: list[Tensor] = []
        self._output: list[np.ndarray] = []

    @hookimpl(tryfirst=True)
    def begin_job(self, job: Job) -> None:
        self.windows = []

    @hookimpl(tryfirst=True)
    def begin_window(self, window: Window) -> None:
        self._decoded, self._shown, self._output = [], [], []
        self.windows.append(SeenWindow(window.index, window.span, window.is_last, window.latents.clone()))

    @hookimpl(tryfirst=True, specname="postprocess_frames")
    def see_decoded(self, frames: Frames) -> None:
        self._decoded.append(frames.pixels.clone())

    @hookimpl(trylast=True)
    def postprocess_frames(self, frames: Frames) -> None:
        self._shown.append(frames.pixels.clone())

    @hookimpl
    def output_frames(self, frames: np.ndarray) -> None:
        self._output.append(frames)

    @hookimpl(trylast=True)
    def end_window(self, window: Window) -> None:
        seen = self.windows[-1]
        seen.latents, seen.video_latents = window.latents.clone(), window.video_latents.clone()
        seen.steps, seen.previous = tuple(window.steps), window.previous
        seen.values = {name: window[name] for name in window.names()}
        if self._decoded:
            seen.frames, seen.output_frames = torch.cat(self._decoded, dim=2), torch.cat(self._shown, dim=2)
        if self._output:
            seen.output = np.concatenate(self._output)


def video_of(windows: list[SeenWindow]) -> Tensor:
    """The frames that enter the video, as they were decoded (1 3 t h w)."""
    return torch.cat([window["frames"][:, :, window.span.keep] for window in windows], dim=2)
