"""Kinds of the Wan 2.1 VAE: `vae` (encode and decode, whole, in tiles, several lengths), `vae_stream` (in pieces)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omniavatar.models.tiling import Tiling
from omniavatar.models.wan_vae import WanVAE
from tests.golden.cases import Case, kind

# The published statistics of the 16 latent channels; the case files leave them out.
LATENT_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENT_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


@kind("vae")
def run_vae(case: Case) -> None:
    vae = wan_vae(case.config, case.weights)
    tiling = tiling_of(case)
    source, target = ("video", "latent") if case.config["op"] == "encode" else ("latent", "video")
    operation = vae.encode if case.config["op"] == "encode" else vae.decode
    for name, tensor in case.inputs.items():
        for latents_per_pass in (1, 2):
            result = operation(tensor, tiling, latents_per_pass)
            case.compare(name.replace(source, target), result, atol=2e-5)


@kind("vae_stream")
def run_vae_stream(case: Case) -> None:
    """A clip decoded block by block, the decoder's history kept between the calls."""
    vae, latents = wan_vae(case.config, case.weights), case.inputs["latents"]
    case.compare("video", vae.decode(latents), atol=2e-5)
    for latents_per_pass in (1, 2, 4):
        history: dict[str, Tensor] = {}
        calls = [vae.decode(part, None, latents_per_pass, history) for part in latents.split(case.config["blocks"], 2)]
        case.compare("frames_of_call", torch.tensor([call.shape[2] for call in calls]), atol=0)
        case.compare("video_streamed", torch.cat(calls, dim=2), atol=2e-5)


def wan_vae(config: dict[str, Any], weights: dict[str, Tensor]) -> WanVAE:
    """The network of a case with its weights."""
    vae = WanVAE(
        dim=config["dim"],
        z_dim=config["z_dim"],
        dim_mult=config["dim_mult"],
        num_res_blocks=config["num_res_blocks"],
        attn_scales=(),
        temporal_downsample=config["temperal_downsample"],
        latent_mean=LATENT_MEAN,
        latent_std=LATENT_STD,
    )
    vae.load_state_dict(weights)
    return vae.eval()


def tiling_of(case: Case) -> Tiling | None:
    if not case.config["tiled"]:
        return None
    rows, columns = case.config["tile_size"]
    row_stride, column_stride = case.config["tile_stride"]
    return Tiling(size=(rows, columns), stride=(row_stride, column_stride))
