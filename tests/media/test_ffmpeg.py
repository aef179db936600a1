"""The ffmpeg process: no shell, its own session, the telling line of its log."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import imageio_ffmpeg
import pytest

from omniavatar.media import ffmpeg
from tests.media.samples import single_line


def test_last_words_skip_the_aftermath() -> None:
    log = (
        "[out#0/mp4 @ 0x55b44c] Error writing trailer: No space left on device\n"
        "[out#0/mp4 @ 0x55b44c] Error closing file: No space left on device\n"
        "    Last message repeated 2 times\n"
        "Conversion failed!\n"
    )
    assert ffmpeg.last_words(log) == "Error writing trailer: No space left on device"
    assert ffmpeg.last_words("Conversion failed!\n") == "Conversion failed!"
    assert ffmpeg.last_words("") == "ffmpeg gave no reason"


def test_a_failing_run_raises_its_reason() -> None:
    with pytest.raises(ffmpeg.FfmpegError, match="No such file or directory") as caught:
        ffmpeg.run(["-i", "file:/nowhere.wav", "-f", "null", "-"])
    single_line(caught.value)


def test_a_binary_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(tmp_path / "none"))
    with pytest.raises(ffmpeg.FfmpegError, match="cannot be started"):
        ffmpeg.run(["-version"])


def test_ctrl_c_does_not_reach_the_child() -> None:
    with ffmpeg.Ffmpeg(["-f", "u8", "-i", "pipe:0", "-f", "null", "-"], feed=True) as process:
        assert os.getsid(process.pid) == process.pid != os.getsid(0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_the_child_never_sees_a_signal_of_its_parents_group() -> None:
    """Between its start and its own session it is one of the group that a terminal signals."""
    before = blocked(os.getpid())
    with ffmpeg.Ffmpeg(["-f", "u8", "-i", "pipe:0", "-f", "null", "-"], feed=True) as process:
        assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} <= blocked(process.pid)
    assert blocked(os.getpid()) == before


def blocked(pid: int) -> set[int]:
    """The signals that a process has blocked."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    mask = int(lines["SigBlk"], 16)
    return {number + 1 for number in range(64) if mask >> number & 1}


def test_leaving_the_block_ends_the_process() -> None:
    with ffmpeg.Ffmpeg(["-f", "u8", "-i", "pipe:0", "-f", "null", "-"], feed=True) as process:
        pid = process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
