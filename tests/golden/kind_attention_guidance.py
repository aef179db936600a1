"""Golden kinds of guidance without a negative call: inside the cross-attention, and by blocks that are left out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from omniavatar.engine.scopes import Branch, Forward, Step
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.models.attention import AttentionSlot
from omniavatar.models.nag import TEXT, guided, normalized
from omniavatar.models.wan_dit import BlockInputs, CrossAttention
from omniavatar.testing import FakeDiT
from omniavatar.units import Euler, Guidance, Schedule, SkipLayerGuidance, Transformer
from tests.golden.cases import Case, kind
from tests.golden.kind_networks import loaded
from tests.scenes import Scene, fake_engine, fake_models, request


@kind("nag")
def run_nag(case: Case) -> None:
    """The formula for both norms, and a whole cross-attention with the first settings."""
    heads = case.config["num_heads"]
    z_pos, z_neg = (case.inputs[name].unflatten(-1, (heads, -1)) for name in ("z_pos", "z_neg"))
    for number, (scale, tau, alpha) in enumerate(case.config["settings"]):
        for norm in (1, 2):
            name = f"l{norm}_{number}"
            if name in case.expected:
                made = normalized(z_pos, z_neg, scale=scale, tau=tau, alpha=alpha, norm=norm)
                case.compare(name, made.flatten(-2), atol=1e-5)
    slot = AttentionSlot()
    width = case.inputs["x"].shape[-1]
    layer = loaded(CrossAttention(width, heads, case.config["eps"], slot), case.weights)
    scale, tau, alpha = case.config["settings"][0]
    slot.cross.wrap_at(partial(guided, scale=scale, tau=tau, alpha=alpha, norm=1))
    conditions = {"text": case.inputs["context"], TEXT: case.inputs["context_negative"]}
    made = layer(case.inputs["x"], BlockInputs(torch.empty(0), torch.empty(0), conditions))
    case.compare("cross_attention", made, atol=1e-5)


@kind("slg")
def run_slg(case: Case) -> None:
    """Which blocks run in which steps, and how the call of its own is joined with the others."""
    for number, record in enumerate(case.records):
        inputs, expected = record["inputs"], record["expected"]
        if inputs["rule"] == "extra_call_formula":
            case.close(f"guided {number}", joined(**inputs), torch.tensor(expected["guided"]), atol=1e-5)
        else:
            case.equal(f"record {number}", ran(**inputs), expected.read())


class Look:
    """Notes for every step and branch which blocks were left out."""

    def __init__(self) -> None:
        self.missing: dict[tuple[int, str], list[int]] = {}
        self.steps = 0

    @hookimpl(wrapper=True)
    def run_blocks(self, forward: Forward) -> Any:
        before = [block.calls for block in forward.network.blocks]
        result = yield
        key = forward.step.index, forward.branches[0].name
        self.missing[key] = [i for i, block in enumerate(forward.network.blocks) if block.calls == before[i]]
        return result


def ran(rule: str, layers: Sequence[int], start: float, stop: float, num_inference_steps: int) -> dict[str, Any]:
    """The steps in which the unit acts, and for the rule `uncond` what it leaves out in each branch."""
    look = Look()
    unit = SkipLayerGuidance(blocks=tuple(layers), start=start, end=stop, rule=rule)
    units = [Scene(frames=5), Guidance(scale=3.0), Schedule(steps=num_inference_steps), Euler(), Transformer(), unit]
    fake_engine(units, models=fake_models(dit=FakeDiT(num_layers=max(layers) + 2)), observers=[look]).generate(
        request()
    )
    acting = sorted({step for (step, _), missing in look.missing.items() if missing})
    if rule == "extra_call":
        assert all(branch == unit.name and missing == sorted(layers) for branch, missing in skipping(look))
        return {"steps": acting}
    negative = {tuple(missing) for branch, missing in skipping(look) if branch == "negative"}
    positive = [missing for branch, missing in skipping(look) if branch == "positive"]
    assert negative <= {tuple(sorted(layers))}
    return {"steps": acting, "skipped_blocks": {"positive": positive, "negative": sorted(layers)}}


def skipping(look: Look) -> list[tuple[str, list[int]]]:
    """The branches of all calls that have left out something, and what."""
    return [(branch, missing) for (_, branch), missing in look.missing.items() if missing]


class Given(PipelineUnit):
    """Predictions by the name of their branch; the latents stay as they are."""

    name = "given"

    def __init__(self, **predictions: Tensor) -> None:
        super().__init__()
        self.predictions = predictions
        self.velocities: list[Tensor] = []

    @hookimpl
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor]:
        return [self.predictions[branch.name.replace("-", "_")] for branch in branches]

    @hookimpl
    def after_step(self, step: Step) -> None:
        self.velocities.append(step.velocity)


def joined(
    rule: str,
    guidance_scale: float,
    skip_scale: float,
    positive: Sequence[float],
    negative: Sequence[float],
    positive_skipped: Sequence[float],
) -> Tensor:
    """The guided velocity of the second of three steps, in which alone the unit acts."""
    unit = SkipLayerGuidance(blocks=(0,), start=0.0, end=0.67, rule="extra_call", scale=skip_scale)
    vectors = {"positive": positive, "negative": negative, "skip_layer_guidance": positive_skipped}
    given = Given(**{name: torch.tensor(vector)[None, :, None, None, None] for name, vector in vectors.items()})

    class Still(Euler):
        @hookimpl
        def advance(self, step: Step) -> Tensor:
            return step.window.latents

    units = [Scene(frames=5), given, Guidance(scale=guidance_scale), Schedule(steps=3), Still(), Transformer(), unit]
    fake_engine(units).generate(request())
    return given.velocities[1].flatten()
