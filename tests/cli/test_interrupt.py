"""Ctrl-C, for real: a process of its own, in the middle of its work."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from omniavatar.media.video import probe_video
from omniavatar.resources import asset
from tests.cli.conftest import SMALL, tree

pytestmark = pytest.mark.usefixtures("interruptible")

COMMAND = [
    *(sys.executable, "-m", "omniavatar", "run", *SMALL, "--schedule.steps", "200"),
    *("--audio", str(asset("demo", "speech.flac")), "-o", "talk.mp4"),
]


def interrupt_after(line: str, folder: Path, number: int = signal.SIGINT) -> tuple[int, list[str]]:
    """Start a video, press Ctrl-C once this line was printed: the exit code and the lines that follow."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        COMMAND, cwd=folder, env=one_thread, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    for printed in process.stderr:
        if printed.startswith(line):
            break
    process.send_signal(number)
    rest = process.stderr.read().splitlines()
    process.stderr.close()
    return process.wait(), rest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")],
)
def test_finished_windows_are_kept_as_a_partial_video(tmp_path: Path, number: int, code: int, said: str) -> None:
    ended, lines = interrupt_after("chunk 1/2 done", tmp_path, number)
    assert ended == code
    path = tmp_path / "talk.partial.mp4"
    (line,) = lines
    frames = re.fullmatch(rf"omni: {said}; the (\d+) finished frames are in {re.escape(str(path))}", line)
    assert frames is not None
    assert tree(tmp_path) == {"talk.partial.mp4"}
    info = probe_video(path)
    assert (info.frames, info.has_audio) == (int(frames[1]), True)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_a_signal_that_is_ignored_stays_ignored(name: str) -> None:
    """As `nohup` wants it."""
    script = (
        "import signal, sys; from omniavatar import cli; "
        f"before = signal.signal(signal.{name}, signal.SIG_IGN); sys.argv = ['omni', 'version']; "
        "sys.exit = lambda code: None; cli.main(); "
        f"assert signal.getsignal(signal.{name}) is signal.SIG_IGN; "
        "others = {'SIGHUP', 'SIGTERM'} - " + f"{{'{name}'}}; "
        "assert all(callable(signal.getsignal(getattr(signal, other))) for other in others)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_nothing_stays_of_a_video_without_a_finished_window(tmp_path: Path) -> None:
    assert interrupt_after("loaded", tmp_path) == (130, ["omni: interrupted"])
    assert tree(tmp_path) == set()
