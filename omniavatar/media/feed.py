"""An ffmpeg process that reads what is in memory, while its output is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from threading import Thread

from omniavatar.lazy import np
from omniavatar.media.ffmpeg import Ffmpeg


class FedFfmpeg(Ffmpeg):
    """One whose standard input gets the values of arrays, from a thread, since it stops reading if nobody reads it."""

    def __init__(self, arguments: Sequence[str], arrays: Iterable[np.ndarray]) -> None:
        super().__init__(arguments, feed=True)
        self._feeder = Thread(target=self._feed, args=(arrays,), name="ffmpeg-feeder", daemon=True)
        self._feeder.start()

    def finish(self) -> None:
        self._feeder.join()
        super().finish()

    def kill(self) -> None:
        self._process.kill()
        self._feeder.join()
        super().kill()

    def _feed(self, arrays: Iterable[np.ndarray]) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has read enough, or has been killed
            for array in arrays:
                self.stdin.write(np.ascontiguousarray(array).data)
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
