"""The transformer unit: the hooks together do what the network's own forward does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from omniavatar.engine.loop import Loop
from omniavatar.engine.scopes import Forward, Job, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.engine.windows import Span
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.models.wan_dit import PerToken, WanDiT
from omniavatar.testing import FakeDiT
from omniavatar.units import CfgMerge, Euler, Guidance, Schedule, Transformer
from omniavatar.units.transformer import model_input, tell_noise
from tests.models.networks import noise, randomized
from tests.scenes import Scene, bare_job, fake_engine, fake_models, request


class Text(PipelineUnit):
    """A context that the network's text layers made, and some condition channels."""

    name = "text"

    @hookimpl
    def begin_window(self, window: Window) -> None:
        window["condition"] = noise(1, 2, *window.latents.shape[2:], seed=5)

    @hookimpl
    def embed(self, forward: Forward) -> None:
        forward.conditions["text"] = forward.network.embed_text(noise(1, 3, 6, seed=6))


def small_dit(patch_size: tuple[int, int, int] = (1, 2, 2)) -> WanDiT:
    return randomized(
        WanDiT(
            dim=24,
            in_dim=6,
            ffn_dim=32,
            out_dim=4,
            text_dim=6,
            freq_dim=8,
            eps=1e-6,
            patch_size=patch_size,
            num_heads=2,
            num_layers=3,
        )
    )


