"""Golden kinds of Wan 2.2 TI2V: its VAE, one transformer call with a time step for every token, the whole loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from omniavatar_ti2v.unit import Ti2v
from omniavatar_ti2v.wan_vae38 import WanVAE38
from torch import Tensor

from omniavatar.engine.scopes import Forward, Request, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.models.wan_dit import PerToken
from omniavatar.testing import LatentFormat
from omniavatar.testing.recorder import SeenWindow
from omniavatar.units import Euler, FixedFrames, Guidance, Schedule, Transformer
from tests.golden.cases import Case, kind
from tests.golden.files import networks_of
from tests.golden.kind_engine import Given, GivenPrompt, generate


@kind("vae38")
def run_vae38(case: Case) -> None:
    """Encode and decode; the case leaves out the published statistics of the latents."""
    vae = cast(WanVAE38, networks_of(case, vae=case.config["vae"])["vae"])
    case.equal("attn_scales", [], case.config["vae"]["attn_scales"])
    for name, tensor in case.inputs.items():
        if name.startswith("video_"):
            case.compare(f"latents_{name}", vae.encode(tensor), rtol=1e-4)
            continue
        case.compare(f"video_{name}", vae.decode(tensor), rtol=1e-4)
        case.compare(f"raw_{name}", torch.cat(list(vae._decode_passes(tensor, 1)), dim=2), rtol=1e-4)


class GivenPicture(Ti2v):
    """The ti2v unit with a latent in place of a picture."""

    begin_job = None  # type: ignore[assignment]


class OneStep(PipelineUnit):
    """A sampler of one step with the time of a case."""

    name = "one-step"

    def __init__(self, timestep: float) -> None:
        super().__init__()
        self.timestep = timestep

    @hookimpl
    def plan_steps(self, window: Window) -> Sequence[Step]:
        return [Step(window, 0, self.timestep, sigma=1.0, sigma_next=0.0)]

    @hookimpl
    def advance(self, step: Step) -> Tensor:
        return step.window.latents


class Look(PipelineUnit):
    """Keeps what every step predicted and what the sampler made of it."""

    name = "look"

    def __init__(self) -> None:
        super().__init__()
        self.forwards: list[Forward] = []
        self.steps: list[Step] = []
        self.latents: list[Tensor] = []
        self.windows: list[SeenWindow] = []

    @hookimpl(trylast=True)
    def unembed(self, forward: Forward) -> None:
        self.forwards.append(forward)

    @hookimpl(tryfirst=True)
    def after_step(self, step: Step) -> None:
        self.steps.append(step)
        self.latents.append(step.window.latents.clone())


def denoised(case: Case, given: Given, *units: PipelineUnit, factor: int = 16) -> Look:
    """Run a case's transformer on given noise and texts, in one window; factor: pixels of a latent's side."""
    look, latents, vae = Look(), given.given_noise[0], LatentFormat()
    vae.spatial_factor = factor
    height, width = (side * factor for side in latents.shape[-2:])
    everything: list[PipelineUnit] = [look, given, GivenPrompt(), GivenPicture(), FixedFrames(), *units, Transformer()]
    dit = networks_of(case, dit=case.config["dit"])["dit"]
    look.windows = generate(everything, Request(height=height, width=width), dit=dit, vae=vae)
    return look


def is_fused(case: Case) -> bool:
    """Whether a first frame is part of the latents, with a time step of its own; each of three keys can deny it."""
    key = "fuse_vae_embedding_in_latents"
    dit, call = case.config["dit"], case.config["call"]
    return all([dit.get(key, False), dit.get("seperated_timestep", False), call.get(key, True)])


def frames_of(latents: Tensor) -> int:
    """The frames of a video with these latents."""
    return 4 * latents.shape[2] - 3


@kind("dit_ti2v")
def run_dit_ti2v(case: Case) -> None:
    """One call with the first frame given, one without."""
    latents, context = case.inputs["latents"], case.inputs["context"]
    first = latents[:, :, :1] if is_fused(case) else None
    for name, picture in (("noise_pred", first), ("noise_pred_without_image", None)):
        given = Given([latents], frames_of(latents), prompt_embedding=context, image_latent=picture)
        look = denoised(case, given, Guidance(scale=1), OneStep(case.inputs["timestep"].item()))
        case.compare(name, look.steps[0].velocity, rtol=2e-5)
        if name == "noise_pred":
            time = look.forwards[0].time
            case.compare("t_emb", time.values if isinstance(time, PerToken) else time, rtol=2e-5)


@kind("ti2v_loop")
def run_ti2v_loop(case: Case) -> None:
    """Guided steps with the first frame held; between a step and its end the reference has restored it, we have not."""
    inputs, call = case.inputs, case.config["call"]
    given = Given(
        [inputs["noise"]],
        call["num_frames"],
        prompt_embedding=inputs["context"],
        negative_embedding=inputs["context_negative"],
        image_latent=inputs["first_frame_latents"] if is_fused(case) else None,
    )
    factor = call["spatial_factor"]
    case.equal("size", [factor * side for side in inputs["noise"].shape[-2:]], [call["height"], call["width"]])
    case.equal("frames", frames_of(inputs["noise"]), call["num_frames"])
    look = denoised(
        case,
        given,
        Guidance(scale=call["cfg_scale"]),
        Schedule(steps=call["steps"], shift=call["sigma_shift"]),
        Euler(),
        factor=factor,
    )
    case.compare("timesteps", torch.tensor([step.timestep for step in look.steps]), rtol=1e-6)
    case.compare("sigmas", torch.tensor([step.sigma for step in look.steps]), rtol=1e-6)
    case.compare("guided_pred", torch.stack([step.velocity for step in look.steps]), rtol=1e-4)
    case.compare("stepped_before_restore", torch.stack(look.latents), rtol=1e-4)
    case.compare("latents_final", look.windows[0].latents, rtol=1e-4)
