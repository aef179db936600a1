"""`omni run --again`: the last command, or the one that made a video, once more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omniavatar.cli import again
from omniavatar.errors import InputError
from omniavatar.media.writer import read_metadata
from tests.cli.conftest import Omni

SHORT = ("--seconds", "0.24", "--schedule.steps", "1")


@pytest.fixture(autouse=True)
def _own_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "last_file", lambda: tmp_path / "state" / "last-run.json")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--seed", "1"], ["--seed", "1"]),
        (["--again"], ["--image", "a b.png"]),
        (["--again", "--seed", "1"], ["--image", "a b.png", "--seed", "1"]),
        (["--quiet", "--again", "--seed", "1"], ["--image", "a b.png", "--quiet", "--seed", "1"]),
    ],
)
def test_other_words_are_stronger(arguments: list[str], expected: list[str]) -> None:
    again.remember(["--image", "a b.png"])
    assert again.expanded(arguments) == expected


@pytest.mark.slow
def test_the_last_command_is_repeated_where_it_was_given(
    omni: Omni, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert omni("run", *SHORT, "--seed", "7", "-o", "a.mp4").code == 0
    first = (folder / "a.mp4").read_bytes()
    (folder / "a.mp4").unlink()
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    outcome = omni("run", "--again")
    assert outcome.code == 0
    assert "omni run --seconds 0.24" in outcome.err
    assert (folder / "a.mp4").read_bytes() == first


@pytest.mark.slow
def test_a_video_says_what_made_it(omni: Omni, folder: Path) -> None:
    assert omni("run", *SHORT, "--seed", "random", "-o", str(folder / "a.mp4")).code == 0
    first = (folder / "a.mp4").read_bytes()
    record = json.loads(read_metadata(folder / "a.mp4")["comment"])
    assert record["command"][:2] == ["--seconds", "0.24"]
    assert "schedule(steps=1" in " ".join(record["plan"])
    assert omni("run", "--again", str(folder / "a.mp4")).code == 0
    second = json.loads(read_metadata(folder / "a.mp4")["comment"])
    assert second["seed"] == record["seed"]
    assert len((folder / "a.mp4").read_bytes()) == pytest.approx(len(first), abs=100)
    assert omni("run", f"--again={folder / 'a.mp4'}", "-o", str(folder / "b.mp4"), "--seed", "3").code == 0
    assert json.loads(read_metadata(folder / "b.mp4")["comment"])["seed"] == 3


@pytest.mark.slow
def test_a_video_of_a_list_is_repeated_alone(omni: Omni, folder: Path) -> None:
    (folder / "list.txt").write_text("a red wall\na blue wall\n")
    assert omni("run", *SHORT, "--input-file", str(folder / "list.txt"), "-o", str(folder / "made")).code == 0
    (folder / "made" / "result_000.mp4").unlink()
    assert omni("run", "--again", str(folder / "made" / "result_001.mp4")).code == 0
    assert sorted(path.name for path in (folder / "made").iterdir()) == ["result_001.mp4"]
    assert json.loads(read_metadata(folder / "made" / "result_001.mp4")["comment"])["inputs"]["prompt"] == "a blue wall"


def test_the_size_is_that_of_the_video_whichever_way_round_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Earlier versions took the height first."""
    record = {"command": ["--size", "32x48", "--fps=9"], "seed": 1, "inputs": {}, "size": [32, 48]}
    monkeypatch.setattr("omniavatar.media.writer.read_metadata", lambda _: {"comment": json.dumps(record)})
    assert again.of_video("a.mp4") == ["--fps=9", "--width=48", "--height=32", "--seed=1"]


def test_metadata_may_be_left_out(omni: Omni, folder: Path) -> None:
    assert omni("run", *SHORT, "--write-video.metadata", "false", "-o", str(folder / "a.mp4")).code == 0
    assert "comment" not in read_metadata(folder / "a.mp4")
    outcome = omni("run", "--again", str(folder / "a.mp4"))
    assert outcome.code == 2
    assert "does not say which command made it" in outcome.err


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"folder": "/", "command": "x"}', '{"folder": "/", "command": [1]}']
)
def test_a_damaged_record_is_one_line(content: str) -> None:
    again.last_file().parent.mkdir()
    again.last_file().write_text(content)
    with pytest.raises(InputError, match="record of the last command"):
        again.expanded(["--again"])


def test_without_a_record_it_is_said_what_to_name() -> None:
    with pytest.raises(InputError, match="no command has been run yet; name a video"):
        again.expanded(["--again"])


def test_a_record_that_cannot_be_kept_does_no_harm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(again, "last_file", lambda: tmp_path / "file" / "last-run.json")
    again.remember(["--seed", "1"])


def test_the_preview_grows_beside_the_output_and_goes(omni: Omni, folder: Path) -> None:
    outcome = omni("run", *SHORT, "--preview", "-o", str(folder / "a.mp4"))
    assert outcome.code == 0
    assert [path.name for path in folder.glob("*.mp4")] == ["a.mp4"]
    outcome = omni("run", *SHORT, "--units", "default-write-video", "--preview")
    assert outcome.code == 2
    assert "--preview: the plan has no unit 'write-video'" in outcome.err
