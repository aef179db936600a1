"""Roles are what units declare: the engine and the units that move, round or compile networks know none by name."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Catalog, Plan, build_plan
from omniavatar.engine.scopes import Forward, Request, Step
from omniavatar.engine.unit import PipelineUnit
from omniavatar.estimate.rehearsal import Rehearsal
from omniavatar.hookspecs import hookimpl
from omniavatar.models.compiled import Compiled
from omniavatar.models.fp8 import Fp8Linear
from omniavatar.models.streaming import Streamed
from omniavatar.models.wan_dit import WanDiT
from omniavatar.roles import companion_of
from omniavatar.testing.tiny import DIT, TinyModels
from omniavatar.units import Transformer
from tests.models.networks import randomized
from tests.scenes import Frames
from tests.training.scenes import SETTINGS, catalog

SMALL = {**SETTINGS, "euler": {"steps": 2}, "fixed-frames": {"window_frames": 9, "overlap": 5}}
BASE = "default-write-video"


class HintBlock(nn.Module):
    """A feed-forward with a residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(b s d) -> (b s d)."""
        added: Tensor = self.ffn(x)
        return x + added


class Hints(nn.Module):
    """What is added to the tokens in front of the first block: a chain of blocks of its own."""

    def __init__(self, dim: int, num_layers: int = 3) -> None:
        super().__init__()
        self.start = nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(HintBlock(dim) for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """(b s d) -> (b s d)."""
        x = self.start(x)
        for block in self.blocks:
            x = block(x)
        return x


class Aura(PipelineUnit):
    """A network of a role that nothing else knows, at work in every call."""

    name = "aura"
    roles = ("aura",)
    companions = ("aura",)

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        if index == 0:
            forward.x = forward.x + 0.1 * forward.engine.companion("aura", forward)(forward.x)


class Flow(Transformer):
    """The transformer under another name."""

    name = "flow"
    roles = ("flow",)
    experts = ("flow",)


class Turns(PipelineUnit):
    """A second transformer, of any name, for the second step."""

    name = "turns"
    experts: ClassVar[tuple[str, ...]] = ("dit", "refiner")

    @hookimpl
    def begin_window(self, window: Any) -> None:
        window.steps[1].expert = "refiner"


def strangers() -> Catalog:
    """The built-in units and those of this page."""
    known = catalog()
    return Catalog({**known.units, "aura": Aura, "flow": Flow, "turns": Turns}, known.presets)


def models(**networks: Any) -> TinyModels:
    """The test networks with one of the role aura."""
    return TinyModels(aura=randomized(Hints(DIT["dim"]), seed=3), **networks)


def play(expression: str, given: TinyModels) -> tuple[Tensor, Engine]:
    """The frames of a video of two windows."""
    frames = Frames()
    engine = Engine(build_plan(expression, strangers(), SMALL), given, observers=[frames])
    engine.generate(Request({"prompt": "hi"}, seconds=0.4))
    return torch.cat(frames.seen, dim=2), engine


def test_it_counts() -> None:
    assert not play(f"{BASE}+aura", models())[0].equal(play(BASE, models())[0])


@pytest.mark.slow
@pytest.mark.parametrize("other", ["offload", "offload(resident=1)", "disk-offload"])
def test_what_moves_weights_moves_those_of_a_role_of_its_own(other: str) -> None:
    frames, engine = play(f"{BASE}+aura+{other}", models())
    assert frames.equal(play(f"{BASE}+aura", models())[0])
    assert all(isinstance(block, Streamed) for block in engine.model("aura").blocks)
    assert "aura" in engine.residency.in_steps


@pytest.mark.slow
def test_fp8_rounds_it_and_compile_compiles_it() -> None:
    frames, engine = play(f"{BASE}+aura+fp8(mode=storage)+compile(backend=eager)", models())
    blocks = engine.model("aura").blocks
    assert all(isinstance(block, Compiled) for block in blocks)
    assert {type(blocks[0].ffn[index]) for index in (0, 2)} == {Fp8Linear}
    assert not any(isinstance(layer, Fp8Linear) for layer in engine.model("text_encoder").modules())
    rounded = play(f"{BASE}+aura+fp8(mode=storage, networks=[dit])", models())[0]
    assert not frames.equal(rounded)
    torch.testing.assert_close(frames, rounded, atol=0.05, rtol=0)


def test_estimates_list_it() -> None:
    class WithSkeletons(TinyModels):
        def skeleton(self, role: str, *, dtype: torch.dtype, **constructor: Any) -> nn.Module:
            return self.networks[role].to("meta")

    plan = build_plan(f"{BASE}+aura+offload", strangers(), SMALL)
    estimate = Rehearsal(Engine(plan, WithSkeletons(aura=Hints(DIT["dim"])))).estimate(
        Request({"prompt": "hi"}, seconds=0.4)
    )
    (found,) = (network for network in estimate.networks if network.role == "aura")
    assert found.blocks == 3
    assert 0 < found.on_device < found.size, "two blocks of three"


def test_a_transformer_of_another_role_makes_the_same_video() -> None:
    renamed = f"{BASE}-transformer+flow"
    networks = TinyModels()
    networks.networks["flow"] = networks.networks.pop("dit")
    frames, engine = play(f"{renamed}+offload+fp8(mode=storage)", networks)
    assert engine.plan.experts == ("flow",)
    assert frames.equal(play(f"{BASE}+offload+fp8(mode=storage)", TinyModels())[0])


@pytest.mark.slow
def test_every_expert_has_companions_of_its_own_if_there_are_some() -> None:
    second = {"refiner": randomized(WanDiT(**DIT), seed=9), "aura.refiner": randomized(Hints(DIT["dim"]), seed=4)}
    plan = f"{BASE}+turns+aura"
    both, engine = play(f"{plan}+offload", models(**second))
    assert engine.companions("aura") == ["aura", "aura.refiner"]
    assert both.equal(play(plan, models(**second))[0])
    one = play(plan, models(refiner=second["refiner"]))[0]
    assert not both.equal(one), "one for both"
    assert Plan((Turns(), Aura())).roles == ["dit", "refiner", "aura", "aura.refiner"]


def test_of_several_experts_only_the_one_at_work_is_there_with_its_companion() -> None:
    class Present:
        """Who is on the device in each step."""

        def __init__(self) -> None:
            self.seen: list[frozenset[str]] = []

        @hookimpl(trylast=True)
        def after_step(self, step: Step) -> None:
            self.seen.append(step.engine.residency.present & {"dit", "refiner", "aura", "aura.refiner"})

    present = Present()
    second = {"refiner": randomized(WanDiT(**DIT), seed=9), "aura.refiner": randomized(Hints(DIT["dim"]), seed=4)}
    plan = build_plan(f"{BASE}+turns+aura+offload", strangers(), SMALL)
    Engine(plan, models(**second), observers=[present]).generate(Request({"prompt": "hi"}, seconds=0.3))
    assert present.seen == [{"dit", "aura"}, {"refiner", "aura.refiner"}]


def test_names_of_companions() -> None:
    assert [companion_of("vace", "dit", expert) for expert in ("dit", "dit2", "refiner")] == [
        "vace",
        "vace2",
        "vace.refiner",
    ]
    assert [companion_of("dit", "dit", expert) for expert in ("dit", "dit2", "refiner")] == ["dit", "dit2", "refiner"]