def test_a_window_may_go_on_in_the_latents_of_the_one_before() -> None:
    """Its positions go on too, and all its latent frames stand for four frames."""
    dit, seen = small_dit(), []

    class Chunks(PipelineUnit):
        """As block-causal models have them: 9 frames, then 12 and 12, of 3 latent frames each."""

        name = "chunks"

        @hookimpl
        def plan_windows(self, job: Job) -> Sequence[Span]:
            ends = [0, 9, 21, 33]
            return [Span(start, stop, 0, start, stop, (start + 3) // 4) for start, stop in pairwise(ends)]

    class Look:
        @hookimpl(trylast=True)
        def embed(self, forward: Forward) -> None:
            seen.append((forward.latents.shape[2], forward.rope, forward.frame_index.tolist()))

    units = [Scene(frames=33), Chunks(), Text(), Guidance(scale=1), Schedule(steps=1), Euler(), Transformer()]
    fake_engine(units, models=fake_models(dit=dit), observers=[Look()]).generate(request(height=32))
    whole = dit.rope((9, 2, 1))
    assert [latents for latents, _, _ in seen] == [3, 3, 3]
    assert torch.cat([rope for _, rope, _ in seen]).equal(whole)
    assert all(index == [0, 0, 1, 1, 2, 2] for _, _, index in seen)


def test_hooks_compose_to_the_plain_forward() -> None:
    dit, seen = small_dit(), []

    class Look:
        @hookimpl(trylast=True)
        def unembed(self, forward: Forward) -> None:
            seen.append((forward, forward["condition"], forward.frame_index, forward.grid))

    units = [Scene(frames=9), Text(), Guidance(scale=1), Schedule(steps=2), Euler(), Transformer()]
    fake_engine(units, models=fake_models(dit=dit), observers=[Look()]).generate(request(height=32))
    assert len(seen) == 2
    for forward, condition, frame_index, grid in seen:
        latents = torch.cat([forward.latents, condition], dim=1)
        timestep = torch.tensor([forward.step.timestep], dtype=torch.float64)
        expected = dit(latents, timestep, noise(1, 3, 6, seed=6))
        torch.testing.assert_close(forward.output, expected, atol=1e-5, rtol=1e-5)
        assert grid == (3, 2, 1)
        assert frame_index.tolist() == [0, 0, 1, 1, 2, 2]


def test_positions_are_made_once_per_window() -> None:
    dit, tables = FakeDiT(), []
    inner = dit.rope

    def counted(grid: tuple[int, int, int], device: torch.device, first_frame: int = 0) -> Tensor:
        tables.append(grid)
        return inner(grid, device, first_frame)

    dit.rope = counted  # type: ignore[method-assign]
    units = [Scene(frames=9), Guidance(scale=4), Schedule(steps=3), Euler(), Transformer()]
    fake_engine(units, models=fake_models(dit=dit)).generate(request())
    assert (dit.calls, tables) == (6, [(3, 2, 2)])


@pytest.fixture
def forward() -> Forward:
    """A call for two branches of a window whose latents are 1."""
    engine = fake_engine([], models=fake_models(dit=FakeDiT(condition_channels=2)))
    window = Window(bare_job(engine), 0, Span(0, 5, 0, 0, 5))
    window.latents = torch.ones(1, 4, 2, 2, 2)
    return Forward(Step(window, 0, 1000.0, 1.0, 0.0), [window.branch("a"), window.branch("b")])


def test_the_input_is_latents_and_condition_once_per_branch(forward: Forward) -> None:
    forward.window["condition"] = torch.full((1, 2, 2, 2, 2), 3.0)
    made = model_input(forward)
    assert made.shape == (2, 6, 2, 2, 2)
    assert made[:, :, 0, 0, 0].tolist() == [[1, 1, 1, 1, 3, 3]] * 2


def test_a_wrong_number_of_channels_names_both_and_the_cause(forward: Forward) -> None:
    with pytest.raises(PlanError) as caught:
        model_input(forward)
    assert str(caught.value) == (
        "the transformer takes 6 channels and the plan makes 4; "
        "add or leave out the unit that provides 'condition' (such as reference-image), or give the VAE "
        "that belongs to the transformer"
    )


class Waits(TorchDispatchMode):
    """Refuses what would wait for the device to know how large a result is, or what it holds."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(word in name for word in ("unique", "_local_scalar_dense", "nonzero", "sort")), name
        return func(*args, **(kwargs or {}))


class ClearFrames(PipelineUnit):
    """The first `count` latent frames carry no noise."""

    name = "clear-frames"

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.seen: list[Forward] = []

    @hookimpl
    def embed(self, forward: Forward) -> None:
        if forward.step.is_first:
            tell_noise(self, forward, lambda: forward.frame_index >= self.count)
        else:
            with Waits():
                tell_noise(self, forward, lambda: forward.frame_index >= self.count)
        self.seen.append(forward)


@pytest.mark.parametrize("together", [False, True])
def test_tokens_without_noise_are_told_time_step_0(together: bool) -> None:
    dit, units = small_dit(), [Scene(frames=9), Text(), Guidance(scale=2), Schedule(steps=3), Euler(), Transformer()]
    clear = ClearFrames(2)
    fake_engine([*units, clear, *([CfgMerge()] if together else [])], models=fake_models(dit=dit)).generate(request())
    assert len(clear.seen) == (3 if together else 6)
    for forward in clear.seen:
        expected = dit.embed_token_times(forward.step.timestep * (forward.frame_index >= 2)[None].double())
        for told, one in zip((forward.time, forward.t_mod), expected, strict=True):
            assert isinstance(told, PerToken)
            assert told.rows.equal(one.rows)
            assert told.index.equal(one.index)


def test_where_all_tokens_carry_noise_they_share_one_time_step() -> None:
    clear = ClearFrames(0)
    units = [Scene(frames=9), Text(), Guidance(scale=1), Schedule(steps=3), Euler(), Transformer()]
    fake_engine([*units, clear], models=fake_models(dit=small_dit())).generate(request())
    assert all(isinstance(forward.time, Tensor) for forward in clear.seen)


def test_samples_of_a_batch_may_have_time_steps_of_their_own() -> None:
    """As in training."""
    dit = small_dit()
    engine = fake_engine([Transformer()], models=fake_models(dit=dit))
    window = Window(Loop(engine, engine.plan, request()).job, 0, Span(0, 9, 0, 0, 9))
    window.latents = torch.zeros(2, 4, 3, 2, 2)
    timestep = torch.tensor([300.0, 700.0], dtype=torch.float64)
    forward = Forward(Step(window, 0, timestep, timestep / 1000, 0.0), [window.branch("positive")])
    mask = torch.tensor([False, True, True])
    tell_noise(Transformer(), forward, lambda: mask)
    time, _ = dit.embed_token_times(timestep[:, None] * mask)
    assert isinstance(forward.time, PerToken)
    torch.testing.assert_close(forward.time.values, time.values)


@pytest.mark.parametrize("patch_frames", [1, 2])
@pytest.mark.parametrize("clear", [0, 1])
def test_every_latent_frame_may_have_a_time_step_of_its_own(patch_frames: int, clear: int) -> None:
    """The network's own call with a time step for every token gives the same, for all frames and for some."""
    dit = small_dit((patch_frames, 2, 2))
    units = [Scene(frames=13), Text(), Transformer(), *([ClearFrames(clear)] if clear else [])]
    engine = fake_engine(units, models=fake_models(dit=dit))
    loop = Loop(engine, engine.plan, request())
    window = Window(loop.job, 0, Span(0, 13, 0, 0, 13))
    window["condition"] = noise(2, 2, 4, 4, 4, seed=5)
    window.latents = noise(2, 4, 4, 4, 4)
    timesteps = torch.tensor([[900.0, 500.0, 300.0, 100.0], [800.0, 400.0, 200.0, 50.0]], dtype=torch.float64)
    timesteps = timesteps[:, ::patch_frames].repeat_interleave(patch_frames, dim=1)
    step = loop.open_step(window, timesteps, timesteps / 1000)
    for frames in (slice(0, 4), slice(2, 4)):
        velocity = step.forward([window.branch("positive")], frames)
        told = (timesteps[:, frames] * (torch.arange(4)[frames] >= clear * patch_frames))[:, ::patch_frames]
        tokens = told.repeat_interleave(4, dim=1)
        latents = torch.cat([window.latents, window["condition"]], dim=1)[:, :, frames]
        torch.testing.assert_close(velocity, dit(latents, tokens, noise(1, 3, 6, seed=6)), rtol=0, atol=1e-5)
