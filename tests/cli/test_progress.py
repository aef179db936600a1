"""Progress: what is counted, how the time left is estimated, what terminals and logs get."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from subprocess import PIPE
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from omniavatar.checkpoints import Bundle
from omniavatar.cli.progress import Bar, Display, Lines, Watcher, display_for
from omniavatar.engine.plan import Catalog
from omniavatar.engine.progress import Mark, Status, duration
from tests.scenes import request, tiny_engine


class Record(Display):
    """Keeps every status."""

    def __init__(self) -> None:
        self.seen: list[Status] = []

    def show(self, status: Status) -> None:
        self.seen.append(status)


def test_a_video_is_counted_and_shown(tiny_models: Bundle, catalog: Catalog) -> None:
    display = Record()
    watcher = Watcher(display)
    engine = tiny_engine(tiny_models, catalog, "default-write-video-lora", observers=[watcher])
    with watcher:
        watcher.load(engine, lambda: None)
        for _ in range(2):
            engine.generate(request(seconds=0.44, inputs={"prompt": "x"}))
    timings = watcher.timings
    counts = (timings.windows, timings.steps, timings.transformer_calls, timings.transformer_calls_skipped)
    assert counts == (2, 4, 8, 0)
    parts = timings.prepare_seconds + timings.denoise_seconds + timings.decode_seconds
    assert 0 < parts <= timings.generate_seconds
    assert watcher.load_seconds > 0

    texts = [status.text for status in display.seen]
    assert {f"loading {role}" for role in ("text_encoder", "vae", "audio_encoder", "audio_adapter", "dit")} <= set(
        texts
    )
    expected = ["reading the inputs", "chunk 1/2, preparing", "chunk 1/2, step 1/2", "chunk 1/2, step 2/2"]
    expected += ["chunk 1/2, decoding", "chunk 1/2 done", "chunk 2/2, preparing"]
    first = texts.index("reading the inputs")
    assert texts[first : first + 7] == expected
    chunks = [status for status in display.seen if status.text.startswith("chunk")]
    done = [status.done for status in chunks[:10]]
    assert done == [0, 0, 1, 2, 3, 3, 3, 4, 5, 6]
    assert {status.total for status in chunks} == {6}
    assert [status.text for status in chunks[:10] if status.milestone] == ["chunk 1/2 done", "chunk 2/2 done"]


def test_calls_that_a_cache_skips_are_counted(tiny_models: Bundle, catalog: Catalog) -> None:
    watcher = Watcher(Display())
    engine = tiny_engine(
        tiny_models,
        catalog,
        "default+teacache-write-video-lora",
        observers=[watcher],
        schedule={"steps": 4},
        teacache={"threshold": 10, "coefficients": [0.0]},
    )
    engine.generate(request(seconds=0.24, inputs={"prompt": "x"}))
    assert (watcher.timings.transformer_calls, watcher.timings.transformer_calls_skipped) == (8, 4)


def test_the_time_left_is_that_of_the_steps_and_of_the_windows() -> None:
    watcher = Watcher(Display())
    job = SimpleNamespace(spans=[None] * 3, first=0)
    window: Any = SimpleNamespace(job=job, index=1, steps=[None] * 10)
    assert watcher._seconds_left(window, 0) is None
    watcher.timings.windows, watcher.timings.denoise_seconds, watcher.timings.decode_seconds = 1, 20.0, 5.0
    assert watcher._seconds_left(window, 0) == (10 + 10) * 2.0 + 2 * 5.0
    watcher._step_marks = [mark_at(seconds) for seconds in (0, 4, 8)]
    assert watcher._seconds_left(window, 2) == (8 + 10) * 28 / 12 + 2 * 5.0


def mark_at(seconds: float) -> Mark:
    """A mark of that time."""
    mark = Mark(torch.device("cpu"))
    mark.time = seconds
    return mark


def test_a_log_gets_plain_lines_at_milestones_only() -> None:
    console = Console(file=io.StringIO(), width=20)
    display = display_for(console, quiet=False)
    assert isinstance(display, Lines)
    with display:
        display.show(Status("step [1]"))
        display.show(
            Status("chunk 1/2 done, and a text that is longer than the line", seconds_left=61.0, milestone=True)
        )
        display.last -= Lines.EVERY_SECONDS
        display.show(Status("step [2]"))
    expected = "chunk 1/2 done, and a text that is longer than the line, about 1:01 left\nstep [2]\n"
    assert console.file.getvalue() == expected  # type: ignore[attr-defined]


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    file = io.StringIO()
    display = display_for(Console(file=file, force_terminal=True, width=100), quiet=False)
    assert isinstance(display, Bar)
    with display:
        display.show(Status("chunk 1/2, step 3/4", done=3, total=10, seconds_left=5.0))
        display.progress.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    assert "chunk 1/2, step 3/4" in text
    assert " 30% " in text
    assert "about 5.0 s left" in text
    assert file.getvalue().rstrip().endswith("\x1b[2K")


def test_quiet_shows_nothing() -> None:
    file = io.StringIO()
    with display_for(Console(file=file, force_terminal=True), quiet=True) as display:
        display.show(Status("x", milestone=True))
    assert file.getvalue() == ""


@pytest.mark.parametrize(("seconds", "text"), [(4.25, "4.2 s"), (125, "2:05"), (7384, "2:03:04")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_reader_that_goes_away_ends_nothing() -> None:
    code = """
import os, sys
from omniavatar.cli.progress import Lines, Progressing, Status
lines = Lines(Progressing())
sys.stdin.read(1)
for _ in range(3):
    lines.show(Status("x", milestone=True))
os.write(1, b"done")
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stderr.close()
        said, _ = process.communicate(b".")
    assert (said, process.returncode) == (b"done", 0)
