"""`omni calibrate`: a table from a few videos, which `omni run` and `omni units plan` then use."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from omniavatar.testing.tiny import FILES, tiny_file
from tests.cli.conftest import Omni, tree

SMALL = (
    *("--size", "32x32", "--seconds", "0.52", "--schedule.steps", "7", "--guidance.scale", "2"),
    *("--fixed-frames.window-frames", "9", "--fixed-frames.overlap", "5"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("cache", "setting", "count"), [("magcache", "ratios", 7), ("teacache", "coefficients", 5)])
def test_a_table_is_made_and_used(cache: str, setting: str, count: int, omni: Omni, folder: Path) -> None:
    made = omni("calibrate", cache, *SMALL, "--write", "new/table.toml", "--runs", "1", "--quiet")
    assert (made.code, made.out, made.err) == (0, "", "")
    assert tree(folder) == {"new", "new/table.toml"}
    (tuned,) = tomllib.loads(Path("new/table.toml").read_text())["tuned"]
    assert len(tuned["settings"][cache][setting]) == count
    shown = omni("units", "plan", f"default+{cache}+schedule(steps=7)", "--table", "new/table.toml")
    assert (shown.code, shown.err) == (0, "")
    assert "of 7 steps skipped; computed: 1" in shown.out
    arguments = ("--units", f"default-write-video+{cache}(threshold=9)", "--table", "new/table.toml", *SMALL)
    run = omni("run", *arguments, "--quiet", "--json")
    assert run.code == 0, run.err
    assert json.loads(run.out)["transformer_calls_skipped"] > 0


def test_it_says_where_the_table_is_and_how_good(omni: Omni, folder: Path) -> None:
    outcome = omni("calibrate", "magcache", *SMALL[:-4], "--runs", "2", "--seconds", "0.24", "--schedule.steps", "2")
    assert outcome.code == 0, outcome.err
    (file,) = tree(folder)
    assert file.endswith("-magcache.toml")
    assert outcome.out.startswith(f"{file}  (means of 4 ratios, from which single branches and videos are off by ")


def test_a_table_that_exists_is_kept(omni: Omni, folder: Path) -> None:
    (folder / "mine.toml").write_text("")
    outcome = omni("calibrate", "magcache", *SMALL, "--write", "mine.toml")
    assert outcome.code == 2
    assert outcome.error == "mine.toml exists; name another file with --write, or replace it with --force"
    assert (folder / "mine.toml").read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("calibrate", "teacahe"), "'teacahe' cannot be calibrated; choices: teacache, magcache"),
        (
            ("calibrate", "teacache", "--units", "default+magcache"),
            "unit 'magcache' skips blocks, which are to be measu",
        ),
        (("calibrate", "teacache", "--gpus", "2"), "unknown option '--gpus'"),
        (("calibrate", "teacache", "--table", "no.toml"), "checkpoint table "),
    ],
)
def test_bad_arguments_are_one_line(arguments: tuple[str, ...], message: str, omni: Omni) -> None:
    outcome = omni(*arguments)
    assert outcome.code == 2
    assert outcome.error.startswith(message)


def test_a_checkpoint_without_a_curve_is_told_to_measure_one(omni: Omni) -> None:
    models = [word for name in FILES for word in ("--model", str(tiny_file(name)))]
    outcome = omni("run", "--units", "default+magcache", *models)
    assert outcome.code == 2
    assert outcome.error.startswith("unit 'magcache' has no magnitude ratios for this checkpoint; measure")


def test_too_few_steps_are_said(omni: Omni) -> None:
    outcome = omni("calibrate", "teacache", *SMALL, "--schedule.steps", "2", "--quiet", "--runs", "1")
    assert (outcome.code, outcome.error.partition(" fit")[0]) == (2, "2 steps are too few to")


def test_a_place_that_cannot_be_written_is_refused_before_any_video(omni: Omni, folder: Path) -> None:
    (folder / "file").write_text("")
    outcome = omni("calibrate", "magcache", *SMALL, "--write", "file/mine.toml")
    assert (outcome.code, outcome.error.partition(":")[0]) == (2, "cannot write to the folder file")
