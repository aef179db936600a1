"""First-block cache: when blocks run, that branches decide alone, and the numbers of diffusers' hook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omniavatar.checkpoints import Bundle
from omniavatar.distributed.groups import Group, Groups
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Catalog
from omniavatar.engine.scopes import Branch, Forward, Request
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.units import CfgMerge, FirstBlockCache, SkipLayerGuidance
from tests.scenes import Scene, denoising_units, fake_engine, fake_models, request, tiny_engine, video_of


class Drift(Scene):
    """Texts that change from step to step, those of the negative branch faster: +10 % and +50 %."""

    def context(self, branch: Branch) -> Tensor:
        rate = 1.5 if branch.name == "negative" else 1.1
        return torch.full((1, 1, 1), 0.01 * rate**self.step)

    @hookimpl
    def before_step(self, step: Any) -> None:
        self.step = step.index


class Look:
    """Notes for every step and branch, or branches in one batch, whether the last block ran."""

    def __init__(self) -> None:
        self.ran: dict[str, list[bool]] = {}

    @hookimpl
    def embed(self, forward: Forward) -> None:
        self.ran.setdefault(self.name(forward), []).append(False)

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        if index == 3:
            self.ran[self.name(forward)][-1] = True

    def name(self, forward: Forward) -> str:
        return "+".join(branch.name for branch in forward.branches)


def run(*units: PipelineUnit, **options: Any) -> tuple[Scene, Look, Engine]:
    scene, look = Drift(frames=5), Look()
    plan = [scene, *denoising_units(steps=6, scale=3.0), *units]
    engine = fake_engine(plan, models=fake_models(), observers=[look], **options)
    engine.generate(request())
    return scene, look, engine


def test_it_compares_with_the_step_that_was_computed_last() -> None:
    """At +10 % a step 0.21 is reached in the second step after; at +50 % it is passed at once."""
    _, look, engine = run(FirstBlockCache(threshold=0.22))
    assert look.ran == {"positive": [True, False, False, True, False, False], "negative": [True] * 6}
    blocks = [block.calls for block in engine.model("dit").blocks]
    assert blocks == [12, 8, 8, 8], "the first one always runs"


def test_branches_in_one_batch_decide_alone_and_run_together() -> None:
    cached, look, _ = run(FirstBlockCache(threshold=0.22), CfgMerge())
    assert look.ran == {"positive+negative": [True] * 6}
    torch.testing.assert_close(video_of(cached), video_of(run(FirstBlockCache(threshold=0.22))[0]), atol=1e-6, rtol=0)
    assert not torch.allclose(video_of(cached), video_of(run()[0]), atol=1e-6)


class Reluctant(Group):
    """The group of a rank and another one that never spares a call."""

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return [tensor, torch.zeros_like(tensor)]

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        return tensor


def test_blocks_run_on_all_ranks_if_they_run_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which changes nothing in what this rank makes of its own branch."""
    monkeypatch.setattr(Groups, "make", lambda *_: Groups(world=Reluctant(0, 2)))
    shared, look, _ = run(FirstBlockCache(threshold=0.22))
    assert all(all(ran) for ran in look.ran.values())
    monkeypatch.undo()
    torch.testing.assert_close(video_of(shared), video_of(run(FirstBlockCache(threshold=0.22))[0]), atol=1e-6, rtol=0)


class Shapes:
    """Keeps what diffusers' hook would decide by: what the first block added in every call, and the residual taken."""

    def __init__(self) -> None:
        self.first: list[Tensor] = []
        self.output: list[tuple[Tensor, Tensor]] = []

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        if index == 0:
            self.before = forward.x

    @hookimpl
    def after_block(self, forward: Forward, index: int) -> None:
        if index == 0:
            self.first.append(forward.x - self.before)
            self.after = forward.x

    @hookimpl(tryfirst=True)
    def unembed(self, forward: Forward) -> None:
        self.output.append((self.after, forward.x))


@pytest.mark.parametrize("threshold", [0.05, 0.3])
def test_the_rule_of_diffusers(
    threshold: float, tiny_models: Bundle, catalog: Catalog, portrait: Path, speech: Path
) -> None:
    """Each output is first block + residual of the last computed call, or a new one if that changes too much."""
    shapes, look = Shapes(), Ran()
    expression = f"default-write-video-vae-decode-fixed-frames+first-block-cache(threshold={threshold})"
    settings: dict[str, Any] = {"schedule": {"steps": 8}, "guidance": {"scale": 1.0}}
    engine = tiny_engine(tiny_models, catalog, expression, observers=[shapes, look], **settings)
    engine.generate(Request(inputs={"image": portrait, "audio": speech}, seconds=0.24))
    last, residual, computed = shapes.first[0], shapes.output[0][1] - shapes.output[0][0], [True]
    for first, (head, output) in zip(shapes.first[1:], shapes.output[1:], strict=True):
        difference = ((first - last).abs().mean() / last.abs().mean()).item()
        computed.append(difference > threshold)
        if computed[-1]:
            last, residual = first, output - head
        torch.testing.assert_close(output, head + residual, atol=1e-4, rtol=1e-4)
    assert look.computed == computed


class Ran:
    """Whether the second block ran in every call."""

    def __init__(self) -> None:
        self.computed: list[bool] = []

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        if index == 0:
            self.computed.append(False)
        if index == 1:
            self.computed[-1] = True


def test_it_says_where_it_computes_in_any_case() -> None:
    skips = SkipLayerGuidance(blocks=(1,), start=0.34, end=0.67)
    engine = fake_engine([Drift(frames=5), *denoising_units(steps=6, scale=3.0), skips, FirstBlockCache()])
    with engine.start(request()) as run_:
        said = list(FirstBlockCache().forecast(run_.loop.plan_window()))
    assert said == ["dit: computed in any case: 1, 3, 5; skip-layer-guidance changes at 3, 5"]


def test_a_threshold_of_0_changes_nothing() -> None:
    assert video_of(run(FirstBlockCache(threshold=0))[0]).equal(video_of(run()[0]))


def test_every_window_begins_anew() -> None:
    look = Look()
    units = [Scene(frames=13), *denoising_units(steps=2), FirstBlockCache(threshold=10)]
    fake_engine(units, observers=[look]).generate(request())
    assert look.ran["positive"] == [True, False] * 2


def test_window_values_hold_no_residuals() -> None:
    scene, _, _ = run(FirstBlockCache(threshold=0.22))
    assert not any(name.startswith("first-block-cache") for name in scene.windows[0].values)
