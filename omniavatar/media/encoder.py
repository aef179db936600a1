"""Encodes frames in a thread of its own, into a fragmented mp4 that plays whatever becomes of the program.

Each chunk is encoded by an ffmpeg process of its own, which ends with the chunk: so x264 holds no frame of a finished
chunk back. (Without looking ahead it would hold back few, but the same pictures would take twice the space or more.)
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import IO

from omniavatar.lazy import np
from omniavatar.media.ffmpeg import Ffmpeg, FfmpegError

_GROUPS = 4
_END_OF_CHUNK = object()
_END = object()

_TO_BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_inp,format=yuv420p,"
    "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
)
_FRAGMENTS = "+frag_keyframe+empty_moov+default_base_moof+frag_discont+negative_cts_offsets+skip_trailer"
_MICROSECONDS_A_FRAGMENT = "1000000"
_HEAD = (b"ftyp", b"moov")


@dataclass(frozen=True)
class Format:
    """How pictures are stored: pixels, frames a second, H.264's quality, and texts that describe the video.

    Odd sizes gain one row or column that repeats the edge, since the colour format stores blocks of 2x2 pixels.
    crf 0 is stored as 1: H.264 makes it lossless in a profile (High 4:4:4) that browsers and phones refuse.
    """

    width: int
    height: int
    fps: Fraction
    crf: int = 18
    metadata: Mapping[str, str] = field(default_factory=dict)

    def arguments(self, first_frame: int = 0, first_fragment: int = 1) -> list[str]:
        """ffmpeg's arguments that turn frames at its input into fragments at its output, from these numbers on."""
        right, bottom = self.width % 2, self.height % 2
        even = f"pad={self.width + right}:{self.height + bottom},fillborders=right={right}:bottom={bottom}:mode=smear,"
        filters = (even if right or bottom else "") + _TO_BT709
        frames = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{self.width}x{self.height}", "-r", str(self.fps)]
        texts = [argument for key, text in self.metadata.items() for argument in ("-metadata", f"{key}={text}")]
        return [
            *(*frames, "-i", "pipe:0", "-vf", filters, *texts),
            *("-c:v", "libx264", "-profile:v", "high", "-crf", str(max(1, self.crf))),
            *("-output_ts_offset", f"{float(first_frame / self.fps):.6f}", "-fragment_index", str(first_fragment)),
            *("-frag_duration", _MICROSECONDS_A_FRAGMENT, "-movflags", _FRAGMENTS, "-flush_packets", "1"),
            *("-f", "mp4", "pipe:1"),
        ]


class Encoder:
    """Frames in, by groups that wait in a short queue; out comes the file at `path`, one fragment after the other.

    follow: gets every part of the file as it is written, the head first. It must not raise.
    Raises FfmpegError if a first frame cannot be encoded so, OSError if the file cannot be written.
    """

    def __init__(self, path: Path, form: Format, *, follow: Callable[[bytes], None] | None = None) -> None:
        self.frames = 0
        self.waited = 0.0
        self._form = form
        self._file = FragmentedFile(path, _head_of(form), follow)
        self._chunk: _Chunk | None = None
        self._error: Exception | None = None
        self._stopped = False
        self._queue: queue.Queue[object] = queue.Queue(_GROUPS)
        self._thread = threading.Thread(target=self._work, name="omniavatar-encoder", daemon=True)
        self._thread.start()

    @property
    def fragments(self) -> int:
        """Fragments in the file, each about a second long; 0 means that there are no frames."""
        return self._file.fragments

    def put(self, frames: np.ndarray) -> None:
        """Hand over a group (t h w 3) uint8, which is not copied; waits only while the queue is full.

        Raises FfmpegError or OSError once an earlier group could not be encoded or written.
        """
        self._enqueue(frames)

    def flush(self, *, wait: bool = True) -> None:
        """End a chunk: all frames so far are encoded and written through to the disk, before this returns if `wait`.

        Raises FfmpegError or OSError as `put` does.
        """
        self._enqueue(_END_OF_CHUNK)
        if wait:
            begin = time.perf_counter()
            self._queue.join()
            self.waited += time.perf_counter() - begin
            self._check()

    def finish(self) -> None:
        """Encode what waits, and close the file. Raises as `put` does; the file then ends earlier, and plays."""
        if self._thread.is_alive():
            self._queue.put(_END)
            self._thread.join()
        self._check()

    def kill(self) -> None:
        """Stop at once; may be called at any time, and again."""
        self._stopped = True
        if (chunk := self._chunk) is not None:
            chunk.stop()
        if self._thread.is_alive():
            self._queue.put(_END)  # there will be room: the thread goes on taking, and throws away
            self._thread.join()

    def _enqueue(self, item: object) -> None:
        self._check()
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            begin = time.perf_counter()
            self._queue.put(item)
            self.waited += time.perf_counter() - begin

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        item: object = None
        while item is not _END:
            item = self._queue.get()
            try:
                if self._error is None and not self._stopped:
                    self._handle(item)
            except Exception as error:  # whoever calls next is told
                self._error = error
            finally:
                self._queue.task_done()
        if self._chunk is not None:
            self._chunk.kill()
        self._file.close()

    def _handle(self, item: object) -> None:
        if isinstance(item, np.ndarray):
            if self._chunk is None:
                self._chunk = _Chunk(self._form.arguments(self.frames, self._file.fragments + 1), self._file)
            self._chunk.write(item)
            self.frames += len(item)
        elif self._chunk is not None:
            self._chunk.finish()
            self._chunk = None
            self._file.sync()


