"""NAG: whom it guides in which steps, by what, and that nothing else around it makes a difference."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor

from omniavatar.checkpoints import Bundle
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.scopes import Forward, Job, Request
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.models.nag import ROWS, TEXT, normalized
from omniavatar.units import CfgMerge, Euler, Guidance, Nag, Schedule, Transformer
from tests.models.networks import noise, relative_error
from tests.scenes import Frames, Scene, fake_engine, request, tiny_engine

PLAN = "default-write-video"


def video(models: Bundle, catalog: Catalog, plan: str, scale: float = 1.0, **settings: Any) -> Tensor:
    frames = Frames()
    engine = tiny_engine(models, catalog, plan, observers=[frames], guidance={"scale": scale}, **settings)
    engine.generate(Request({"prompt": "a man talks"}, seconds=0.2))
    return torch.cat(frames.seen, dim=2)


# What it computes


def test_a_result_is_as_long_as_it_may_be() -> None:
    positive, negative = noise(1, 5, 2, 4), noise(1, 5, 2, 4, seed=1)
    made = normalized(positive, negative, scale=50.0, tau=1.5, alpha=1.0, norm=1)
    sizes, allowed = (heads.abs().sum((-2, -1)) for heads in (made, positive))
    torch.testing.assert_close(sizes, 1.5 * allowed)
    mild = normalized(positive, negative, scale=1.1, tau=100.0, alpha=0.5, norm=2)
    torch.testing.assert_close(mild, positive + 0.05 * (positive - negative))


def test_tokens_of_zeros_stay_zeros() -> None:
    """As padding may be."""
    zeros = torch.zeros(1, 2, 2, 4)
    assert normalized(zeros, noise(1, 2, 2, 4), scale=11.0, tau=2.5, alpha=0.25, norm=1).equal(zeros)


# Whom it guides when


class Embedding(PipelineUnit):
    """Texts without an encoder."""

    name = "embedding"
    provides = ("encode_text", "negative_embedding")

    @hookimpl
    def begin_job(self, job: Job) -> None:
        job["negative_embedding"] = torch.full((1, 1, 1), -2.0)
        job["encode_text"] = lambda text: torch.full((1, 1, 1), float(len(text)))


class Look:
    """Keeps what the blocks get of it in every call: by step and branches the text, and the samples it is for."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, str], tuple[float, list[bool] | None]] = {}

    @hookimpl(wrapper=True, trylast=True)
    def run_blocks(self, forward: Forward) -> Generator[None, Tensor, Tensor]:
        conditions = forward.conditions
        rows = conditions[ROWS].tolist() if ROWS in conditions else None
        if TEXT in conditions:
            key = forward.step.index, "+".join(branch.name for branch in forward.branches)
            self.seen[key] = float(conditions[TEXT]), rows
        return (yield)


def look(*units: PipelineUnit, guidance: float = 3.0, **settings: Any) -> dict[tuple[int, str], Any]:
    seen = Look()
    plan = [
        Scene(frames=5),
        Embedding(),
        Guidance(scale=guidance),
        Schedule(steps=4),
        Euler(),
        Transformer(),
        *units,
        Nag(**settings),
    ]
    fake_engine(plan, observers=[seen]).generate(request())
    return seen.seen


def test_it_acts_in_its_steps_on_branches_that_have_the_prompt() -> None:
    assert look(start=0.25, end=0.75) == {(1, "positive"): (-2.0, None), (2, "positive"): (-2.0, None)}
    assert look(CfgMerge(), end=0.25) == {(0, "positive+negative"): (-2.0, [True, False])}
    assert look(guidance=1.0, end=0.25) == {(0, "positive"): (-2.0, None)}
    assert look(start=0.5, end=0.5) == {}


def test_a_negative_prompt_of_its_own() -> None:
    assert look(end=0.25, negative="blurred") == {(0, "positive"): (7.0, None)}


def test_without_any_negative_prompt() -> None:
    class Bare(PipelineUnit):
        name = "bare"
        provides = ("encode_text",)

        @hookimpl
        def begin_job(self, job: Job) -> None:
            job["encode_text"] = None

    plan = [Scene(frames=5), Bare(), Guidance(scale=1.0), Schedule(steps=1), Euler(), Transformer(), Nag()]
    with pytest.raises(PlanError, match=r"no unit of the plan has a negative prompt; .* nag\(negative=...\)"):
        fake_engine(plan).generate(request())


@pytest.mark.parametrize("settings", [{"scale": 1.0}, {"alpha": 0.0}])
def test_settings_that_do_nothing_cost_nothing(settings: dict[str, float]) -> None:
    assert look(**settings) == {}


def test_a_range_that_ends_before_it_starts(catalog: Catalog) -> None:
    with pytest.raises(PlanError, match=r"unit 'nag': .*start 0\.5 is behind end 0\.25"):
        build_plan("default+nag(start=0.5, end=0.25)", catalog)


# What the video shows


def test_the_negative_prompt_counts_without_guidance(tiny_models: Bundle, catalog: Catalog) -> None:
    plain = video(tiny_models, catalog, PLAN)
    one = video(tiny_models, catalog, f"{PLAN}+nag(negative=dark)")
    other = video(tiny_models, catalog, f"{PLAN}+nag(negative='bright light')")
    assert relative_error(one, plain) > 1e-4
    assert relative_error(other, one) > 1e-4
    assert video(tiny_models, catalog, f"{PLAN}+nag(scale=1)").equal(plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", ["cfg-merge", "offload", pytest.param("compile(backend=eager)", marks=pytest.mark.slow), "disk-offload"]
)
def test_it_goes_with_what_makes_videos_cheaper(tiny_models: Bundle, catalog: Catalog, more: str) -> None:
    expected = video(tiny_models, catalog, f"{PLAN}+nag(end=0.5)", scale=3.0)
    for plan in (f"{PLAN}+nag(end=0.5)+{more}", f"{PLAN}+{more}+nag(end=0.5)"):
        assert relative_error(video(tiny_models, catalog, plan, scale=3.0), expected) < 1e-4


def test_it_may_change_from_video_to_video(tiny_models: Bundle, catalog: Catalog) -> None:
    frames = Frames()
    engine: Engine = tiny_engine(tiny_models, catalog, f"{PLAN}+nag", observers=[frames], guidance={"scale": 1.0})
    for scale in (11.0, 1.0, 11.0):
        engine.generate(Request(seconds=0.04), settings={"nag": {"scale": scale}})
    first, off, again = frames.seen
    assert first.equal(again)
    assert not first.equal(off)
