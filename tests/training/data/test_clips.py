"""Clips read one by one or at random, with bad ones among them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omniavatar.errors import CheckpointError, InputError, OutputError, PlanError
from omniavatar.testing.models import WAN
from omniavatar.training.data.clip import Clip, Limits, Unusable, random_piece
from omniavatar.training.data.clips import Clips
from omniavatar.training.data.faults import SKIPPED, Fault, Faults
from omniavatar.training.data.lists import Entry
from omniavatar.training.takes import FilmedSource, Share, Take, TakeSettings
from tests.media.samples import convert, numbered_frames, numbers_in, single_line, write_lossless

LIMITS = Limits(sizes=((32, 64),), no_sound="silence")


def entries(count: int) -> list[Entry]:
    return [Entry(Path(f"{number}.mp4"), None, "", f"clips.csv:{number + 2}") for number in range(count)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """Six clips: good, missing, text, good, good in front and damaged behind, too short."""
    folder = tmp_path_factory.mktemp("mixed")
    good = write_lossless(folder / "good.mkv", numbered_frames(60, 32, 64))
    (folder / "text.mp4").write_text("hello")
    whole = convert(good, folder / "whole.mp4", "-g", "10", "-movflags", "+faststart")
    content = bytearray(whole.read_bytes())
    content[len(content) * 2 // 3 :] = bytes(len(content) - len(content) * 2 // 3)
    (folder / "damaged.mp4").write_bytes(content)
    write_lossless(folder / "short.mkv", numbered_frames(9, 32, 64))
    names = ("good.mkv", "none.mp4", "text.mp4", "good.mkv", "damaged.mp4", "short.mkv")
    return [Entry(folder / name, None, "", f"clips.csv:{line}") for line, name in enumerate(names, start=2)]


def all_pictures(clip: Clip) -> int:
    return len(clip.pictures(0, 57))


def test_every_usable_clip_once(mixed: list[Entry], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "run" / SKIPPED
    clips = Clips(mixed, LIMITS, Faults(mixed, path=path, most=0.9))
    assert len(clips) == 6
    assert list(clips.each(all_pictures)) == [(mixed[0], 57), (mixed[3], 57)]
    assert len(clips) == 2
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kinds = {
        "clips.csv:3": "missing file",
        "clips.csv:4": "unreadable",
        "clips.csv:6": "unreadable",
        "clips.csv:7": "too short",
    }
    assert {line["place"]: line["kind"] for line in lines} == kinds
    assert all(Path(line["video"]).name in line["reason"] for line in lines)
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 4
    assert all("\n" not in message for message in logged)
    assert logged[0].startswith("clips.csv:3: passed over: '")
    assert clips.faults.summary() == "4 of 6 clips cannot be used: 2 unreadable, 1 missing file, 1 too short"


def test_the_second_time_bad_clips_are_not_asked_for(mixed: list[Entry], tmp_path: Path) -> None:
    clips = Clips(mixed, LIMITS, Faults(mixed, path=tmp_path / SKIPPED, most=0.9))
    for _ in clips.each(all_pictures):
        pass
    assert [asked for _, asked in clips.each(lambda clip: clip.entry)] == [mixed[0], mixed[3]]
    resumed = Clips(mixed, LIMITS, Faults(mixed, path=tmp_path / SKIPPED, most=0.9, resume=True))
    assert len(resumed) == 2
    assert len(Clips(mixed, LIMITS, Faults(mixed, path=tmp_path / SKIPPED))) == 6, "a new run begins anew"
    assert (tmp_path / SKIPPED).read_text() == ""


@pytest.mark.slow
def test_draws_are_repeated_whether_faults_are_known_or_found(mixed: list[Entry]) -> None:
    usable = [entry for number, entry in enumerate(mixed) if number != 4]

    def read(clip: Clip, draw: torch.Generator) -> tuple[str, list[int]]:
        piece = random_piece(clip.frames, 5, 4, draw)
        return clip.entry.place, numbers_in(clip.pictures(piece.start, piece.count))

    clips = Clips(usable, LIMITS, Faults(usable, most=0.9))
    first, second = ([clips.draw(draw, read) for _ in range(10)] for draw in map(seeded, (0, 0)))
    assert len(clips) == 2
    assert first == second
    assert {place for place, _ in first} == {"clips.csv:2", "clips.csv:5"}
    assert len({tuple(numbers) for _, numbers in first}) > 3
    assert all(numbers == list(range(numbers[0], numbers[0] + 5)) for _, numbers in first)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_damage_found_late_is_a_fault(mixed: list[Entry]) -> None:
    damaged = mixed[4]
    clips = Clips(mixed[3:5], LIMITS, Faults(mixed[3:5], most=0.9))
    assert [entry for entry, _ in clips.each(lambda clip: clip.pictures(0, 5))] == mixed[3:5], "its front is read"
    assert clips.draw(seeded(0), lambda clip, _: clip.pictures(52, 5)).shape == (5, 32, 64, 3)
    for seed in range(8):
        clips.draw(seeded(seed), lambda clip, _: clip.pictures(52, 5))
    assert damaged in clips.faults


def test_any_error_is_a_fault_and_ctrl_c_is_not() -> None:
    def fail(error: BaseException) -> None:
        raise error

    clips = entries(4)
    faults = Faults(clips, most=1)
    assert faults.attempt(clips[0], lambda: "read") == "read"
    for entry, error in zip(
        clips, (ZeroDivisionError("a\nb"), MemoryError(), OSError(5, "Input/output")), strict=False
    ):
        assert faults.attempt(entry, lambda error=error: fail(error)) is None  # type: ignore[misc]
    reasons = [fault.reason for fault in faults.found.values()]
    assert reasons == ["ZeroDivisionError: a b", "MemoryError: ", "OSError: [Errno 5] Input/output"]
    with pytest.raises(KeyboardInterrupt):
        faults.attempt(clips[3], lambda: fail(KeyboardInterrupt()))
    assert clips[3] not in faults


def test_stop_ends_with_the_first(tmp_path: Path) -> None:
    clips = entries(5)
    faults = Faults(clips, policy="stop", path=tmp_path / SKIPPED)
    with pytest.raises(
        InputError, match=r"^clips\.csv:4: too dark; repair or remove it, or pass over bad clips"
    ) as caught:
        faults.add(clips[2], Unusable("dark", "too dark"))
    single_line(caught.value)
    assert json.loads((tmp_path / SKIPPED).read_text())["kind"] == "dark"


@pytest.mark.parametrize(("most", "bad"), [(0.5, 6), (0.1, 2), (1.0, 10), (0.0, 1)])
def test_too_many_end_the_run_with_the_three_most_frequent_reasons(tmp_path: Path, most: float, bad: int) -> None:
    clips = entries(10)
    faults = Faults(clips, most=most, path=tmp_path / SKIPPED)
    kinds = ["dark", "silent", "silent", "silent", "dark", "short", "short", "odd", "short", "short"]
    for entry, kind in list(zip(clips, kinds, strict=True))[: bad - 1]:
        faults.add(entry, Unusable(kind, kind))
        faults.add(entry, Unusable(kind, "twice"))
    with pytest.raises(
        InputError, match=f"^{bad} of 10 clips cannot be used: .*; all are named in '.*skipped.jsonl'"
    ) as caught:
        faults.add(clips[bad - 1], Unusable(kinds[bad - 1], "x"))
    if bad == 10:
        assert "4 short, 3 silent, 2 dark;" in single_line(caught.value)


def test_a_resumed_run_ends_at_once_if_all_are_bad(tmp_path: Path) -> None:
    clips = entries(2)
    faults = Faults(clips, most=1, path=tmp_path / SKIPPED)
    faults.add(clips[0], Unusable("dark", "dark"))
    with (tmp_path / SKIPPED).open("a") as file:
        file.write('[1]\n{"place": "torn')
    assert len(Faults(clips, path=tmp_path / SKIPPED, resume=True).found) == 1
    with pytest.raises(InputError, match="1 of 1 clips"):
        Faults(clips[:1], path=tmp_path / SKIPPED, resume=True)
    assert not Faults(clips[1:], path=tmp_path / SKIPPED, resume=True).found, "of clips that are still named"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        Faults(entries(1), path=tmp_path / "file" / SKIPPED)


def test_a_clip_that_was_repaired_is_tried_again(tmp_path: Path) -> None:
    clips = [replace(entry, video=tmp_path / entry.video) for entry in entries(3)]
    for entry in clips:
        entry.video.write_text("broken")
    faults = Faults(clips, most=1, path=tmp_path / SKIPPED)
    for entry in clips[:2]:
        faults.add(entry, Unusable("dark", "dark"))
    clips[0].video.write_text("repaired")
    again = Faults(clips, path=tmp_path / SKIPPED, resume=True)
    assert set(again.found) == {clips[1]}
    worded = [replace(entry, prompt="Repaired.") for entry in clips]
    assert not Faults(worded, path=tmp_path / SKIPPED, resume=True).found


def test_faults_can_be_judged_elsewhere(tmp_path: Path) -> None:
    clips = entries(4)
    told: list[Fault] = []
    here = Faults(clips, most=0, path=tmp_path / SKIPPED, report=told.append)
    for entry in clips:
        here.add(entry, Unusable("dark", "dark"))
    assert [fault.place for fault in told] == [entry.place for entry in clips]
    assert (tmp_path / SKIPPED).read_text() == ""
    elsewhere = Faults(clips, most=0.5, path=tmp_path / SKIPPED)
    for fault in told[:2]:
        elsewhere.record(fault)
    with pytest.raises(InputError, match=r"^3 of 4 clips cannot be used: 3 dark"):
        elsewhere.record(told[2])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), PlanError("wrong"), CheckpointError("torn")]
)
def test_what_is_wrong_with_the_run_is_no_fault_of_a_clip(error: Exception) -> None:
    def fail() -> None:
        raise error

    faults = Faults(entries(4), most=1)
    with pytest.raises(type(error)):
        faults.attempt(faults.entries[0], fail)
    assert not faults.found


def test_errors_behind_the_reading_are_faults_of_the_clip(mixed: list[Entry]) -> None:
    """Of the second of two good clips, in order and at random."""

    def make(take: Take) -> str:
        if take.prompt == "odd":
            raise ValueError("odd")
        return take.prompt

    settings, wanted = TakeSettings(frames=5, prefixes=(1,)).fitted(WAN), Limits(sizes=((32, 64),), no_sound="silence")
    pair = [replace(mixed[0], prompt="fine"), replace(mixed[3], prompt="odd")]
    clips = Clips(pair, wanted, Faults(pair))
    assert list(FilmedSource(clips).each(settings, Share(2), make)) == [("0/0", "fine"), ("0/1", "fine")]
    assert [fault.reason for fault in clips.faults.found.values()] == ["ValueError: odd"]
    clips = Clips(pair, wanted, Faults(pair))
    assert {FilmedSource(clips).draw(settings, seeded(seed), make) for seed in range(8)} == {"fine"}
    assert set(clips.faults.found) == {pair[1]}


@pytest.mark.slow
def test_parts_take_the_same_of_a_clip_as_one_does_alone(mixed: list[Entry]) -> None:
    settings = TakeSettings(frames=5, prefixes=(5,), no_prefix=0).fitted(WAN)
    source = FilmedSource(Clips(mixed, LIMITS, Faults(mixed, most=1)))

    def starts(share: Share) -> dict[str, int]:
        return dict(source.each(settings, share, lambda take: take.start))

    whole = starts(Share(6))
    assert len(set(whole.values())) > 3
    assert {**starts(Share(6, part=0, parts=2)), **starts(Share(6, part=1, parts=2))} == whole
    left = starts(Share(6, frozenset(list(whole)[:7])))
    assert left == {key: whole[key] for key in list(whole)[7:]}
