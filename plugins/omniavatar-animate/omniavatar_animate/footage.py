"""Videos that a video follows frame by frame, of which each window reads its part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omniavatar.sdk import Footage, probe_video, torch

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.sdk import Clip, Draft, Job, VideoInfo, Window


def tell_length(draft: Draft, *sources: Path | Clip | None) -> None:
    """Say of a video that is asked for that those to follow limit its length, if one is given that is no picture."""
    draft.has_length |= any(source is not None and not probe_video(source).is_still for source in sources)


def opened(
    source: Path | Clip | None, job: Job, size: tuple[int, int], info: VideoInfo | None = None
) -> Footage | None:
    """A video to follow, until the job ends, if one is given; the job's video becomes as short as it.

    size: height and width of the frames, in pixels. info: what is known of it.
    """
    if source is None:
        return None
    footage = job.resources.enter_context(Footage(source, fps=job.fps, size=size, info=info))
    if footage.length is not None:
        job.frames = footage.length if job.frames is None else min(job.frames, footage.length)
    return footage


def frames_of(footage: Footage, window: Window) -> Tensor:
    """The frames of a window (1 3 f H W) in [0, 1]; behind the end of the job's video the last one stays."""
    span = window.span
    frames = footage.read(span.start, min(span.stop, window.job.length), hold=True, device=window.engine.device)
    rest = frames[:, :, -1:].expand(-1, -1, span.frames - frames.shape[2], -1, -1)
    return torch.cat([frames, rest], dim=2)
