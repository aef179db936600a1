"""Videos that a video follows: read piece by piece, from the beginning to the end, while it is made."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from omniavatar.errors import InputError
from omniavatar.media.ffmpeg import Ffmpeg, FfmpegError
from omniavatar.media.paths import shown
from omniavatar.media.video import decoding, probe_video

_AT_ONCE = 32


class Footage:
    """The pictures of a video file at a constant rate and size; of a picture file, its one.

    Pieces may share pictures, as windows do, and what is kept is one piece. One that begins before the last one did
    starts the file anew; all others go on where decoding has come to, so that a file is decoded once.

        with Footage("pose.mp4", fps=25, size=(400, 720)) as footage:
            pictures = footage.read(0, 81)

    fps, size: of the pieces; height and width in pixels, which are covered and cropped as `read_video` does.
    length: pictures at that rate; None for a picture file, or where they cannot be counted.
    Raises InputError if the file has no video track.
    """

    def __init__(self, path: str | os.PathLike[str], *, fps: float, size: tuple[int, int]) -> None:
        info = probe_video(path)
        self.path, self.size = path, size
        self.is_still = info.is_still
        self.length = info.frames_at(fps)
        self._arguments = decoding(path, fps=None if self.is_still else fps, size=size)
        self._decoder: Ffmpeg | None = None
        self._begin = 0
        self._held = np.empty((0, *size, 3), np.uint8)

    def read(self, start: int, stop: int, *, hold: bool = False) -> Tensor:
        """Pictures [start, stop), as far as there are any: (1 3 n H W) float32 in [0, 1].

        hold: behind the end of the file its last picture stays, so that n is stop - start.
        Raises InputError if the file cannot be decoded.
        """
        if self._decoder is None or start < self._begin:
            self._restart()
        while self._end < stop and self._decode(min(stop - self._end, _AT_ONCE)):
            self._forget(start)
        self._forget(start)
        pictures = self._held[max(0, start - self._begin) : max(0, stop - self._begin)]
        if hold:
            missing = stop - start - len(pictures)
            pictures = np.concatenate([pictures, np.repeat(self._held[-1:], missing, axis=0)])
        return rearrange(torch.tensor(pictures), "t h w c -> 1 c t h w").float() / 255

    def close(self) -> None:
        """Stop decoding; a later `read` starts the file anew."""
        if self._decoder is not None:
            self._decoder.kill()
            self._decoder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _end(self) -> int:
        """The number of the next picture that the decoder gives."""
        return self._begin + len(self._held)

    def _restart(self) -> None:
        self.close()
        self._begin, self._held = 0, self._held[:0]
        try:
            self._decoder = Ffmpeg(["-v", "error", *self._arguments])
        except FfmpegError as error:
            raise self._undecodable(error) from None
        if not self._decode(1):
            raise InputError(f"video {shown(self.path)} holds no frames")

    def _decode(self, count: int) -> bool:
        """Hold up to `count` pictures more; whether there were any."""
        assert self._decoder is not None
        wanted = count * self.size[0] * self.size[1] * 3
        found = self._decoder.read(wanted)
        if len(found) < wanted:
            try:
                self._decoder.finish()
            except FfmpegError as error:
                raise self._undecodable(error) from None
        pictures = np.frombuffer(found, np.uint8).reshape(-1, *self.size, 3)
        self._held = np.concatenate([self._held, pictures])
        return len(pictures) > 0

    def _forget(self, start: int) -> None:
        """Drop the pictures in front of `start`, but never the last one."""
        count = max(0, min(start - self._begin, len(self._held) - 1))
        self._begin, self._held = self._begin + count, self._held[count:]

    def _undecodable(self, error: FfmpegError) -> InputError:
        return InputError(f"video {shown(self.path)} cannot be decoded: {error}")