class FragmentedFile:
    """An mp4 file that grows by whole fragments: at any time it plays, to the end of the last one.

    follow: called with all that is written. Raises OSError if the head cannot be written.
    """

    def __init__(self, path: Path, head: bytes, follow: Callable[[bytes], None] | None = None) -> None:
        self.fragments = 0
        self._head, self._follow, self._size = head, follow, 0
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - closed by close()
        self._write(head)

    def add(self, boxes: Iterator[tuple[bytes, bytes]]) -> None:
        """Append the fragments of an mp4 as they come; its head must be that of the file.

        Raises OSError if there is no room for one, which then leaves no trace, FfmpegError if the head differs.
        """
        head, fragment = b"", b""
        for kind, box in boxes:
            if kind in _HEAD:
                head += box
                continue
            if head != self._head:
                raise FfmpegError("the chunks of the video were encoded differently")
            fragment += box
            if kind == b"mdat":
                self._write(fragment)
                self.fragments += 1
                fragment = b""

    def sync(self) -> None:
        """Wait until all is on the disk. Raises OSError."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _write(self, part: bytes) -> None:
        rest = memoryview(part)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(part)
        if self._follow is not None:
            self._follow(part)


class _Chunk:
    """One ffmpeg process, whose fragments a second thread adds to the file. Raises FfmpegError if it cannot start."""

    def __init__(self, arguments: list[str], file: FragmentedFile) -> None:
        self._process = Ffmpeg(["-v", "error", *arguments], feed=True)
        self._error: Exception | None = None
        self._collector = threading.Thread(target=self._collect, args=(file,), daemon=True)
        self._collector.start()

    def write(self, frames: np.ndarray) -> None:
        """Feed frames (t h w 3). Raises FfmpegError or OSError if they cannot be encoded or written."""
        try:
            for frame in frames:
                self._process.stdin.write(np.ascontiguousarray(frame).data)
            self._process.stdin.flush()
        except BrokenPipeError:
            self.finish()
            raise FfmpegError("ffmpeg stopped reading frames") from None

    def finish(self) -> None:
        """Wait until all frames are encoded and added. Raises as `write` does."""
        try:
            self._process.finish()
        except FfmpegError as error:
            self._collector.join()
            raise self._error or error from None
        self._collector.join()
        if self._error is not None:
            raise self._error
        self._process.kill()

    def stop(self) -> None:
        self._process.stop()

    def kill(self) -> None:
        self._process.stop()
        self._collector.join()
        self._process.kill()

    def _collect(self, file: FragmentedFile) -> None:
        try:
            file.add(read_boxes(self._process.stdout))
        except Exception as error:  # `finish` raises it
            self._error = error
            self._process.stop()


def read_boxes(stream: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The boxes that an mp4 stream consists of: name of four letters, and all bytes. One cut short is left out."""
    while len(header := stream.read(8)) == 8:
        rest = int.from_bytes(header[:4], "big") - 8
        body = stream.read(rest)
        if len(body) < rest:
            return
        yield header[4:], header + body


def _head_of(form: Format) -> bytes:
    """What all chunks begin with: a trial with one black frame, so that what ffmpeg cannot encode is found at once."""
    with Ffmpeg(["-v", "error", *form.arguments()], feed=True) as process:
        try:
            process.stdin.write(bytes(form.height * form.width * 3))
            process.stdin.close()
        except BrokenPipeError:
            pass  # `finish` says why
        head = b"".join(box for kind, box in read_boxes(process.stdout) if kind in _HEAD)
        process.finish()
    return head
