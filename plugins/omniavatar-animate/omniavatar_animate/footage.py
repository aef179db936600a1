"""Videos that a video follows frame by frame, of which each window reads its part."""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from omniavatar.engine.scopes import Job, Window
from omniavatar.errors import InputError
from omniavatar.media.paths import shown
from omniavatar.media.video import probe_video, read_video


class Footage:
    """A video file at the rate of a job, or a picture, which lasts for ever.

    size: height and width in pixels of its file. length: frames at the job's rate, None of a picture or if not known.
    """

    def __init__(self, path: Path, fps: int) -> None:
        info = probe_video(path)
        self.path, self.fps = path, fps
        self.size = info.height, info.width
        self.is_still = info.frames == 1
        self.length: int | None = None
        if info.frames is not None and not self.is_still:
            self.length = max(1, round(info.frames * fps / info.fps))

    def frames(self, window: Window, size: tuple[int, int]) -> Tensor:
        """The frames of a window at a size (1 3 f H W) in [0, 1]; behind the end of the footage the last one stays."""
        span = window.span
        stop = min(span.stop, window.job.length)
        start, count = (0, 1) if self.is_still else (span.start, stop - span.start)
        pictures = read_video(self.path, fps=self.fps, size=size, start=start, max_frames=count)
        if not len(pictures):
            raise InputError(
                f"video {shown(self.path)} ends before frame {start}; give a longer one, or fewer --seconds"
            )
        frames = rearrange(torch.from_numpy(pictures.copy()), "t h w c -> 1 c t h w").float() / 255
        rest = frames[:, :, -1:].expand(-1, -1, span.frames - frames.shape[2], -1, -1)
        return torch.cat([frames, rest], dim=2)


def open_footage(path: Path | None, job: Job) -> Footage | None:
    """The footage of a file, if one is given; a video that is longer than its footage becomes as short."""
    if path is None:
        return None
    footage = Footage(path, job.fps)
    if footage.length is not None:
        job.frames = footage.length if job.frames is None else min(job.frames, footage.length)
    return footage
