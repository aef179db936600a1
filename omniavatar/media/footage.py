"""Videos that a video follows: read piece by piece, from the beginning to the end, while it is made."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from einops import rearrange

from omniavatar.errors import InputError
from omniavatar.lazy import np, torch
from omniavatar.media.clip import video_input
from omniavatar.media.ffmpeg import Ffmpeg, FfmpegError
from omniavatar.media.video import VideoInfo, decoder, decoding, name_of, probe_video

if TYPE_CHECKING:
    from torch import Tensor

_AT_ONCE = 32


class Footage:
    """The pictures of a video at a constant rate and size; of a picture, its one.

    Pieces may share pictures, as windows do, and what is kept is one piece. One that begins before the last one did
    starts the video anew; all others go on where decoding has come to, so that a video is decoded once.

        with Footage("pose.mp4", fps=25, size=(400, 720)) as footage:
            pictures = footage.read(0, 81, device="cuda")

    source: a path, or what a program has in memory; see `clip.video_input`.
    fps, size: of the pieces; height and width in pixels, which are covered and cropped as `read_video` does.
    info: what `probe_video` says, where it is known already.
    length: pictures at that rate; None for a picture, or where they cannot be counted.
    Raises InputError if there is no video track.
    """

    def __init__(self, source: Any, *, fps: float, size: tuple[int, int], info: VideoInfo | None = None) -> None:
        self.source = video_input(source)
        info = probe_video(self.source) if info is None else info
        self.size = size
        self.is_still = info.is_still
        self.length = info.frames_at(fps)
        self.name = name_of(self.source)
        self._arguments = decoding(info.looks, fps=None if self.is_still else fps, size=size, name=self.name)
        self._decoder: Ffmpeg | None = None
        self._begin = 0
        self._held: deque[np.ndarray] = deque()

    def read(self, start: int, stop: int, *, hold: bool = False, device: torch.device | str = "cpu") -> Tensor:
        """Pictures [start, stop), as far as there are any: (1 3 n H W) float32 in [0, 1], on `device`.

        hold: behind the end of the video its last picture stays, so that n is stop - start.
        Raises InputError if the video cannot be decoded.
        """
        if self._decoder is None or start < self._begin:
            self._restart()
        while self._end < stop and self._decode(min(stop - self._end, _AT_ONCE)):
            self._forget(start)
        self._forget(start)
        pictures = [picture for index, picture in enumerate(self._held, self._begin) if start <= index < stop]
        if hold:
            pictures += [self._held[-1]] * (stop - start - len(pictures))
        return self._as_tensor(pictures, device)

    def last(self, count: int, *, device: torch.device | str = "cpu") -> Tensor:
        """The last `count` pictures, all if there are fewer, wherever the end is: (1 3 n H W) as `read` gives them."""
        self._restart()
        while self._decode(_AT_ONCE):
            self._forget(self._end - count)
        return self._as_tensor(list(self._held), device)

    def close(self) -> None:
        """Stop decoding; a later `read` starts the video anew."""
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

    def _as_tensor(self, pictures: list[np.ndarray], device: torch.device | str) -> Tensor:
        frames = np.stack(pictures) if pictures else np.empty((0, *self.size, 3), np.uint8)
        return rearrange(torch.from_numpy(frames).to(device), "t h w c -> 1 c t h w").float() / 255

    def _restart(self) -> None:
        self.close()
        self._begin = 0
        self._held.clear()
        try:
            self._decoder = decoder(self.source, self._arguments)
        except FfmpegError as error:
            raise self._undecodable(error) from None
        if not self._decode(1):
            raise InputError(f"{self.name} holds no frames")

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
        self._held.extend(pictures)
        return len(pictures) > 0

    def _forget(self, start: int) -> None:
        """Drop the pictures in front of `start`, but never the last one."""
        while self._begin < start and len(self._held) > 1:
            self._held.popleft()
            self._begin += 1

    def _undecodable(self, error: FfmpegError) -> InputError:
        return InputError(f"{self.name} cannot be decoded: {error}")
