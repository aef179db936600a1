"""The unit `ti2v`: the picture is frame 0, its tokens are told time step 0, and it goes with everything else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omniavatar_ti2v.testing import DIT, VAE38
from omniavatar_ti2v.wan_vae38 import WanVAE38
from PIL import Image
from torch import Tensor

from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Plan, build_plan
from omniavatar.engine.run import Result
from omniavatar.engine.scopes import Branch, Forward, Request, Step
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import InputError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.models.wan_dit import PerToken, WanDiT
from omniavatar.plugins import discover
from omniavatar.resources import asset
from omniavatar.testing import tiny
from omniavatar.testing.recorder import WindowRecorder
from tests.models.networks import randomized

SETTINGS: dict[str, dict[str, Any]] = {
    "ti2v": {"sizes": [[32, 64], [64, 32]]},
    "fixed-frames": {"window_frames": 9, "overlap": 5},
    "schedule": {"steps": 2},
    "guidance": {"scale": 3.0},
    "prompt": {"length": 32},
}
PLAN = "wan-ti2v-write-video"
PORTRAIT = asset("demo", "portrait.png")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def models() -> tiny.TinyModels:
    """The tiny networks, with a transformer and a VAE of 48 channels."""
    dit = WanDiT(**{**DIT, "num_layers": 3})
    adapter = tiny.AudioAdapter(**tiny.ADAPTER)
    return tiny.TinyModels(dit=randomized(dit), vae=randomized(WanVAE38(**VAE38)), audio_adapter=randomized(adapter))


class Look(WindowRecorder):
    """Keeps the calls, the time of their tokens, and the windows."""

    result: Result

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []
        self.times: list[Tensor] = []
        self.frames: list[Tensor] = []
        self.blocks = 0

    @hookimpl(trylast=True)
    def embed(self, forward: Forward) -> None:
        self.inputs.append(forward.latents.clone())
        self.times.append(forward.time.values if isinstance(forward.time, PerToken) else forward.time)
        self.frames.append(forward.frame_index)

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        self.blocks += 1


class Merged(PipelineUnit):
    """All branches in one transformer call."""

    name = "merged"

    @hookimpl
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor]:
        return step.forward(branches).chunk(len(branches))


def made(
    expression: str = PLAN,
    *more: PipelineUnit,
    image: Path | None = PORTRAIT,
    frames: int = 9,
    inputs: dict[str, Any] | None = None,
    **settings: Any,
) -> Look:
    """Make a small video; `settings` replace those of a unit."""
    plan = build_plan(expression, discover().catalog(), SETTINGS, settings)
    look = Look()
    engine = Engine(Plan((*plan.units, *more)), models(), observers=[look])
    given = {} if image is None else {"image": image}
    look.result = engine.generate(Request(inputs={**given, **(inputs or {})}, seconds=frames / 25, fps=25))
    return look


@pytest.fixture(scope="module")
def talk() -> Look:
    """A video of 13 frames, in two windows that share 5."""
    return made(frames=13)


def test_the_picture_is_in_every_call_and_at_the_end(talk: Look) -> None:
    window = talk.windows[0]
    picture = window["image_latent"]
    assert picture.shape in ((1, 48, 1, 2, 4), (1, 48, 1, 4, 2))
    for latents in [*talk.inputs[:4], window.latents]:
        assert latents[:, :, :1].equal(picture)
    assert not talk.inputs[0][:, :, 1:].equal(talk.inputs[2][:, :, 1:])


def test_tokens_of_given_frames_are_told_time_step_0_and_the_others_that_of_the_step(talk: Look) -> None:
    dit: Any = models().networks["dit"]
    for call, given in enumerate([1] * 4 + [2] * 4):
        time, frames = talk.times[call][0], talk.frames[call]
        assert talk.windows[call // 4]["given_latents"].shape[2] == given
        step = talk.times[call][0, frames >= given]
        nothing, noisy = dit.embed_time(torch.tensor([0.0, 1000.0, 1000 * 5 / 6]).double())[0][[0, 1 + call % 4 // 2]]
        torch.testing.assert_close(time[frames < given], nothing.expand(len(time) - len(step), -1))
        torch.testing.assert_close(step, noisy.expand(len(step), -1))


def test_without_a_picture_there_is_one_time_for_all_tokens() -> None:
    look = made(image=None)
    assert look.windows[0]["given_latents"] is None
    assert all(time.shape == (1, tiny.DIT["dim"]) for time in look.times)
    plain = made("prompt+fixed-frames+guidance+schedule+euler+transformer+vae-decode", Size(), image=None)
    assert look.windows[0].latents.equal(plain.windows[0].latents)


class Size(PipelineUnit):
    """The size of a video without a picture."""

    name = "size"

    @hookimpl
    def plan_size(self) -> tuple[int, int]:
        return 32, 64


def test_the_picture_and_what_its_tokens_are_told_change_the_other_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    told, empty = made(), made(image=None)
    others = told.windows[0].latents[:, :, 1:]
    assert not torch.allclose(others, empty.windows[0].latents[:, :, 1:], atol=1e-2)
    monkeypatch.setattr("omniavatar_ti2v.unit.tell_noise", lambda *_: None)
    assert not torch.allclose(others, made().windows[0].latents[:, :, 1:], atol=1e-2)


def test_branches_in_one_call_are_as_good_as_one_call_each() -> None:
    merged, separate = made(PLAN, Merged()), made()
    assert len(separate.inputs) == 2 * len(merged.inputs)
    torch.testing.assert_close(merged.windows[0].latents, separate.windows[0].latents, atol=1e-4, rtol=1e-4)


def test_a_cache_skips_steps() -> None:
    cached, full = (made(f"{PLAN}{cache}", schedule={"steps": 6}) for cache in ("+teacache(threshold=10)", ""))
    assert cached.blocks == full.blocks / 3, "the first and the last of six steps"
    picture = cached.windows[0]["image_latent"]
    assert cached.windows[0].latents[:, :, :1].equal(picture)


def test_it_talks() -> None:
    look = made(f"{PLAN}+audio+audio-adapter-soundtrack", inputs={"audio": asset("demo", "speech.flac")}, frames=13)
    silent = made(f"{PLAN}+audio+audio-adapter-soundtrack", frames=13)
    assert len(look.windows) == 2
    assert not torch.allclose(look.windows[0].latents, silent.windows[0].latents, atol=1e-3)


@pytest.mark.parametrize(("shape", "size"), [((40, 90), (32, 64)), ((90, 40), (64, 32))])
def test_the_size_is_that_of_the_table_whose_shape_is_nearest(
    shape: tuple[int, int], size: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(np.zeros((*shape, 3), dtype=np.uint8)).save(path)
    look = made(image=path, frames=5, schedule={"steps": 1})
    assert look.result.size == size


@pytest.mark.usefixtures("only_headers")
def test_a_size_that_does_not_divide_is_named() -> None:
    engine = Engine(build_plan(PLAN, discover().catalog(), SETTINGS), models())
    with pytest.raises(InputError, match="the size 48x32 is not made of positive multiples of 32"):
        engine.generate(Request(height=32, width=48, seconds=0.36))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (f"{PLAN}-fixed-frames", "unit 'ti2v' needs 'previous.given_latents', which no unit of the plan provides"),
        ("default+ti2v", "units 'ti2v' and 'reference-image' cannot work together: TI2V takes no channels beside"),
        ("wan-ti2v+ti2v(sizes=[[48, 64]])", "unit 'ti2v': sizes = [[48, 64]]: [48, 64] is not made of positive"),
    ],
)
def test_plans_that_do_not_fit_are_refused(expression: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        build_plan(expression, discover().catalog())
    assert str(caught.value).startswith(message)


@pytest.mark.usefixtures("only_headers")
def test_the_other_vae_is_refused() -> None:
    engine = Engine(build_plan(PLAN, discover().catalog(), SETTINGS), tiny.TinyModels(dit=models().networks["dit"]))
    with pytest.raises(PlanError, match=r"takes 48 channels and the plan makes 16; .* or give the VAE that belongs to"):
        engine.generate(Request(seconds=0.36))
