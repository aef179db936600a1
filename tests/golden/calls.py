"""One transformer call through the hooks of an engine, for the kinds that pin down a single noise prediction."""

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
    """The call for `latents`, `timestep` and `context` of the case, once its `output` is made.

    The units run in front of the transformer; `inputs` are for them, `values` replace what they put in the window.
    """
    plan = Plan((GivenPrompt(), *units, Transformer()))
    models = GivenModels(**{"vae": LatentFormat(), "text_encoder": nn.Identity(), **networks})
    engine = Engine(plan, models)
    engine.set_up()
    latents: Tensor = case.inputs["latents"]
    frames, rows, columns = latents.shape[2:]
    request = Request(inputs or {}, height=8 * rows, width=8 * columns, seconds=1.0)
    job = Job(engine, request, plan.parse_inputs(request.inputs))
    job["prompt_embedding"] = case.inputs["context"]
    engine.hooks.begin_job(job)
    window = Window(job, 0, Span(0, 4 * frames - 3, 0, 0, 4 * frames - 3), None)
    window.latents = latents
    engine.hooks.begin_window(window)
    window.values.update(values)
    sigma = float(case.inputs["timestep"]) / 1000
    forward = Forward(Step(window, 0, 1000 * sigma, sigma, 0.0), [window.branch("positive")])
    engine.forward(forward)
    return forward
