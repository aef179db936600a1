"""Golden kinds of Wan 2.2 TI2V: its VAE, one transformer call with a time step for every token, the whole loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from omniavatar_ti2v.unit import Ti2v
from omniavatar_ti2v.wan_vae38 import WanVAE38
from torch import Tensor

from omniavatar.checkpoints import Registry
from omniavatar.engine.scopes import Forward, Request, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.models.wan_dit import PerToken
from omniavatar.plugins import discover
from omniavatar.testing import LatentFormat
from omniavatar.testing.recorder import SeenWindow
from omniavatar.units import Euler, FixedFrames, Guidance, Schedule, Transformer
from tests.golden.cases import Case, kind
from tests.golden.kind_engine import Given, GivenPrompt, generate
from tests.golden.kind_networks import loaded, wan_dit


@kind("vae38")
def run_vae38(case: Case) -> None:
    """Encode and decode; the case leaves out the published statistics of the latents."""
    vae = wan_vae38(case)
    for frames in (1, 5):
        case.compare(f"latents_video_T{frames}", vae.encode(case.inputs[f"video_T{frames}"]), rtol=1e-4)
    for frames in (1, 2):
        latents = case.inputs[f"latents_T{frames}"]
        case.compare(f"video_latents_T{frames}", vae.decode(latents), rtol=1e-4)
        unclamped = torch.cat(list(vae._decode_passes(latents, 1)), dim=2)
        case.compare(f"raw_latents_T{frames}", unclamped, rtol=1e-4)


def wan_vae38(case: Case) -> WanVAE38:
    """The network of a case with its weights."""
    config = case.config["vae"]
    (row,) = (row for row in Registry(discover().checkpoint_tables()).rows if row.name == "Wan2.2-VAE")
    published = row.components["vae"].config
    return loaded(
        WanVAE38(
            dim=config["dim"],
            dec_dim=config["dec_dim"],
            z_dim=config["z_dim"],
            dim_mult=config["dim_mult"],
            num_res_blocks=config["num_res_blocks"],
            temporal_downsample=config["temperal_downsample"],
            patch=published["patch"],
            latent_mean=published["latent_mean"],
            latent_std=published["latent_std"],
        ),
        case.weights,
    )


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


class Latents48(LatentFormat):
    """What the engine asks of the 2.2 VAE before it makes noise."""

    spatial_factor = 16


def denoised(case: Case, given: Given, *units: PipelineUnit) -> Look:
    """Run a case's transformer on given noise and texts, in one window."""
    look, latents = Look(), given.given_noise[0]
    height, width = (side * 16 for side in latents.shape[-2:])
    everything = [look, given, GivenPrompt(), GivenPicture(), FixedFrames(), *units, Transformer()]
    dit = wan_dit(case.config["dit"], case.weights)
    look.windows = generate(everything, Request(height=height, width=width), dit=dit, vae=Latents48())
    return look


def frames_of(latents: Tensor) -> int:
    """The frames of a video with these latents."""
    return 4 * latents.shape[2] - 3


@kind("dit_ti2v")
def run_dit_ti2v(case: Case) -> None:
    """One call with the first frame given, one without."""
    latents, context = case.inputs["latents"], case.inputs["context"]
    for name, picture in (("noise_pred", latents[:, :, :1]), ("noise_pred_without_image", None)):
        given = Given([latents], frames_of(latents), prompt_embedding=context, image_latent=picture)
        look = denoised(case, given, Guidance(scale=1), OneStep(case.inputs["timestep"].item()))
        case.compare(name, look.steps[0].velocity, rtol=2e-5)
        if picture is not None:
            time = look.forwards[0].time
            assert isinstance(time, PerToken)
            case.compare("t_emb", time.values, rtol=2e-5)


@kind("ti2v_loop")
def run_ti2v_loop(case: Case) -> None:
    """Guided steps with the first frame held; between a step and its end the reference has restored it, we have not."""
    inputs, call = case.inputs, case.config["call"]
    given = Given(
        [inputs["noise"]],
        call["num_frames"],
        prompt_embedding=inputs["context"],
        negative_embedding=inputs["context_negative"],
        image_latent=inputs["first_frame_latents"],
    )
    look = denoised(
        case,
        given,
        Guidance(scale=call["cfg_scale"]),
        Schedule(steps=call["steps"], shift=call["sigma_shift"]),
        Euler(),
    )
    case.compare("timesteps", torch.tensor([step.timestep for step in look.steps]), rtol=1e-6)
    case.compare("sigmas", torch.tensor([step.sigma for step in look.steps]), rtol=1e-6)
    case.compare("guided_pred", torch.stack([step.velocity for step in look.steps]), rtol=1e-4)
    case.compare("stepped_before_restore", torch.stack(look.latents), rtol=1e-4)
    case.compare("latents_final", look.windows[0].latents, rtol=1e-4)
