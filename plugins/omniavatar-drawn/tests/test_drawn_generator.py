"""Drawn clips, as `data.generated` asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omniavatar_drawn.faces.clips import write_wave
from omniavatar_drawn.generator import UNSEEN, FaceClips

from omniavatar.config import find_config, validated
from omniavatar.config_base import read_config
from omniavatar.errors import InputError
from omniavatar.plugins import discover
from omniavatar.testing.models import WAN
from omniavatar.training.data.generated import generator_named
from omniavatar.training.diffusion import DiffusionConfig
from omniavatar.training.takes import GeneratedSource, Share, TakeSettings

RECIPE = Path(__file__).parents[1] / "omniavatar_drawn" / "recipes" / "tiny-transformer.yaml"


def faces(**settings: Any) -> FaceClips:
    made = generator_named({"faces": settings}, {"faces": FaceClips})
    assert isinstance(made, FaceClips)
    return made


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A folder with a tone of 2 s."""
    times = np.arange(32000) / 16000
    write_wave(tmp_path / "tone.wav", (0.5 * np.sin(2 * np.pi * 500 * times)).astype(np.float32))
    return tmp_path


def test_clips_of_a_sound(sounds: Path) -> None:
    clips = faces(clips=2, first=7, frames=25, side=32, sounds=str(sounds))
    source = GeneratedSource(clips)
    settings = TakeSettings(frames=9, prefixes=(1, 5)).fitted(WAN)
    one, again = (dict(source.each(settings, Share(1), lambda take: take)) for _ in range(2))
    assert set(one) == {"0/0", "1/0"}
    assert all(np.array_equal(one[key].pictures, again[key].pictures) for key in one)
    assert len({taken.prompt for taken in one.values()}) == 2
    clip = clips.clip(0)
    assert (clip.frames, clip.bucket) == (25, (32, 32))
    assert clip.drawn.mouth[2:, 0].max() > 0.3, "the mouth follows the tone"
    taken = source.draw(settings, torch.Generator().manual_seed(1), lambda take: take)
    assert (len(taken.pictures), len(taken.sound)) == (9, 24 * 640)


def test_other_sounds_are_other_clips(sounds: Path) -> None:
    clips = faces(clips=2, sounds=str(sounds))
    before = clips.identity()
    write_wave(sounds / "more.wav", np.zeros(16000, np.float32))
    assert faces(clips=2, sounds=str(sounds)).identity() != before
    assert faces(clips=2).identity() == {"clips": 2, "first": 1000000, "frames": 101, "side": 128, "sounds": None}


def test_what_is_wrong_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"data\.generated\.faces\.sounds: there is no folder 'away'"):
        faces(clips=2, sounds="away").check()
    with pytest.raises(InputError, match=r"data\.generated\.faces: unknown field 'clip'; did you mean 'clips'"):
        faces(clip=2)
    monkeypatch.setenv("HOME", "/home/ada")
    assert faces(clips=2, sounds="~/sounds").settings.sounds == Path("/home/ada/sounds")


def test_the_recipe_of_the_built_in_avatar_names_these_clips() -> None:
    path = find_config(str(RECIPE), "train")
    config = validated(DiffusionConfig, read_config(path, "train"), path)
    clips = generator_named(config.data.generated, discover().clip_generators())
    assert (clips.name, len(clips)) == ("faces", 2500)


def test_portraits_for_a_benchmark_are_of_faces_that_no_network_has_seen() -> None:
    clip, other = (FaceClips.unseen(seed) for seed in (3, 4))
    assert clip.drawn.who.seed == UNSEEN + 3
    assert clip.pictures(0, 1).shape == (1, 256, 256, 3)
    assert not np.array_equal(clip.pictures(0, 1), other.pictures(0, 1))
    assert clip.prompt == clip.drawn.caption
