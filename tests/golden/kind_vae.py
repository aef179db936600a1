"""Kinds of the Wan 2.1 VAE: `vae` (encode and decode, whole, in tiles, several lengths), `vae_stream` (in pieces)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from omniavatar.models.tiling import Tiling
from omniavatar.models.wan_vae import WanVAE
from tests.golden.cases import Case, Recorded, kind
from tests.golden.files import networks_of


@kind("vae")
def run_vae(case: Case) -> None:
    vae = wan_vae(case, case.config)
    tiling = tiling_of(case)
    operations: dict[str, Callable[..., Tensor]] = {"encode": vae.encode, "decode": vae.decode}
    operation = operations[case.config["op"]]
    source, target = ("video", "latent") if case.config["op"] == "encode" else ("latent", "video")
    for name, tensor in case.inputs.items():
        for latents_per_pass in (1, 2):
            result = operation(tensor, tiling, latents_per_pass)
            case.compare(name.replace(source, target), result, atol=2e-5)


@kind("vae_stream")
def run_vae_stream(case: Case) -> None:
    """A clip decoded block by block, the decoder's history kept between the calls."""
    vae, latents = wan_vae(case, case.config), case.inputs["latents"]
    case.compare("video", vae.decode(latents), atol=2e-5)
    for latents_per_pass in (1, 2, 4):
        history: dict[str, Tensor] = {}
        calls = [vae.decode(part, None, latents_per_pass, history) for part in latents.split(case.config["blocks"], 2)]
        case.compare("frames_of_call", torch.tensor([call.shape[2] for call in calls]), atol=0)
        case.compare("video_streamed", torch.cat(calls, dim=2), atol=2e-5)


def wan_vae(case: Case, config: Recorded, weights: Mapping[str, Tensor] | None = None) -> WanVAE:
    """The network of a case with its weights."""
    return cast(WanVAE, networks_of(case, weights=weights, vae=config)["vae"])


def encoder_only(case: Case) -> WanVAE:
    """The VAE of a case that holds the weights of its encoder alone; those of the decoder are zeros."""
    config: dict[str, Any] = case.config["vae"].plain()
    numbers = {key: config[key] for key in ("dim", "z_dim", "dim_mult", "num_res_blocks", "attn_scales")}
    statistics: dict[str, Any] = {name: [1.0] * config["z_dim"] for name in ("latent_mean", "latent_std")}
    whole = WanVAE(**numbers, **statistics, temporal_downsample=config["temperal_downsample"]).state_dict()
    others = {name: torch.zeros_like(whole[name]) for name in whole if name.startswith(("decoder.", "conv2."))}
    return wan_vae(case, case.config["vae"], {**others, **case.weights})


def tiling_of(case: Case) -> Tiling | None:
    """The tiles of a case; what it says of them has no meaning without tiles."""
    size, stride = (tuple(case.config.get(name, ())) for name in ("tile_size", "tile_stride"))
    return Tiling(size=size, stride=stride) if case.config["tiled"] else None
