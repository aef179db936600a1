"""Golden kinds of training: noise levels, weights and losses, through the hooks of an engine."""

from __future__ import annotations

import torch
from omniavatar_ti2v.unit import Ti2v
from torch import Tensor

from omniavatar.engine.flow_match import TIMESTEPS
from omniavatar.engine.scopes import Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.training.objective import FlowMatching, distillation_loss
from omniavatar.units import Euler, FixedFrames, Guidance, Schedule
from tests.golden.calls import one_window
from tests.golden.cases import Case, kind
from tests.golden.files import networks_of
from tests.golden.kind_ti2v import is_fused


class Held(FixedFrames):
    """The fixed-frames unit with given latents in place of an image."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = latents

    @hookimpl
    def begin_window(self, window: Window) -> None:
        window["given_latents"] = self.latents


class TokenTimes(Ti2v):
    """Time step 0 for the tokens of given frames, without a picture."""

    begin_job = None  # type: ignore[assignment]


class Steps(PipelineUnit):
    """Keeps the latents after every step."""

    name = "steps"

    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self.seen = seen

    @hookimpl
    def after_step(self, step: Step) -> None:
        self.seen.append(step.window.latents)


@kind("loss_schedule")
def loss_schedule(case: Case) -> None:
    """Time steps, noise levels and weights, as they are and where a time step in bfloat16 would be looked up."""
    for number, record in enumerate(case.records):
        inputs, expected = record["inputs"], record["expected"]
        objective = FlowMatching(inputs["num_train_steps"], inputs["sigma_shift"])
        timesteps = objective.sigmas * TIMESTEPS
        rounded = timesteps[inputs["index"]].to(torch.bfloat16)
        nearest = int((timesteps.float() - rounded).abs().argmin())
        case.equal(f"{number}.bf16_index", nearest, expected["bf16_index"])
        case.equal(f"{number}.bf16_timestep", float(rounded), expected["bf16_timestep"])
        for prefix, index in (("", inputs["index"]), ("bf16_", nearest)):
            actual = {"sigma": objective.sigmas[index], "weight": objective.weights[index]}
            for name, value in actual.items():
                wanted = torch.tensor(expected[prefix + name])
                # The smallest weights are differences of nearly equal float32 numbers there.
                case.close(f"{number}.{prefix}{name}", value, wanted, atol=1e-5 * max(1.0, abs(float(wanted))))
        wanted = torch.tensor(expected["timestep"])
        case.close(f"{number}.timestep", timesteps[inputs["index"]], wanted, rtol=1e-5)


@kind("loss")
def loss(case: Case) -> None:
    """The loss at three noise levels, of a text-to-video model and of one with a clean first frame."""
    call, networks = case.config["call"], networks_of(case, dit=case.config["dit"])
    objective = FlowMatching(
        call["num_train_timesteps"],
        call["sigma_shift"],
        call["min_timestep_boundary"],
        call["max_timestep_boundary"],
    )
    clean, units = case.inputs["input_latents"], list[PipelineUnit]()
    if "first_frame_latents" in case.inputs:
        units = [Held(case.inputs["first_frame_latents"])]
    if is_fused(case):
        units.append(TokenTimes())
    indices = call["timestep_indices"]
    losses = []
    for number, index in enumerate(indices):
        window = one_window(case, units, networks, latents=clean)
        noise = case.inputs[f"noise_{number}"]
        levels = objective.levels(torch.tensor([index]))
        losses.append(objective.loss(window, clean, noise, levels, window.branch("positive")))
    case.compare("loss", torch.stack(losses), rtol=2e-5)
    case.compare("sigma", objective.sigmas[indices], rtol=2e-5)
    case.compare("weight", objective.weights[indices], rtol=2e-5)
    case.compare("timestep", objective.sigmas[indices] * TIMESTEPS, rtol=2e-5)


@kind("distill")
def distill(case: Case) -> None:
    """A few steps from noise, all of them part of the loss."""
    call = case.config["call"]
    schedule = Schedule(steps=call["num_inference_steps"], shift=call.get("sigma_shift", 5.0))
    seen: list[Tensor] = []
    networks = networks_of(case, dit=case.config["dit"])
    units = [Guidance(scale=1.0), schedule, Euler(), Steps(seen)]
    window = one_window(case, units, networks, latents=case.inputs["latents"])
    window.steps = schedule.plan_steps(window)
    case.compare("loss", distillation_loss(window, case.inputs["input_latents"])[None], rtol=1e-4)
    case.compare("latents_after_step", torch.stack(seen), rtol=1e-4)
    case.compare("timesteps", torch.tensor([step.timestep for step in window.steps]), rtol=1e-4)
