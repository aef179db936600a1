"""`omni bench` on the packaged model: small videos, the report, and what is wrong with a call."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from omniavatar.bench.record import Record
from omniavatar.cli import run_cli
from omniavatar.testing.tiny import tiny_file
from tests.checkpoints.quantise import scaled
from tests.cli.conftest import SMALL, Omni, Outcome, tree

QUICKLY = (*SMALL, "--seconds", "0.24", "--repeats", "1", "--warmup", "0")
UNITS = '''
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl

class Breaks(PipelineUnit):
    """Goes wrong."""
    name = "breaks"
    @hookimpl
    def end_window(self, window):
        raise ValueError("no good")

class Stops(PipelineUnit):
    """Is stopped in its second video."""
    name = "stops"
    def __init__(self):
        super().__init__()
        self.videos = 0
    @hookimpl
    def begin_job(self, job):
        self.videos += 1
        if self.videos == 2:
            raise KeyboardInterrupt

@hookimpl
def omni_units():
    return [Breaks, Stops]
'''


@pytest.fixture
def plugin(install: Callable[[str, str], None]) -> None:
    install("omniavatar_breaks", UNITS)


def figures(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "out/bench/bench.json").read_text())
    return result


@pytest.mark.usefixtures("plugin")
def test_what_is_measured_refused_and_broken(omni: Omni, folder: Path) -> None:
    expressions = ("default", "default+cfg-merge", "default-prompt", "default+breaks")
    units = [argument for expression in expressions for argument in ("--units", expression)]
    outcome = omni("bench", *units, *QUICKLY, "--seed", "1")
    assert outcome.code == 1
    assert "omni: default+breaks failed: profiling, seed 1: ValueError: no good" in outcome.err.splitlines()
    record = Record.read(folder / "out/bench/bench.json")
    assert [(one.name, one.status) for one in record.combinations] == list(
        zip(expressions, ("measured", "measured", "refused", "failed"), strict=True)
    )
    default, merged, refused, _ = record.combinations
    assert "needs 'prompt_embedding'" in (refused.reason or "")
    assert default.calls is not None
    assert merged.calls is not None
    assert (default.calls.made, merged.calls.made) == (2, 1)
    assert merged.quality is not None
    assert merged.quality.ssim.median > 0.999
    assert record.asked.settings["schedule"] == {"steps": 1}
    assert record.asked.inputs == {"image": "portrait.png", "audio": "speech.flac"}
    assert record.command.startswith("omni bench --units default")
    assert {"out/bench/bench.html", "out/bench/videos/01-seed1.mp4", "out/bench/videos/02-seed1.mp4"} <= tree(folder)
    assert "+cfg-merge" in outcome.out
    assert "report: out/bench/bench.html" in outcome.out


def test_other_weights_without_times(omni: Omni, folder: Path) -> None:
    """A combination more for every file, compared with the model's own; nothing is timed."""
    state = load_file(tiny_file("transformer.safetensors"))
    save_file(scaled(state), folder / "fp8.safetensors")
    outcome = omni("bench", "--weights", "fp8.safetensors", *QUICKLY, "--repeats", "0", "--seed", "1")
    assert outcome.code == 0
    assert "default with fp8.safetensors" in outcome.out
    own, other = Record.read(folder / "out/bench/bench.json").combinations
    assert (own.name, other.name, own.times, other.times) == ("default", "default with fp8.safetensors", None, None)
    assert other.status == "measured"
    assert other.quality is not None
    assert not other.quality.identical
    assert other.quality.ssim.median > 0.9
    assert "PSNR dB" in outcome.out


@pytest.mark.slow
def test_an_earlier_record_shows_what_is_worse(omni: Omni, folder: Path) -> None:
    call = ("bench", "--units", "default-write-video", *QUICKLY, "--tolerance", "5")
    assert omni(*call, "--quiet") == Outcome(0, "", "")
    path = folder / "out/bench/bench.json"
    earlier = figures(folder)
    (folder / "old.json").write_text(json.dumps(earlier))
    outcome = omni(*call, "--compare", "old.json")
    assert outcome.code == 0
    assert "nothing is worse than in old.json" in outcome.out
    ran = earlier["combinations"][0]["calls"]["blocks_run"]
    earlier["combinations"][0]["calls"]["blocks_run"] -= 1
    path.write_text(json.dumps(earlier))
    outcome = omni(*call, "--compare", path, "--quiet")
    assert (outcome.code, outcome.out) == (1, "")
    worse = f"transformer blocks that run was {ran - 1} and is {ran}"
    assert outcome.err == f"omni: worse than before: default-write-video: {worse}\n"
    assert f"transformer blocks that run was {ran - 1}" in (folder / "out/bench/bench.html").read_text()
    outcome = omni("bench", "--units", "default", *QUICKLY, "--seconds", "1.04", "--compare", path)
    assert outcome.error.startswith(f"{path} was measured with other seconds: 0.24 there, 1.04 here")


