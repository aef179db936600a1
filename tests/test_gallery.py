"""The gallery: its page is made from its figures, its pictures are there, and a picture shows what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.gallery import (
    ENTRIES,
    GAP,
    PAGE,
    PICTURES,
    PLAIN,
    SIDE,
    Entry,
    Video,
    figures,
    main,
    page,
    picture,
    plus,
)

SIZE_LIMIT = 1_500_000
"""Bytes of all pictures."""


def test_the_page_is_that_of_the_figures_and_every_picture_is_there() -> None:
    found = json.loads((PICTURES / "figures.json").read_text())
    assert PAGE.read_text(encoding="utf-8") == page(found)
    files = {path.name for path in PICTURES.iterdir()}
    assert files == {"figures.json", *(f"{entry.name}.webp" for entry in ENTRIES)}
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) < SIZE_LIMIT


def test_the_figures_show_what_the_texts_say() -> None:
    """Caches skip blocks, guidance doubles the calls, an exact unit makes the same video."""
    found = json.loads((PICTURES / "figures.json").read_text())
    for cache in ("teacache", "magcache", "first-block-cache"):
        assert found[cache]["blocks"] < found[cache]["blocks_without"]
    assert found["guidance"]["blocks"] == 2 * found["guidance"]["blocks_without"]
    assert found["guidance-interval"]["blocks"] < found["guidance-interval"]["blocks_without"]
    assert found["nag"]["blocks"] == found["nag"]["blocks_without"]
    merged = found["cfg-merge"]
    assert 2 * merged["blocks"] == merged["blocks_without"]
    assert merged["psnr_db"] is None or merged["psnr_db"] > 60


def video(frames: np.ndarray, borders: tuple[int, ...] = ()) -> Video:
    return Video(frames, 8, 8, borders)


def test_a_picture_has_frames_without_and_with_and_the_difference_around_grey() -> None:
    frames = np.full((12, SIDE, SIDE, 3), 100, np.uint8)
    changed = frames.copy()
    changed[-1] += 10
    entry = Entry("a", "A", "", PLAIN, PLAIN)
    sheet = np.asarray(picture(entry, video(frames), video(changed)))
    last = slice(5 * (SIDE + GAP), None)
    assert (sheet[:SIDE, :SIDE] == 100).all()
    assert (sheet[SIDE + GAP : 2 * SIDE + GAP, last] == 110).all()
    assert (sheet[2 * (SIDE + GAP) :, :SIDE] == 128).all()
    assert (sheet[2 * (SIDE + GAP) :, last] == 128 + 4 * 10).all()


def test_a_picture_of_a_border_begins_in_front_of_it() -> None:
    frames = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, SIDE, SIDE, 3), np.uint8)
    entry = Entry("a", "A", "", PLAIN, PLAIN, first=-2)
    sheet = np.asarray(picture(entry, video(frames, (9,)), video(frames, (9,))))
    assert [int(sheet[0, column * (SIDE + GAP), 0]) for column in range(6)] == [7, 8, 9, 10, 11, 12]


def test_equal_videos_have_no_distance() -> None:
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    assert figures(video(frames), video(frames))["psnr_db"] is None


def test_an_unknown_picture_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["teecache", "--folder", str(tmp_path)])
    assert "no picture teecache; choices: seed, steps" in capsys.readouterr().err


def test_a_page_without_all_pictures_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--texts", "--folder", str(tmp_path), "--page", str(tmp_path / "page.md")])
    assert "the page lacks seed, steps" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


@pytest.mark.slow
def test_a_picture_comes_from_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = PLAIN.with_settings({"schedule": {"steps": 4}})
    entry = Entry("teacache", "T", "", short, plus(short, "teacache", {"teacache": {"threshold": 9}}))
    monkeypatch.setattr("benchmarks.gallery.ENTRIES", (entry,))
    assert main(["--folder", str(tmp_path), "--page", str(tmp_path / "page.md")]) == 0
    found = json.loads((tmp_path / "figures.json").read_text())["teacache"]
    assert (found["blocks_without"], found["blocks_asked_for"]) == (32, 32)
    assert found["blocks"] < 32
    with Image.open(tmp_path / "teacache.webp") as made:
        assert made.size == (6 * SIDE + 5 * GAP, 3 * SIDE + 2 * GAP)
    assert "## T" in (tmp_path / "page.md").read_text()
