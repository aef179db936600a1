"""OmniAvatar's audio layers: what enters which block, of which frame, and what is heard where there is no sound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from omniavatar.engine.scopes import Forward, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.models import audio_adapter
from omniavatar.testing import FakeAudioAdapter, GivenModels
from omniavatar.units import AudioAdapter
from omniavatar.units.audio_adapter import framed
from tests.models.networks import randomized
from tests.scenes import Scene, denoising_units, fake_engine, fake_models, request, video_of

FRAMES = 13  # two windows
VALUES = [0.1 * frame for frame in range(FRAMES)]


class Rows(PipelineUnit):
    """Stands for the sound: frame n has the row VALUES[n], or no frame has one."""

    name = "rows"
    provides = ("audio_rows", "silent_rows")

    def __init__(self, *, silent: bool = False, silence: float | None = None) -> None:
        super().__init__()
        self.silent, self.silence = silent, silence

    @hookimpl
    def begin_window(self, window: Window) -> None:
        rows = torch.tensor(VALUES[window.span.start : window.span.stop])[None, :, None]
        window["audio_rows"] = None if self.silent else rows
        window["silent_rows"] = None if self.silence is None else torch.full((1, 1, 1), self.silence)


class Look:
    """Keeps what is added to the tokens before every block, by branch and block."""

    def __init__(self) -> None:
        self.added: dict[tuple[str, int], list[Tensor]] = {}

    @hookimpl(wrapper=True)
    def before_block(self, forward: Forward, index: int) -> Iterator[None]:
        before = forward.x
        yield
        self.added.setdefault((forward.branches[0].name, index), []).append(forward.x - before)


def run(*units: PipelineUnit, models: GivenModels | None = None, scale: float = 1) -> tuple[Scene, Look]:
    scene, look = Scene(frames=FRAMES, texts=(0.0, 0.0)), Look()
    engine = fake_engine([scene, *units, *denoising_units(scale=scale)], models=models, observers=[look])
    engine.generate(request())
    return scene, look


def layers() -> Any:
    """Audio layers that make something of silence too."""
    adapter = audio_adapter.AudioAdapter(audio_in_dim=1, audio_hidden_size=6, dim=4, num_layers=6)
    return randomized(adapter)


def test_the_rows_of_a_window_are_what_its_frames_hear() -> None:
    """FakeAudioAdapter shows the row of the last frame of each latent frame: frames 0, 4, 8 of the window."""
    scene, _ = run(Rows(), AudioAdapter())
    first, second = (window["audio_residuals"][0, 0, :, 0].tolist() for window in scene.windows)
    assert first == pytest.approx([VALUES[0], VALUES[4], VALUES[8], 0.0])
    assert second == pytest.approx([VALUES[4], VALUES[8], VALUES[12], 0.0])


def test_the_sound_enters_its_frames_before_its_blocks() -> None:
    _, look = run(Rows(), AudioAdapter())
    per_frame = torch.tensor([VALUES[0], VALUES[4], VALUES[8]]).repeat_interleave(4)  # 2x2 tokens a frame
    expected = per_frame[None, :, None].expand(1, 12, 4)
    for index in range(4):
        added = look.added["positive", index][0]
        torch.testing.assert_close(added, expected if index in (1, 2) else torch.zeros_like(added), atol=1e-6, rtol=0)


@pytest.mark.parametrize("silence", [None, 0.7])
def test_a_branch_without_sound_hears_rows_of_zeros_or_silence(silence: float | None) -> None:
    adapter = layers()
    sound = Rows(silence=silence)
    scene, look = run(sound, AudioAdapter(), models=fake_models(audio_adapter=adapter), scale=3)
    silent = adapter(torch.full((1, 9, 1), silence or 0.0))
    assert list(adapter.entry_blocks) == [2, 3]
    for position, index in enumerate(adapter.entry_blocks):
        expected = silent[:, position].repeat_interleave(4, dim=1)
        assert expected.abs().max() > 0.1, "the layers make something of silence"
        torch.testing.assert_close(look.added["negative", index][0], expected, atol=1e-5, rtol=0)
        assert not torch.allclose(look.added["positive", index][0], expected, atol=1e-2)
    torch.testing.assert_close(scene.windows[0]["audio_silence"], framed(silent), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sound", [[], [Rows(silent=True)]], ids=["no unit has a sound", "the video has none"])
def test_without_a_sound_every_branch_hears_silence(sound: list[PipelineUnit]) -> None:
    adapter = layers()
    scene, look = run(*sound, AudioAdapter(), models=fake_models(audio_adapter=adapter), scale=3)
    silent = adapter(torch.zeros(1, 9, 1))
    for window in scene.windows:
        assert window["audio_residuals"] is window["audio_silence"]
        assert window["audio_residuals"].shape == (1, 2, 3 + 1, 4)
    for branch in ("positive", "negative"):
        for position, index in enumerate(adapter.entry_blocks):
            expected = silent[:, position].repeat_interleave(4, dim=1)
            torch.testing.assert_close(look.added[branch, index][0], expected, atol=1e-5, rtol=0)


def test_the_sound_is_projected_once_per_window_whatever_the_number_of_calls() -> None:
    models = fake_models()
    scene, _ = run(Rows(), AudioAdapter(), models=models, scale=3)
    adapter, dit = (models.networks[role] for role in ("audio_adapter", "dit"))
    assert dit.calls == 2 * 2 * len(scene.windows)
    assert adapter.calls == 2 * len(scene.windows)


class ExtraToken(PipelineUnit):
    """Puts a token that belongs to no frame in front, and takes it off again."""

    name = "extra-token"

    @hookimpl
    def embed(self, forward: Forward) -> None:
        forward.x = torch.cat([torch.full_like(forward.x[:, :1], 9.0), forward.x], dim=1)
        forward.frame_index = torch.cat([torch.tensor([-1]), forward.frame_index])

    @hookimpl
    def unembed(self, forward: Forward) -> None:
        forward.x = forward.x[:, 1:]


def test_a_token_of_no_frame_hears_nothing() -> None:
    plain, _ = run(Rows(), AudioAdapter())
    extended, look = run(Rows(), AudioAdapter(), ExtraToken())
    for index in (1, 2):
        added = look.added["positive", index][0]
        assert (added[:, 0] == 0).all()
        assert (added[:, -1] != 0).all()
    assert video_of(extended).equal(video_of(plain))


def test_framed_appends_a_frame_of_nothing() -> None:
    residuals = torch.ones(1, 2, 3, 4)
    assert framed(residuals)[:, :, :3].equal(residuals)
    assert (framed(residuals)[:, :, -1] == 0).all()
    assert FakeAudioAdapter()(torch.ones(1, 9, 1)).shape == (1, 2, 3, 1)
