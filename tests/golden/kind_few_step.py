"""Golden kind of few-step sampling without networks: lists of levels, and what solvers make of given predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from omniavatar.engine.flow_match import TIMESTEPS, add_noise, clean_latents, shifted_sigmas
from omniavatar.engine.scopes import Step
from omniavatar.units import Euler, Lcm, Schedule
from tests.golden.cases import Case, Recorded, kind


def vector(inputs: Recorded, key: str) -> Tensor:
    return torch.tensor(inputs[key])


@kind("few_step")
def few_step(case: Case) -> None:
    for index, record in enumerate(case.records):
        inputs = record["inputs"]
        name = f"{index}.{inputs['op']}"
        made = OPERATIONS[inputs["op"]](inputs)
        case.equal(f"{name}: results", sorted(made), sorted(record["expected"]))
        for key, value in made.items():
            expected = torch.tensor(record["expected"][key])
            case.close(f"{name}.{key}", value, expected, atol=TOLERANCES.get(key, 1e-5))


TOLERANCES = {"timesteps": 1e-3, "timesteps_bfloat16": 1e-3, "sigmas": 1e-6, "sigma": 1e-6}
"""By what is compared; vectors have another one."""


def scheduled(inputs: Recorded) -> list[float]:
    """The levels of the schedule unit, the 0 behind them included."""
    shift = inputs["shift"]
    if "denoising_step_list" in inputs:
        return Schedule(timesteps=inputs["denoising_step_list"], warp=True, shift=shift).levels()
    if "uniform_levels" in inputs:
        return Schedule(sigmas=inputs["uniform_levels"], warp=True, shift=shift).levels()
    return Schedule(steps=inputs["num_inference_steps"], shift=shift).levels()


def times(levels: Sequence[float]) -> Tensor:
    return torch.tensor(levels) * TIMESTEPS


def in_bfloat16(timesteps: Tensor) -> Tensor:
    return timesteps.bfloat16().float()


def warp(inputs: Recorded) -> dict[str, Tensor]:
    levels = scheduled(inputs)
    timesteps = times(levels if inputs["denoising_step_list"][-1] == 0 else levels[:-1])
    return {"timesteps": timesteps, "timesteps_bfloat16": in_bfloat16(timesteps)}


def own_table(inputs: Recorded) -> dict[str, Tensor]:
    levels = scheduled(inputs)[:-1]
    timesteps = times(levels)
    return {"timesteps": timesteps, "sigmas": torch.tensor(levels), "timesteps_bfloat16": in_bfloat16(timesteps)}


def convert(inputs: Recorded) -> dict[str, Tensor]:
    """The original looks levels up by the nearest time of a table."""
    table = shifted_sigmas(inputs["table"], inputs["shift"])
    timesteps = vector(inputs, "timesteps").double()
    sigma = table[(table * TIMESTEPS - timesteps[:, None]).abs().argmin(1)]
    x, level = vector(inputs, "x"), sigma[:, None]
    clean = clean_latents(x.double(), vector(inputs, "velocity").double(), level).float()
    return {
        "sigma": sigma,
        "x0": clean,
        "velocity_again": ((x.double() - clean.double()) / level).float(),
        "noised_x0": add_noise(clean, vector(inputs, "noise"), level.float()),
    }


def walked(solver: Any, inputs: Recorded, noises: Tensor | None = None) -> list[Tensor]:
    """The latents after every step, with given predictions."""
    latents, states = vector(inputs, "x"), []
    levels = scheduled(inputs)
    for index, (sigma, following) in enumerate(pairwise(levels)):
        step = SimpleNamespace(
            window=SimpleNamespace(latents=latents),
            velocity=vector(inputs, "velocities")[index],
            sigma=sigma,
            sigma_next=following,
            is_last=index == len(levels) - 2,
            noise=lambda key, index=index: cast(Tensor, noises)[index],
        )
        latents = solver.advance(cast(Step, step))
        states.append(latents)
    return states


def renoise(inputs: Recorded) -> dict[str, Tensor]:
    states = walked(Lcm(), inputs, vector(inputs, "noises"))
    befores = [vector(inputs, "x"), *states[:-1]]
    levels = scheduled(inputs)[:-1]
    cleans = [
        clean_latents(before, velocity, sigma)
        for before, velocity, sigma in zip(befores, vector(inputs, "velocities"), levels, strict=True)
    ]
    return {"x0": torch.stack(cleans), "x": torch.stack(states[:-1])}


def lcm(inputs: Recorded) -> dict[str, Tensor]:
    levels = scheduled(inputs)
    states = walked(Lcm(), inputs, vector(inputs, "noises"))
    return {"timesteps": times(levels[:-1]), "sigmas": torch.tensor(levels), "states": torch.stack(states)}


def euler_list(inputs: Recorded) -> dict[str, Tensor]:
    levels = scheduled(inputs)[:-1]
    states = walked(Euler(), inputs)
    return {"timesteps": times(levels), "sigmas": torch.tensor(levels), "states": torch.stack(states)}


def trajectory(inputs: Recorded) -> dict[str, Tensor]:
    levels = scheduled(inputs)
    kept = [*(levels[step] for step in inputs["kept"]), levels[-1]]
    return {"timesteps": times(kept), "sigmas": torch.tensor(kept)}


def diffusers_euler(inputs: Recorded) -> dict[str, Tensor]:
    schedule = Schedule(steps=inputs["num_inference_steps"], shift=inputs["shift"], spacing="diffusers")
    levels = schedule.levels()
    return {"timesteps": times(levels[:-1]), "sigmas": torch.tensor(levels)}


OPERATIONS: dict[str, Callable[[Recorded], dict[str, Tensor]]] = {
    "warp": warp,
    "own_table": own_table,
    "convert": convert,
    "renoise": renoise,
    "lcm": lcm,
    "euler_list": euler_list,
    "trajectory": trajectory,
    "diffusers_euler": diffusers_euler,
}
