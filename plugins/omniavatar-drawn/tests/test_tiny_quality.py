"""The harness that judges the tiny avatar: it passes the renderer itself, and each fault misses its own bar."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omniavatar_drawn.avatar_makers import Asked, Drawn, Engines, Made, ThroughVae, without_file
from omniavatar_drawn.faces import Identity, Performance
from omniavatar_drawn.faces.clips import Clip, write_wave
from omniavatar_drawn.tiny_quality import PARTS, Bar, Figure, Sounds, Study, main
from PIL import Image

from omniavatar import builtin
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.errors import InputError
from omniavatar.testing import FakeVAE
from omniavatar.testing.tiny import TinyModels

SECONDS = 2.4


def speech(seconds: float, pace: float = 3.1) -> np.ndarray:
    """Syllables of a buzz (n,) float32 at 16 kHz, with pauses of 0.8 s."""
    time = np.arange(round(seconds * 16000)) / 16000
    voice = np.sin(2 * np.pi * 160 * time) + np.sin(2 * np.pi * 640 * time) + 0.5 * np.sin(2 * np.pi * 2400 * time)
    syllables = np.maximum(0, np.sin(2 * np.pi * pace * time)) * (time % 2.2 < 1.4)
    wave: np.ndarray = (0.2 * voice * syllables * (0.7 + 0.3 * np.sin(2 * time))).astype(np.float32)
    return wave


class Spoilt:
    """The renderer, with a fault in the frames or in what is drawn."""

    side, silence = 64, 0.3
    description: dict[str, Any] = {"maker": "spoilt"}  # noqa: RUF012 - the protocol's property

    def __init__(
        self, draw: Callable[[Clip], Clip] | None = None, frames: Callable[[Made], np.ndarray] | None = None
    ) -> None:
        self.draw, self.frames = draw, frames

    def make(self, asked: Asked) -> Made:
        drawn = asked if self.draw is None else replace(asked, clip=self.draw(asked.clip))
        made = Drawn(self.side, self.silence).make(drawn)
        return made if self.frames is None else replace(made, frames=self.frames(made))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Sounds:
    folder = tmp_path_factory.mktemp("sounds")
    write_wave(folder / "one.wav", speech(6))
    return Sounds((folder / "one.wav",))


def missed(figures: list[Figure]) -> set[str]:
    return {figure.name.partition(":")[0] for figure in figures if figure.met is False}


def with_mouth(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Clip], Clip]:
    return lambda clip: replace(clip, mouth=np.stack([change(clip.mouth[:, 0]), clip.mouth[:, 1]], axis=1))


FOLLOWS, LAG, CLOSED = "mouth opening, correlation", "mouth, best lag", "mouth open in silence, of speech"
COLOURS, FACE = "colours off, worst", "face like the picture, SSIM"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("maker", "bars"),
    [
        (Spoilt(), set()),
        (Spoilt(frames=lambda made: np.concatenate([made.frames[:1]] * 3 + [made.frames[:-3]])), {LAG}),
        (Spoilt(draw=with_mouth(lambda opening: np.maximum(opening, 0.2))), {CLOSED}),
        (Spoilt(frames=lambda made: (made.frames * 0.85).astype(np.uint8)), {COLOURS}),
    ],
    ids=["perfect", "late", "open in silence", "dark"],
)
def test_a_talking_head_is_judged(maker: Spoilt, bars: set[str], sounds: Sounds) -> None:
    assert missed(list(Study(maker, sounds).talk(1, SECONDS))) == bars


def test_a_frozen_mouth_does_not_follow(sounds: Sounds) -> None:
    found = missed(list(Study(Spoilt(draw=with_mouth(np.zeros_like)), sounds).talk(1, SECONDS)))
    assert FOLLOWS in found
    assert not found & {COLOURS, FACE}


def test_another_face_is_none_like_the_picture(sounds: Sounds) -> None:
    stranger = Spoilt(draw=lambda clip: replace(clip, who=Identity.from_seed(clip.who.seed + 1)))
    assert {COLOURS, FACE} <= missed(list(Study(stranger, sounds).talk(1, SECONDS)))


def fading(made: Made) -> np.ndarray:
    share = np.linspace(0, 0.12, len(made.frames))[:, None, None, None]
    return (made.frames * (1 - share) + 255 * share).astype(np.uint8)


def jumping(made: Made) -> np.ndarray:
    frames = made.frames.astype(int) // 2 + 60
    for index, border in enumerate(made.borders):
        frames[border:] += 3 if index % 2 == 0 else -3
    return frames.astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("maker", "bars"),
    [
        (Spoilt(), set()),
        (Spoilt(frames=fading), {"change from first second to last"}),
        (Spoilt(frames=jumping), {"largest jump at a border"}),
    ],
    ids=["perfect", "fading", "jumping"],
)
def test_a_long_video_is_judged(maker: Spoilt, bars: set[str], sounds: Sounds) -> None:
    assert missed(list(Study(maker, sounds).long(1, 4.0))) == bars


@pytest.mark.slow
def test_an_audio_scale_that_does_nothing_is_found(sounds: Sounds) -> None:
    class Deaf(Spoilt):
        def make(self, asked: Asked) -> Made:
            return super().make(replace(asked, audio_scale=None))

    assert missed(list(Study(Spoilt(), sounds).scale(1, 1.0))) == set()
    assert missed(list(Study(Deaf(), sounds).scale(1, 1.0))) == {"smallest growth with audio scale"}


@pytest.mark.slow
def test_a_prompt_that_does_nothing_is_right_by_chance(sounds: Sounds) -> None:
    @cache
    def somebody() -> Identity:
        return Study(Spoilt(), sounds).plain(0, 0.2).clip.who

    blind = Spoilt(draw=lambda clip: replace(clip, who=somebody()))
    figures = list(Study(blind, sounds).prompt(13, 0.2))
    assert [figure.value for figure in figures] == pytest.approx([1 / 13, 1 / 13])
    assert len(missed(figures)) == 2
    assert missed(list(Study(Spoilt(), sounds).prompt(13, 0.2))) == set()


def test_the_scenes_that_are_named_deal_out_all_colours(sounds: Sounds) -> None:
    whos = [Study(Spoilt(), sounds).plain(index, 0.2).clip.who for index in range(26)]
    assert {who.clothes_colour.name for who in whos[:13]} == {who.clothes_colour.name for who in whos[13:]}
    assert len({(who.clothes_colour.name, who.wall_colour.name) for who in whos}) == 26


@pytest.mark.slow
def test_heads_that_move_as_they_like_are_found(sounds: Sounds) -> None:
    calm = Spoilt(draw=lambda clip: replace(clip, performance=Performance.from_seed(7, manner="calm")))
    assert missed(list(Study(calm, sounds).motion(1, 1.0))) == {"head motion, a lot to still"}
    assert missed(list(Study(Spoilt(), sounds).motion(1, 1.0))) == set()


def tiny_engines() -> Engines:
    """Random networks, 32x32 pixels, windows of 25 frames, one step."""
    catalog = Catalog({unit.name: unit for unit in builtin.omni_units()}, builtin.omni_presets())
    settings: dict[str, dict[str, Any]] = {
        "reference-image": {"sizes": [[32, 32]]},
        "fixed-frames": {"window_frames": 25, "overlap": 5},
        "schedule": {"steps": 1},
        "prompt": {"tokenizer": "tokenizer", "length": 16},
    }

    def engine(changes: dict[str, dict[str, Any]]) -> Engine:
        return Engine(build_plan(without_file("default", catalog), catalog, settings, changes), TinyModels())

    return Engines(engine)


def test_engines_make_what_is_asked(sounds: Sounds) -> None:
    engines = tiny_engines()
    assert (engines.side, engines.silence) == (32, 0.3)
    asked = Study(engines, sounds).asked(3, 1.2)
    made, louder = engines.make(asked), engines.make(replace(asked, audio_scale=9.0))
    assert made.frames.shape == (31, 32, 32, 3)
    assert made.borders == (25,)
    assert not np.array_equal(made.frames, louder.frames)
    pictured = made.frames[1].astype(int)
    assert abs(engines.make(replace(asked, picture=None)).frames[1] - pictured).mean() > 1


@pytest.mark.slow
def test_random_networks_are_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_wave(tmp_path / "voice.wav", speech(3))
    (tmp_path / "sounds").mkdir()
    write_wave(tmp_path / "sounds" / "one.wav", speech(6))
    options = [f"--{name}=1" for name in ("identities", "seconds", "long", "few", "prompts", "prompt-seconds")]
    options += ["--long-seconds=3", "--device=cpu"]
    paths = {"voice": "voice.wav", "sounds": "sounds", "output": "figures.json", "strip": "strip.png"}
    for name, path in paths.items():
        options.append(f"--{name}={tmp_path / path}")
    assert main(options, tiny_engines()) == 1
    assert "mouth opening, correlation" in capsys.readouterr().out
    result = json.loads((tmp_path / "figures.json").read_text())
    assert result["met"] is False
    assert set(result["seconds"]) == {figure["part"] for figure in result["figures"]} == set(PARTS)
    assert {"device", "torch", "omniavatar"} <= set(result["machine"])
    assert "vae-decode" in result["models"]["units"]
    assert not any(unit.startswith("write-video") for unit in result["models"]["units"])
    assert all(figure["met"] is None for figure in result["figures"] if figure["bar"] is None)
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.size == (11 * 32, 4 * 32)


def test_the_vae_oracle_goes_through_every_chunk(sounds: Sounds) -> None:
    study = Study(ThroughVae(Drawn(32), FakeVAE(), torch.device("cpu")), sounds)
    made = study.made(study.asked(2, 3.0))
    assert made.frames.shape == (76, 32, 32, 3)
    assert made.borders == (49,)


def test_bad_input_is_an_error_and_no_missed_bar(
    tmp_path: Path, sounds: Sounds, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--sounds", str(tmp_path), "--oracle", "drawn"]) == 2
    assert "is no folder with recordings" in capsys.readouterr().err
    write_wave(tmp_path / "silence.wav", np.zeros(16000))
    with pytest.raises(InputError, match=r"the sound for identity 0 has no voice in its first 2 s"):
        Study(Spoilt(), Sounds((tmp_path / "silence.wav",))).asked(0, 2.0)


def test_what_is_no_number_meets_no_bar() -> None:
    figure = Figure("talk", "x", float("nan"), Bar("<", 0.1), each=(0.05, 0.2))
    assert figure.met is False
    assert figure.as_json() | {"value": None} == figure.as_json()
    assert (figure.worst, figure.share_met) == (0.2, 0.5)
