"""Golden kinds `vace` (hints and one transformer call) and `vace_prep` (files to context, order of the noise)."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from omniavatar_vace.network import Vace
from omniavatar_vace.unit import VaceUnit, hints
from PIL import Image
from torch import Tensor, nn

from omniavatar.engine.scopes import Forward, Request, Window
from omniavatar.hookspecs import hookimpl
from omniavatar.models.wan_vae import WanVAE
from omniavatar.testing import GivenModels
from tests.golden.calls import first_window, one_call
from tests.golden.cases import Case, kind
from tests.golden.kind_networks import loaded, wan_dit
from tests.golden.kind_vae import LATENT_MEAN, LATENT_STD
from tests.media.samples import write_lossless

FPS = 25


class Watched(VaceUnit):
    """The unit, keeping the hints of the call."""

    @hookimpl(tryfirst=True)
    def before_block(self, forward: Forward, index: int) -> None:
        super().before_block(forward, index)
        if index == 0 and forward["vace_context"] is not None:
            self.hints = torch.stack(list(hints(forward)))


@kind("vace")
def run_vace(case: Case) -> None:
    branch = {key: value for key, value in case.weights.items() if key.startswith("vace_")}
    base = {key: value for key, value in case.weights.items() if key not in branch}
    networks = {
        "dit": wan_dit(case.config["dit"], base),
        "vace": loaded(Vace(**branch_numbers(case.config["vace"])), branch),
    }
    case.compare("noise_pred_without", one_call(case, [VaceUnit()], networks).output, rtol=2e-5)
    for scale in case.config["call"]["vace_scales"]:
        unit = Watched(scale=scale)
        forward = one_call(case, [unit], networks, vace_context=case.inputs["vace_context"])
        case.compare("hints", unit.hints, rtol=2e-5)
        case.compare(f"noise_pred_scale_{scale}", forward.output, rtol=2e-5)


def branch_numbers(config: dict[str, Any]) -> dict[str, Any]:
    """The constructor's numbers for a configuration that lists the base blocks."""
    layers = config["vace_layers"]
    numbers = {key: config[key] for key in ("dim", "ffn_dim", "num_heads", "eps", "patch_size")}
    return {**numbers, "in_dim": config["vace_in_dim"], "num_layers": len(layers), "every": layers[1] - layers[0]}


@kind("vace_prep")
def run_vace_prep(case: Case) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files: dict[str, Any] = {
            "control_video": write_lossless(folder / "video.mkv", case.inputs["video_u8"].numpy()),
            "control_mask": write_lossless(folder / "mask.mkv", case.inputs["mask_u8"].numpy()),
        }
        pictures = [folder / f"{index}.png" for index in range(2)]
        for picture, path in zip(case.inputs["reference_u8"], pictures, strict=True):
            Image.fromarray(picture.numpy()).save(path)
        for variant in case.config["call"]["variants"]:
            inputs = {key: path for key, path in files.items() if key.removeprefix("control_") in variant}
            if "ref" in variant:
                inputs["reference_images"] = pictures if "two_refs" in variant else pictures[0]
            with prepared(case, inputs) as window:
                case.compare(variant, window["vace_context"], rtol=2e-5)
                if variant == "ref_only":
                    with mock.patch.object(torch, "randn", return_value=case.inputs["noise"]):
                        case.compare("noise_with_1_ref", window.loop.noise(0, window.span), rtol=2e-5)


def prepared(case: Case, inputs: dict[str, Any]) -> AbstractContextManager[Window]:
    """The first window of a job with these inputs."""
    call = case.config["call"]
    models = GivenModels(vae=encoder(case.config["vae"], case.weights), dit=nn.Identity(), vace=nn.Identity())
    seconds = call["num_frames"] / FPS
    request = Request(inputs, height=call["height"], width=call["width"], seconds=seconds, fps=FPS)
    return first_window([VaceUnit()], models, request, torch.empty(0))


def encoder(config: dict[str, Any], weights: dict[str, Tensor]) -> WanVAE:
    """The VAE of a case that holds the weights of its encoder only."""
    numbers = {key: config[key] for key in ("dim", "z_dim", "dim_mult", "num_res_blocks", "attn_scales")}
    vae = WanVAE(
        **numbers,
        temporal_downsample=config["temperal_downsample"],
        latent_mean=LATENT_MEAN,
        latent_std=LATENT_STD,
    )
    rest = {key: value for key, value in vae.state_dict().items() if key.startswith(("decoder.", "conv2."))}
    return loaded(vae, {**rest, **weights})
