"""Golden kind `moe`: which of two experts denoises each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from omniavatar_moe.unit import Moe
from torch import Tensor

from omniavatar.engine.scopes import Request, Step
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.roles import companion_of
from omniavatar.testing import FakeDiT, FakeVAE
from omniavatar.units import Euler, Transformer
from tests.golden.cases import Case, kind
from tests.golden.kind_engine import Given, GivenSchedule, generate


class Roles(PipelineUnit):
    """A guidance rule that predicts nothing and keeps the time and the network's role of every step."""

    name = "roles"

    def __init__(self) -> None:
        super().__init__()
        self.timesteps: list[float] = []
        self.worked: list[str] = []

    @hookimpl
    def guide(self, step: Step) -> Tensor:
        self.timesteps.append(float(step.timestep))
        self.worked.append(step.expert)
        return torch.zeros_like(step.window.latents)


@kind("moe")
def run_moe(case: Case) -> None:
    for index, record in enumerate(case.records):
        inputs, expected = record["inputs"], record["expected"]
        roles = experts_of(inputs)
        experts, timesteps = roles.worked, torch.tensor(roles.timesteps)
        case.close(f"{index}.timesteps", timesteps, torch.tensor(expected["timesteps"]), atol=1e-3)
        case.equal(f"{index}.expert", experts, expected["expert"])
        first = experts.index("dit2") if "dit2" in experts else None
        case.equal(f"{index}.first_step_of_second_expert", first, expected["first_step_of_second_expert"])
        branches = [companion_of("vace", "dit", expert) if inputs["has_vace"] else None for expert in experts]
        case.equal(f"{index}.vace", branches, expected["vace"])


def experts_of(inputs: Mapping[str, Any]) -> Roles:
    """Denoise nothing on the schedule of a record."""
    roles, noise = Roles(), torch.zeros(1, 4, 1, 2, 2)
    text = {"prompt_embedding": None, "negative_embedding": None}
    units = [
        Given([noise], 1, **text),
        roles,
        GivenSchedule(
            steps=inputs["num_inference_steps"], shift=inputs["sigma_shift"], strength=inputs["denoising_strength"]
        ),
        Euler(),
    ]
    networks = {"dit": FakeDiT(), "vae": FakeVAE()}
    moe = Moe(boundary=inputs["boundary"])
    if inputs["has_second_expert"]:
        units.append(moe)
        networks["dit2"] = FakeDiT()
    generate([*units, Transformer()], Request(height=16, width=16), **networks)
    return roles
