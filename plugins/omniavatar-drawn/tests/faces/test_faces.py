"""The drawn faces: the same for the same seed, distinct for others, true to their captions, and fast."""

from __future__ import annotations

import re
import time
from typing import get_args

import numpy as np
import pytest
from click.testing import CliRunner
from omniavatar_drawn.faces import REST, Identity, Performance, Pose, Renderer, caption, render
from omniavatar_drawn.faces.__main__ import main
from omniavatar_drawn.faces.identity import Clothes, Hair, Hat, Wall
from omniavatar_drawn.faces.palette import MOUTH_DARK, TEETH, distance

SEEDS = range(120)


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How many pixels have about this colour."""
    return int((np.abs(picture.astype(int) - colour).max(axis=2) < 24).sum())


def test_a_seed_gives_one_picture() -> None:
    first, again, other = (render(Identity.from_seed(seed), Pose(), REST, 96) for seed in (3, 3, 4))
    assert first.shape == (96, 96, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_seed_gives_the_same_face_in_every_version() -> None:
    who = Identity.from_seed(7)
    assert (who.person, who.hair, who.clothes, who.wall) == ("man", "curly", "jacket", "plant")
    assert (who.skin.name, who.hair_colour.name, who.clothes_colour.name) == ("dark", "red", "yellow")
    assert np.allclose(render(who, Pose(), REST, 64).mean(axis=(0, 1)), (208.8, 159.7, 135.9), atol=2)


def test_faces_are_distinct_and_stand_out() -> None:
    people = [Identity.from_seed(seed) for seed in SEEDS]
    assert len({(p.hair, p.hair_colour.name, p.clothes, p.clothes_colour.name, p.wall) for p in people}) > 110
    for who in people:
        assert distance(who.hair_colour.rgb, who.skin.rgb) > 45
        assert distance(who.clothes_colour.rgb, who.wall_colour.rgb) > 45
        assert not (who.person == "woman" and who.beard)


def test_every_part_is_drawn_by_some_face() -> None:
    people = [Identity.from_seed(seed) for seed in range(400)]
    for kind, field in ((Hair, "hair"), (Clothes, "clothes"), (Wall, "wall"), (Hat, "hat")):
        assert {getattr(who, field) for who in people} - {None} == set(get_args(kind))
    for choice in {(w.hair, w.hat): w for w in people}.values():
        render(choice, Pose(), (0.5, 0.5), 32)


@pytest.mark.parametrize("size", [48, 128, 200])
def test_any_size_shows_the_same_scene(size: int) -> None:
    who = Identity.from_seed(11)
    large = render(who, Pose(), (0.6, 0.7), 400).astype(float)
    small = render(who, Pose(), (0.6, 0.7), size).astype(float)
    assert np.allclose(small.mean(axis=(0, 1)), large.mean(axis=(0, 1)), atol=2)


def test_the_mouth_opens_and_widens() -> None:
    renderer = Renderer(Identity.from_seed(1), 128)
    still = renderer.draw(Pose(), (0.0, 0.5))
    dark = [near(renderer.draw(Pose(), (opening, 0.5)), MOUTH_DARK) for opening in (0, 0.3, 0.6, 1)]
    assert dark[0] == near(still, MOUTH_DARK)
    assert dark == sorted(dark)
    assert dark[3] > dark[0] + 60
    wide = renderer.draw(Pose(), (1.0, 1.0))
    changed = np.abs(wide.astype(int) - still).max(axis=2) > 30
    columns = np.flatnonzero(changed[80:].any(axis=0))
    assert columns[-1] - columns[0] > 0.2 * 128
    assert near(wide, TEETH) > near(renderer.draw(Pose(), (1.0, 0.0)), TEETH) + 10


def test_values_beyond_the_range_are_cut() -> None:
    renderer = Renderer(Identity.from_seed(2), 64)
    assert np.array_equal(renderer.draw(Pose(), (1.7, -3)), renderer.draw(Pose(), (1, 0)))


def test_only_what_moves_changes() -> None:
    renderer = Renderer(Identity.from_seed(0), 128)
    open_eyes, closed = renderer.draw(Pose()), renderer.draw(Pose(blink=1))
    rows = np.flatnonzero((open_eyes != closed).any(axis=(1, 2)))
    assert rows[0] > 40
    assert rows[-1] < 80
    moved = renderer.draw(Pose(x=0.03, angle=4, yaw=0.5))
    assert np.array_equal(moved[:12, :12], open_eyes[:12, :12])
    assert (moved != open_eyes).any(axis=2).mean() > 0.05


def test_motion_is_smooth_repeatable_and_as_lively_as_asked() -> None:
    still, lively = (Performance.from_seed(5, manner=manner) for manner in ("still", "lively"))
    assert lively.pose(40) == Performance.from_seed(5, manner="lively").pose(40)

    def path(performance: Performance) -> np.ndarray:
        return np.array([(p.x, p.y, p.angle / 100) for p in map(performance.pose, range(200))])

    assert np.abs(np.diff(path(lively), axis=0)).max() < 0.01
    assert path(still).std(axis=0).max() < 0.3 * path(lively).std(axis=0).max()


def test_eyes_blink_but_not_at_once() -> None:
    blinks = np.array([Performance.from_seed(9).pose(n).blink for n in range(500)])
    assert (blinks[:12] == 0).all()
    starts = np.flatnonzero((blinks[1:] > 0) & (blinks[:-1] == 0))
    assert 4 <= len(starts) <= 7
    assert np.diff(starts).min() >= 25


@pytest.mark.parametrize("seed", SEEDS)
def test_the_caption_says_what_is_drawn(seed: int) -> None:
    who = Identity.from_seed(seed)
    text = caption(who)
    words = set(re.findall(r"[\w-]+", text.lower()))
    assert who.person in words
    assert set(who.clothes_colour.name.split()) <= words
    assert set(who.wall_colour.name.split()) <= words
    assert ("glasses" in words) == (who.glasses is not None)
    assert who.beard is None or who.beard in words
    assert who.hat is None or who.hat in words
    assert {"beanie", "cap", "headscarf"} & words == ({who.hat} if who.hat else set())
    if who.hat is None and who.hair != "bald":
        assert set(who.hair_colour.name.split()) <= words
    assert not re.search(r"\ban? an?\b|\ba [aeio]|\ban [^aeiou]|\{|  ", text)
    assert text == caption(who)


def test_captions_vary_and_tell_the_manner() -> None:
    who = Identity.from_seed(2)
    assert len({caption(who, phrasing=number) for number in range(20)}) > 10
    still, lively = (
        {caption(who, Performance.from_seed(3, manner=manner, mood="neutral"), phrasing=n) for n in range(20)}
        for manner in ("still", "lively")
    )
    assert not still & lively
    assert all("still" in text or "without" in text for text in still)
    assert all("lively" in text or "a lot" in text for text in lively)


def test_drawing_is_fast() -> None:
    renderer, performance = Renderer(Identity.from_seed(5), 128), Performance.from_seed(1)
    start = time.process_time()
    for number in range(60):
        renderer.draw(performance.pose(number), (0.5, 0.5))
    assert 60 / (time.process_time() - start) > 60


def test_previews_are_written_with_sound(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    from omniavatar_drawn.faces import clips

    from omniavatar.media.video import probe_video

    monkeypatch.setattr(clips, "utterance", lambda seed, seconds, person: np.zeros(round(seconds * 16000), np.float32))
    result = CliRunner().invoke(main, [str(tmp_path), "--clips", "1", "--size", "64", "--frames", "6"])
    assert result.exit_code == 0, result.output
    info = probe_video(tmp_path / "00000.mp4")
    assert (info.width, info.frames, info.has_audio) == (64, 6, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.mp4", "00000.png"]
