"""A video that can be looked at while it is made."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from omniavatar.media import ffmpeg
from omniavatar.media.ffmpeg import Ffmpeg, FfmpegError
from omniavatar.media.paths import shown
from omniavatar.media.workspace import claim

log = logging.getLogger(__name__)

_MICROSECONDS = "200000"  # of a fragment; with one for every frame ffmpeg 9.0 writes wrong times


class Preview:
    """A growing, fragmented mp4 beside `target`: what an `Encoder` writes, with the sound of the file `sound`.

    It lags less than a second behind, and never stops the work: one that cannot go on ends where it is, with a warning.
    Raises OSError if its file cannot be made, FfmpegError if ffmpeg does not start.
    """

    def __init__(self, target: Path, sound: Path | None) -> None:
        self.path = claim(target, "preview")
        pictures = ["-v", "error", "-y", "-analyzeduration", "0", "-f", "mp4", "-i", "pipe:0"]
        with_sound = ["-i", ffmpeg.url(sound), "-map", "0:v:0", "-map", "1:a:0"] if sound else []
        growing = ["-movflags", "+frag_keyframe+delay_moov+default_base_moof", *("-frag_duration", _MICROSECONDS)]
        output = ["-c", "copy", *growing, "-flush_packets", "1", "-f", "mp4", ffmpeg.url(self.path)]
        try:
            self._process = Ffmpeg([*pictures, *with_sound, *output], feed=True)
        except FfmpegError:
            self.path.unlink()
            raise
        self._goes_on = True

    def follow(self, part: bytes) -> None:
        """Append what was written to the file of pictures."""
        if self._goes_on:
            try:
                self._process.stdin.write(part)
                self._process.stdin.flush()
            except OSError:
                self._goes_on = False
                log.warning("the preview %s ends early: %s", shown(self.path), ffmpeg.last_words(self._process.log()))

    def remove(self, folder: Path) -> None:
        """Stop, and remove the file, which lies in `folder` by now: nobody needs it any more."""
        self._process.kill()
        with contextlib.suppress(OSError):
            (folder / self.path.name).unlink()
