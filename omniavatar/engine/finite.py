"""Whether what networks compute are numbers at all, found without making the program wait for the device.

An overflow in fp16, or a damaged file, makes one NaN, soon all are, and the video is black without any error. So the
sum of the latents of every step, and of every group of frames, is taken on the device; it is read when frames have come
to the host anyway, before they are handed on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from omniavatar.errors import NotFinite

if TYPE_CHECKING:
    from omniavatar.engine.scopes import Window


class Watch:
    """Sees the latents and the frames of one window."""

    def __init__(self) -> None:
        self._latents: list[Tensor] = []
        self._frames: list[Tensor] = []

    def see_latents(self, latents: Tensor) -> None:
        """Those after the next step."""
        self._latents.append(total(latents))

    def see_frames(self, pixels: Tensor) -> None:
        """The next group."""
        self._frames.append(total(pixels))

    def check(self, window: Window) -> None:
        """Raise NotFinite if something was not. Waits for what has been seen since the last time."""
        latents, frames = self._latents, self._frames
        steps = [index for index, value in enumerate(read(latents)) if not math.isfinite(value)]
        if steps:
            raise NotFinite(f"{origin(window, steps[0])}; {remedy(window)}")
        if not all(map(math.isfinite, read(frames))):
            raise NotFinite(f"the decoded frames of chunk {window.index + 1} are not finite; {remedy(window)}")
        latents.clear()
        frames.clear()


def total(values: Tensor) -> Tensor:
    """The sum (), on the device of the values, which is finite if and only if all of them are. One fast kernel."""
    return values.sum(dtype=torch.float32)


def read(values: list[Tensor]) -> list[float]:
    """Scalars on the host; none of a rehearsal without values, on the meta device."""
    return torch.stack(values).tolist() if values and not values[0].is_meta else []


def origin(window: Window, step: int) -> str:
    """What was not finite first: a value that a unit has made, or else what came out of the steps."""
    for unit in window.loop.plan.units:
        for name in unit.provides:
            value = window.get(name)
            if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
                return f"'{name}', which the unit '{unit.name}' makes, is not finite in chunk {window.index + 1}"
    return f"the transformer's output is not finite from step {step + 1} of chunk {window.index + 1} on"


def remedy(window: Window) -> str:
    """What to do, by the precision of the networks."""
    if window.engine.dtype == torch.float16:
        return "in fp16 that is an overflow: take bf16 (--dtype bf16)"
    return "a model or LoRA file is damaged: compare its checksum, or download it again"
