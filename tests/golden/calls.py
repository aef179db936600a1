"""Transformer calls through the hooks of an engine, for the kinds that pin down single noise predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Plan
from omniavatar.engine.scopes import Forward, Job, Request, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.engine.windows import Span
from omniavatar.testing import GivenModels, LatentFormat
from omniavatar.units import Transformer
from tests.golden.cases import Case
from tests.golden.kind_engine import GivenPrompt


def one_call(
    case: Case,
    units: Iterable[PipelineUnit],
    networks: Mapping[str, nn.Module],
    *,
    inputs: Mapping[str, Any] | None = None,
    **values: Any,
) -> Forward:
    """The call for `latents`, `timestep` and `context` of the case, once its `output` is made; see `one_step`."""
    step = one_step(case, units, networks, inputs=inputs, **values)
    forward = Forward(step, [step.window.branch("positive")])
    forward.output = step.engine.hooks.call(forward)
    return forward


def one_step(
    case: Case,
    units: Iterable[PipelineUnit],
    networks: Mapping[str, nn.Module],
    *,
    inputs: Mapping[str, Any] | None = None,
    **values: Any,
) -> Step:
    """A step at `latents` and `timestep` of the case; see `one_window`."""
    window = one_window(case, units, networks, inputs=inputs, latents=case.inputs["latents"])
    window.values.update(values)
    sigma = float(case.inputs["timestep"]) / 1000
    return Step(window, 0, 1000 * sigma, sigma, 0.0)


def one_window(
    case: Case,
    units: Iterable[PipelineUnit],
    networks: Mapping[str, nn.Module],
    *,
    latents: Tensor,
    inputs: Mapping[str, Any] | None = None,
) -> Window:
    """A window with these latents, `context` of the case as prompt and `context_negative` beside it.

    The units run in front of the transformer; `inputs` are for them.
    """
    plan = Plan((GivenPrompt(), *units, Transformer()))
    models = GivenModels(**{"vae": LatentFormat(), "text_encoder": nn.Identity(), **networks})
    engine = Engine(plan, models)
    engine.set_up()
    frames, rows, columns = latents.shape[2:]
    request = Request(inputs or {}, height=8 * rows, width=8 * columns, seconds=1.0)
    job = Job(engine, request, plan.parse_inputs(request.inputs))
    job["prompt_embedding"] = case.inputs["context"]
    job["negative_embedding"] = case.inputs.get("context_negative")
    engine.hooks.begin_job(job)
    window = Window(job, 0, Span(0, 4 * frames - 3, 0, 0, 4 * frames - 3), None)
    window.latents = latents
    engine.hooks.begin_window(window)
    return window
