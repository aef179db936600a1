"""Transformer calls through the hooks of an engine, for the kinds that pin down single noise predictions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from torch import Tensor, nn

from omniavatar.engine.engine import Engine
from omniavatar.engine.loop import Loop
from omniavatar.engine.plan import Plan
from omniavatar.engine.scopes import Forward, Request, Step, Window
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
    forward.output = step.loop.call(forward)
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
    loop = Loop(engine, plan, Request(inputs or {}, height=8 * rows, width=8 * columns, seconds=1.04))
    loop.job["prompt_embedding"] = case.inputs["context"]
    loop.job["negative_embedding"] = case.inputs.get("context_negative")
    span = Span(0, 4 * frames - 3, 0, 0, 4 * frames - 3)
    loop.begin([span])
    return loop.open_window(0, span, latents=latents)


@contextmanager
def first_window(
    units: Iterable[PipelineUnit], models: GivenModels, request: Request, latents: Tensor, **values: Any
) -> Iterator[Window]:
    """The first window of a video, with these latents, once the units have prepared it; `values` are its job's."""
    engine = Engine(Plan(tuple(units)), models)
    with closing(Loop(engine, engine.plan, request)) as loop:
        loop.job.values.update(values)
        loop.begin()
        yield loop.open_window(0, loop.job.spans[0], latents=latents)
