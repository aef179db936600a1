"""`docs/plugins.md` and the unit of the README are true: files make a package that passes, commands work."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from omniavatar.media.video import probe_video
from omniavatar.testing import check_unit
from omniavatar.testing.check import PROMISES
from omniavatar.testing.recorder import WindowRecorder
from tests.scenes import Scene, denoising_units, fake_engine, request

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "plugins.md"
BLOCK = re.compile(r"^```(?P<language>\w+)(?: (?P<file>\S+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Reader:
    """Somebody who does what the page says, in a folder of their own; pip installs into `site` from what is here."""

    folder: Path

    @property
    def site(self) -> Path:
        return self.folder / "site"

    def follow(self, page: str) -> list[str]:
        """Write the page's files and run its commands and scripts, in order; returns what the commands printed."""
        printed = []
        for block in BLOCK.finditer(page):
            if block["file"]:
                path = self.folder / block["file"]
                assert path.parent.is_dir(), f"nothing before {block['file']} makes its folder"
                path.write_text(block["text"])
            elif block["language"] == "python":
                printed.append(self.run(sys.executable, "-c", block["text"]))
            else:
                printed += [self.run(*self.command(line)) for line in block["text"].splitlines()]
        return printed

    def command(self, line: str) -> list[str]:
        """What stands for a line of shell here."""
        program, *arguments = shlex.split(line)
        if program == "pip":
            kept = [argument for argument in arguments if argument != "--editable"]
            offline = ["--no-index", "--no-deps", "--no-build-isolation", "--quiet", "--target", str(self.site)]
            return [sys.executable, "-m", "pip", *kept, *offline]
        return [sys.executable, "-m", {"omni": "omniavatar", "pytest": "pytest"}[program], *arguments]

    def run(self, *command: str) -> str:
        """Run a command that must succeed."""
        environment = {**os.environ, "PYTHONPATH": str(self.site), "COLUMNS": "200"}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.mark.slow
def test_the_page_works_from_beginning_to_end(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    printed = "\n".join(reader.follow(PAGE.read_text()))
    for found in ("1 passed", "omni_presets", "how much of the mood", "mood(strength=1.5)", "mood-table"):
        assert found in printed
    assert probe_video(tmp_path / "happy.mp4").frames == 12


def test_every_promise_is_listed_in_its_own_words() -> None:
    promises = {name: (inspect.getdoc(check) or "").partition("\n")[0] for name, check in PROMISES.items()}
    assert dict(re.findall(r"^- `(\w+)`: (.+)$", PAGE.read_text(), re.MULTILINE)) == promises


@pytest.fixture
def fade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The unit of the README, in a module of its own."""
    blocks = BLOCK.finditer((ROOT / "README.md").read_text())
    code = next(block["text"] for block in blocks if "hookimpl" in block["text"])
    (tmp_path / "readme_unit.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("readme_unit").Fade
    del sys.modules["readme_unit"]


def test_the_unit_of_the_readme_fades_in_across_windows(fade: Any) -> None:
    """Two windows of 9 frames that share 5; the fade ends in the second one."""
    recorder = WindowRecorder()
    engine = fake_engine([Scene(frames=13), *denoising_units(), fade(frames=10)])
    engine.generate(request(), observers=[recorder])
    for window in recorder.windows:
        light = (torch.arange(window.span.start, window.span.stop) / 10).clamp(max=1)
        torch.testing.assert_close(window["output_frames"], window["frames"] * light.view(-1, 1, 1))


@pytest.mark.slow
def test_the_unit_of_the_readme_keeps_its_promises(fade: Any) -> None:
    check_unit(fade)