@pytest.mark.slow
def test_a_suite_with_faces(omni: Omni, folder: Path) -> None:
    suite = 'title = "Mine"\nunits = ["default", "default+unheard-of"]\nfaces = true\nsize = "32x32"\nseconds = 0.24\n'
    (folder / "mine.toml").write_text(suite + "repeats = 1\nwarmup = 0\n[settings.schedule]\nsteps = 1\n")
    outcome = omni("bench", "--suite", "mine.toml", "--quiet", "--output", "here", "--no-interleave")
    assert outcome == Outcome(0, "", "")
    record = Record.read(folder / "here/bench.json")
    assert (record.title, record.asked.faces, record.asked.interleaved) == ("Mine", True, False)
    assert record.combinations[0].avatar is not None
    assert record.combinations[1].status == "refused"
    assert (record.combinations[1].reason or "").startswith("unknown unit or preset 'unheard-of'")
    assert "here/inputs/face-42.png" in tree(folder)


@pytest.mark.usefixtures("plugin")
def test_ctrl_c_leaves_a_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    units = ("--units", "default-write-video", "--units", "default-write-video+stops")
    assert run_cli(["bench", *units, *QUICKLY]) == 130
    assert capsys.readouterr().err.endswith("omni: interrupted\n")
    found = figures(folder)
    assert found["interrupted"] is True
    assert [one["status"] for one in found["combinations"]] == ["unfinished", "unfinished"]
    assert found["combinations"][0]["times"]["total_seconds"]["median"] > 0
    assert "Interrupted" in (folder / "out/bench/bench.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--suite", "quik"), "there is no suite quik; did you mean 'quick'?"),
        (("--units", "default+teacach"), "unknown unit or preset 'teacach'; did you mean 'teacache'?"),
        (("--matrix", ""), "the matrix of default has no units"),
        (
            ("--units", "default-transformer"),
            "no combination can be made; default-transformer: the plan has no network",
        ),
        (("--units", "default", "--teacache.threshold", "1"), "unit 'teacache' is not in the plan"),
        (("--units", "default", "--compare", "no.json"), "cannot read no.json: No such file"),
        (("--units", "default", "--xyzzy"), "unknown option '--xyzzy'; omni bench --help lists all"),
        (("--faces", "--size", "64x32"), "--size is 64x32 and procedural faces are square"),
        (("--units", "default+teacache", "--teacache.threshold", "99"), "--teacache.threshold 99: at most 10"),
        (("--faces", "--image", "me.png"), "--faces brings an image for each seed; leave --image out"),
        (("--units", "default", "--seed", "-1"), "Invalid value for '--seed'"),
        (("--weights", "absent.gguf"), "--weights absent.gguf: there is no file"),
    ],
)
def test_bad_calls_are_one_line(omni: Omni, folder: Path, arguments: tuple[str, ...], complaint: str) -> None:
    outcome = omni("bench", *arguments)
    assert outcome.code == 2
    assert complaint in outcome.error
    assert not (folder / "out/bench/bench.json").exists()


def test_help_has_the_options_of_all_combinations(omni: Omni) -> None:
    out = omni("bench", "--units", "default", "--units", "default+teacache", "--help").out
    assert "--teacache.threshold NUMBER" in out
    assert "--prompt TEXT" in out
    assert "the file to write" not in out


@pytest.mark.parametrize("without", [["--no-faces"], []])
def test_the_faces_of_a_suite_can_be_left_out(omni: Omni, folder: Path, without: list[str]) -> None:
    (folder / "mine.toml").write_text('units = ["default"]\nfaces = true\n')
    outcome = omni("bench", "--suite", "mine.toml", *without, "--image", "me.png", "--quiet")
    assert "image 'me.png' does not exist" in outcome.error
