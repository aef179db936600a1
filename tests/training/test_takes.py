"""Which piece of a clip becomes a sample, what is given of it, and that sound and pictures stay together."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from omniavatar.errors import InputError
from omniavatar.testing.models import WAN
from omniavatar.training.takes import Choice, GeneratedSource, Share, Take, TakeSettings
from omniavatar.training.trainer import generator
from tests.training.scenes import Striped, Stripes, take


def choices(count: int = 400, frames: int = 60, **settings: object) -> list[Choice]:
    wanted = TakeSettings(**{"frames": 17, **settings}).fitted(WAN)
    return [Choice.draw(frames, wanted, generator(n)) for n in range(count)]


def test_prefixes_are_drawn_alike_and_left_out_now_and_then() -> None:
    drawn = Counter(choice.given for choice in choices(2000))
    assert set(drawn) == {0, 1, 5, 9, 13}
    assert 0.07 < drawn[0] / 2000 < 0.13
    assert all(0.19 < drawn[given] / 2000 < 0.26 for given in (1, 5, 9, 13))


def test_one_given_frame_is_the_beginning_of_a_video() -> None:
    for choice in choices():
        if choice.given == 1:
            assert (choice.start, choice.reference) == (0, 0)


def test_pieces_and_references_come_from_all_over_the_clip() -> None:
    others = [choice for choice in choices() if choice.given != 1]
    assert {choice.start for choice in others} >= {0, 43}
    assert max(choice.start for choice in others) == 60 - 17
    references = {choice.reference for choice in others if choice.reference is not None}
    assert min(references) < 5
    assert max(references) > 54


def test_a_short_clip_gives_the_longest_piece_that_it_has() -> None:
    for choice in choices(frames=12):
        assert choice.count == 9
        assert choice.given < 9, "something is left to learn"


def test_given_frames_have_been_through_the_vae_as_often_as_is_drawn() -> None:
    drawn = choices(again=(0, 3))
    assert {choice.again for choice in drawn if choice.given > 1} == {0, 3}
    assert {choice.again for choice in drawn if choice.given <= 1} == {0}
    assert Take.of(Striped(frames=25), Choice(4, 9, 5, 20, again=3)).again == 3


def test_without_reference_nothing_is_given() -> None:
    drawn = choices(no_reference=1.0)
    assert {(choice.given, choice.reference) for choice in drawn} == {(0, None)}


def test_what_decides_the_shape_can_be_settled_for_a_batch() -> None:
    settings = TakeSettings(frames=17, no_reference=0.2).fitted(WAN)
    seen = set()
    for seed in range(60):
        narrow = settings.narrowed(generator(seed))
        given = {Choice.draw(60, narrow, generator(seed, n)).given for n in range(20)}
        assert len(given) == 1
        seen |= given
    assert seen == {0, 1, 5, 9, 13}


@pytest.mark.parametrize(
    ("wrong", "reason"), [({"frames": 16}, "frames: 16 is not 4n"), ({"prefixes": (1, 4)}, "prefixes: 4 is not 4n")]
)
def test_frames_are_those_of_whole_latents(wrong: dict[str, object], reason: str) -> None:
    settings = TakeSettings(**wrong)
    with pytest.raises(InputError, match=reason):
        settings.fitted(WAN)
    settings.fitted(replace(WAN, temporal_factor=1))


def test_some_frames_are_given() -> None:
    with pytest.raises(ValidationError):
        TakeSettings(prefixes=())


def test_a_take_reads_its_frames_and_the_sound_from_frame_1_on() -> None:
    clip = Striped(frames=25)
    chosen = take(start=4, given=5, reference=20, clip=clip)
    assert chosen.pictures[:, 0, 0, 0].tolist() == [3 * n for n in range(4, 13)]
    assert chosen.reference is not None
    assert chosen.reference[0, 0, 0] == 60
    np.testing.assert_array_equal(chosen.sound, clip.sound()[640:])
    inside = take(start=4, reference=6, clip=clip).reference
    assert inside is not None
    assert inside[0, 0, 0] == 18


def test_generated_clips() -> None:
    source = GeneratedSource(Stripes(Stripes.Settings(clips=2)))
    settings = TakeSettings(frames=9, prefixes=(1, 5)).fitted(WAN)
    one, again = (dict(source.each(settings, Share(2), lambda take: take)) for _ in range(2))
    assert set(one) == {"0/0", "0/1", "1/0", "1/1"}
    assert all(np.array_equal(one[key].pictures, again[key].pictures) for key in one)
    assert {key[0]: one[key].clip_frames for key in one} == {"0": 25, "1": 26}
    rest = dict(source.each(settings, Share(2, {"1/0"}, part=1, parts=2), lambda take: take))
    assert set(rest) == {"1/1"}, "its part, but for what is done"
    assert np.array_equal(rest["1/1"].pictures, one["1/1"].pictures)
    drawn = [source.draw(settings, generator(n), lambda take: take) for n in range(20)]
    assert {taken.clip_frames for taken in drawn} == {25, 26}
    assert {len(taken.pictures) for taken in drawn} == {9}
