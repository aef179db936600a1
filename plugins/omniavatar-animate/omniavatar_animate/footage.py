"""Videos that a video follows frame by frame, of which each window reads its part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omniavatar.sdk import Footage, torch

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.sdk import Footage, Window


def frames_of(footage: Footage, window: Window) -> Tensor:
    """The frames of a window (1 3 f H W) in [0, 1]; behind the end of the job's video the last one stays."""
    span = window.span
    frames = footage.read(span.start, min(span.stop, window.job.length), hold=True, device=window.engine.device)
    rest = frames[:, :, -1:].expand(-1, -1, span.frames - frames.shape[2], -1, -1)
    return torch.cat([frames, rest], dim=2)
