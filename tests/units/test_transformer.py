"""The transformer unit: the hooks together do what the network's own forward does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from omniavatar.engine.scopes import Forward, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.engine.windows import Span
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.models.wan_dit import WanDiT
from omniavatar.testing import FakeDiT
from omniavatar.units import Euler, Guidance, Transformer
from omniavatar.units.transformer import model_input
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
        forward.context = forward.network.embed_text(noise(1, 3, 6, seed=6))


def small_dit() -> WanDiT:
    return randomized(
        WanDiT(
            dim=24,
            in_dim=6,
            ffn_dim=32,
            out_dim=4,
            text_dim=6,
            freq_dim=8,
            eps=1e-6,
            patch_size=(1, 2, 2),
            num_heads=2,
            num_layers=3,
        )
    )


def test_hooks_compose_to_the_plain_forward() -> None:
    dit, seen = small_dit(), []

    class Look:
        @hookimpl(trylast=True)
        def unembed(self, forward: Forward) -> None:
            seen.append((forward, forward["condition"], forward.frame_index, forward.grid))

    units = [Scene(frames=9), Text(), Guidance(scale=1), Euler(steps=2), Transformer()]
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

    def counted(grid: tuple[int, int, int], device: torch.device) -> Tensor:
        tables.append(grid)
        return inner(grid, device)

    dit.rope = counted  # type: ignore[method-assign]
    units = [Scene(frames=9), Guidance(scale=4), Euler(steps=3), Transformer()]
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
