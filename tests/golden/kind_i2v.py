"""Golden kinds of the package omniavatar-i2v: image transformer, CLIP image encoder, condition channels."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from omniavatar_i2v.clip import ClipImageEncoder
from omniavatar_i2v.image_dit import ImageDiT
from omniavatar_i2v.unit import ImageToVideo
from PIL import Image
from torch import Tensor, nn

from omniavatar.engine.scopes import Request
from omniavatar.engine.unit import PipelineUnit
from omniavatar.models.wan_dit import BlockInputs
from omniavatar.testing import GivenModels
from tests.golden.calls import first_window, one_call
from tests.golden.cases import Case, kind
from tests.golden.files import Networks, networks_of
from tests.golden.kind_vae import encoder_only

IMAGE_TOKENS = 257
"""Of one picture, which DiffSynth always takes as the image tokens."""


@kind("dit_i2v")
def run_dit_i2v(case: Case) -> None:
    """The prediction, with the tokens of a second picture among those of the text."""
    dit = image_dit(case)
    image = dit.embed_image(case.inputs["clip_feature"])
    case.compare("clip_emb_every_64th", image[:, ::64], rtol=2e-5)
    case.compare("noise_pred", with_image_tokens(dit, case, IMAGE_TOKENS), rtol=2e-5)
    if image.shape[1] == IMAGE_TOKENS:
        case.compare("noise_pred", by_the_unit(dit, case), rtol=2e-5)


@kind("dit_i2v_original")
def run_dit_i2v_original(case: Case) -> None:
    """The prediction as the original program and as DiffSynth make it."""
    dit = image_dit(case)
    case.equal("text_len", case.inputs["context"].shape[1], case.config["call"]["text_len"])
    case.compare("noise_pred_original", by_the_unit(dit, case), rtol=2e-5)
    case.compare("noise_pred_diffsynth", with_image_tokens(dit, case, IMAGE_TOKENS), rtol=2e-5)


def image_dit(case: Case) -> ImageDiT:
    """The network of a case with its weights."""
    return cast(ImageDiT, networks_of(case, dit=case.config["dit"])["dit"])


def by_the_unit(dit: ImageDiT, case: Case) -> Tensor:
    """The velocity of one call through the engine, which takes everything in front of the text for image tokens."""
    units, networks, values = given_image(case, {"dit": dit})
    return one_call(case, units, networks, **values).output


def given_image(case: Case, networks: Networks) -> tuple[list[PipelineUnit], Networks, dict[str, Any]]:
    """The unit, the networks and the values by which a call gets `y` and `clip_feature` of a case, if it has them.

    A transformer without image tokens makes nothing of the latter.
    """
    dit, features = networks["dit"], case.inputs.get("clip_feature")
    if "y" not in case.inputs:
        return [], networks, {}
    values = {"condition": case.inputs["y"], "image_features": None}
    if isinstance(dit, ImageDiT):
        values["image_features"] = features
        encoder = ClipImageEncoder(
            tokens=IMAGE_TOKENS, patch_size=1, dim=dit.clip_dim, out_dim=1, mlp_ratio=1, num_heads=1, num_layers=1
        )
        networks = {**networks, "image_encoder": encoder}
    return [ImageToVideo()], networks, values


def with_image_tokens(dit: ImageDiT, case: Case, image_tokens: int) -> Tensor:
    """The velocity if the blocks take this many of the tokens in front of the text for image tokens."""
    inputs = case.inputs
    x, grid = dit.embed_patches(torch.cat([inputs["latents"], inputs["y"]], dim=1))
    t_emb, t_mod = dit.embed_time(inputs["timestep"])
    tokens = torch.cat([dit.embed_image(inputs["clip_feature"]), dit.embed_text(inputs["context"])], dim=1)
    conditions = {"text": tokens[:, image_tokens:], "image": tokens[:, :image_tokens]}
    x = dit.run_blocks(x, BlockInputs(t_mod, dit.rope(grid), conditions))
    velocity: Tensor = dit.unembed(x, t_emb, grid)
    return velocity


@kind("clip")
def run_clip(case: Case) -> None:
    """Pictures of two shapes to tokens."""
    encoder = cast(ClipImageEncoder, networks_of(case, image_encoder=case.config["image_encoder"])["image_encoder"])
    first, second = encoder(case.inputs["image"]), encoder(case.inputs["image_2"])
    case.compare("clip_feature", first, rtol=2e-5)
    case.compare("clip_feature_two", torch.cat([first, second]), rtol=2e-5)


@kind("i2v_prep")
def run_i2v_prep(case: Case) -> None:
    """The condition channels that the unit makes of one picture and of two."""
    call = case.config["call"]
    models = GivenModels(vae=encoder_only(case), dit=nn.Identity())
    with tempfile.TemporaryDirectory() as folder:
        pictures = {}
        for name in ("image", "end_image"):
            pictures[name] = Path(folder) / f"{name}.png"
            Image.fromarray(case.inputs[f"{name}_u8"].numpy()).save(pictures[name])
        for expected, names in {"y_first": ("image",), "y_first_last": ("image", "end_image")}.items():
            inputs = {name: pictures[name] for name in names}
            request = Request(inputs, height=call["height"], width=call["width"], seconds=call["num_frames"] / 25)
            latents = torch.zeros(case.expected[expected][:, 4:].shape)
            with first_window([ImageToVideo()], models, request, latents) as window:
                case.compare(expected, window["condition"], rtol=2e-5)
