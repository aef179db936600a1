"""`omni bench` on the packaged model: small videos, the report, and what is wrong with a call."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
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


METRICS = '''
import numpy as np
from pydantic import BaseModel
from omniavatar.metrics import Metric
from omniavatar.hookspecs import hookimpl
from omniavatar.training.data.generated import ClipGenerator

def greyness(video):
    """1 for a video of the grey portrait."""
    return 1 - float(np.ptp(video.portrait)) / 255

def breaks(video):
    raise ValueError("odd video")

class Grey(ClipGenerator):
    """Stands for what draws portraits."""
    name = "grey"
    class Settings(BaseModel):
        clips: int
    frames, prompt, bucket = 1, "A grey wall.", (64, 64)
    def __len__(self):
        return self.settings.clips
    def clip(self, number):
        return self
    def pictures(self, start, count):
        return np.full((count, 64, 64, 3), 128, np.uint8)
    @classmethod
    def unseen(cls, seed):
        return cls(None)

@hookimpl
def omni_metrics():
    return [
        Metric("greyness", "1 for a grey portrait", greyness, needs=("portrait",), label="grey"),
        Metric("of-grey", "1 where the generator is told", lambda video: video.generator == "grey"),
        Metric("chroma-psnr", "likeness to the first", lambda video: 9, needs=("reference",), unit="dB"),
        Metric("breaks", "goes wrong", breaks),
        Metric("greyness", "a second of the same name", greyness),
    ]

@hookimpl
def omni_clips():
    return [Grey]
'''


@pytest.fixture
def without_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where omniavatar-drawn is not installed."""
    monkeypatch.setattr(
        "omniavatar.plugins.entry_points",
        lambda group: [entry for entry in entry_points(group=group) if entry.name != "drawn"],
    )


@pytest.fixture
def plugin(install: Callable[[str, str], None]) -> None:
    install("omniavatar_breaks", UNITS)


def figures(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "out/bench/bench.json").read_text())
    return result


@pytest.mark.slow
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


@pytest.mark.slow
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
@pytest.mark.usefixtures("without_drawn")
def test_a_package_brings_metrics_and_portraits(omni: Omni, folder: Path, install: Callable[[str, str], None]) -> None:
    """What a package measures is in the tables and the report; what of it goes wrong is said, and stops nothing."""
    install("omniavatar_grey", METRICS)
    units = ("--units", "default-write-video", "--units", "default-write-video+cfg-merge")
    shape = ("--size", "32x32", "--seconds", "0.2", "--schedule.steps", "1", "--guidance.scale", "2")
    outcome = omni("bench", *units, *shape, "--faces", "--repeats", "1", "--warmup", "0")
    assert outcome.code == 0, outcome.err
    assert outcome.err.splitlines() == [
        "omni: plugin 'omniavatar_grey': metric 'greyness' exists already; it was left out",
        "omni: metric 'breaks' of omniavatar_grey failed and was left out: ValueError: odd video",
    ]
    record = Record.read(folder / "out/bench/bench.json")
    first, second = ({one.name: one.values.median for one in each.metrics} for each in record.combinations)
    assert first == {"greyness": 1, "of-grey": 1}
    assert second == {**first, "chroma-psnr": 9}
    assert {one.package for one in record.combinations[0].metrics} == {"omniavatar_grey"}
    assert record.asked.faces
    assert "out/bench/inputs/face-42.png" in tree(folder)
    (heading,) = (line for line in outcome.out.splitlines() if line.startswith("omniavatar_grey"))
    assert heading.split() == ["omniavatar_grey", "grey", "of-grey", "chroma-psnr", "dB"]
    page = (folder / "out/bench/bench.html").read_text()
    assert "Speed against grey" in page
    assert "grey: 1 for a grey portrait." in page
    assert "general measures" not in outcome.out


INSIGHTFACE = """
import numpy as np

class Face:
    def __init__(self, picture):
        mean = picture.reshape(-1, 3).mean(axis=0)
        self.normed_embedding = mean / np.linalg.norm(mean)

class FaceAnalysis:
    def __init__(self, allowed_modules):
        assert allowed_modules == ["detection", "recognition"]
    def prepare(self, ctx_id):
        pass
    def get(self, picture):
        assert picture.flags.c_contiguous
        return [Face(picture)]
"""


@pytest.mark.usefixtures("without_drawn")
def test_the_metric_of_the_plugin_page_is_measured(
    omni: Omni, folder: Path, install: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the network of faces: the mean colour of a picture."""
    page = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
    (block,) = (part for part in page.split("```python\n")[1:] if "insightface" in part)
    install("omniavatar_arcface", block.partition("\n```")[0])
    analysis = ModuleType("insightface.app")
    exec(INSIGHTFACE, vars(analysis))
    monkeypatch.setitem(sys.modules, "insightface", ModuleType("insightface"))
    monkeypatch.setitem(sys.modules, "insightface.app", analysis)
    outcome = omni("bench", "--units", "default-write-video", *QUICKLY, "--repeats", "0")
    assert (outcome.code, outcome.err) == (0, "")
    (metric,) = Record.read(folder / "out/bench/bench.json").combinations[0].metrics
    assert (metric.name, metric.package) == ("arcface", "omniavatar_arcface")
    assert 0 < metric.values.median < 1


@pytest.mark.usefixtures("without_drawn")
def test_without_a_package_there_are_the_general_measures(omni: Omni, folder: Path) -> None:
    """On the demo's portrait, also where a suite asks for faces; one line says what would add the others."""
    suite = 'units = ["default-write-video"]\nfaces = true\nrepeats = 1\nwarmup = 0\n'
    (folder / "mine.toml").write_text(suite)
    call = ("bench", "--suite", "mine.toml", *SMALL, "--seconds", "0.2")
    outcome = omni(*call)
    assert (outcome.code, outcome.err) == (0, "")
    added = "these are the general measures; the package omniavatar-drawn adds those of drawn faces, with portraits"
    assert outcome.out.splitlines()[-1] == added
    record = Record.read(folder / "out/bench/bench.json")
    assert (record.asked.faces, record.asked.inputs["image"]) == (False, "portrait.png")
    assert record.combinations[0].metrics == ()
    error = omni(*call, "--faces").error
    assert error == "--faces needs a package that generates portraits; install omniavatar-drawn, or give --image"


@pytest.mark.slow
def test_a_suite_with_faces(omni: Omni, folder: Path) -> None:
    suite = 'title = "Mine"\nunits = ["default", "default+unheard-of"]\nfaces = true\nsize = "32x32"\nseconds = 0.24\n'
    (folder / "mine.toml").write_text(suite + "repeats = 1\nwarmup = 0\n[settings.schedule]\nsteps = 1\n")
    outcome = omni("bench", "--suite", "mine.toml", "--quiet", "--output", "here", "--no-interleave")
    assert outcome == Outcome(0, "", "")
    record = Record.read(folder / "here/bench.json")
    assert (record.title, record.asked.faces, record.asked.interleaved) == ("Mine", True, False)
    assert [one.name for one in record.combinations[0].metrics] == ["identity-ssim"]
    assert record.combinations[1].status == "refused"
    assert (record.combinations[1].reason or "").startswith("unknown unit or preset 'unheard-of'")
    assert "here/inputs/face-42.png" in tree(folder)


@pytest.mark.slow
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
        (("--faces", "--size", "64x32"), "--size is 64x32 and generated portraits are square"),
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
