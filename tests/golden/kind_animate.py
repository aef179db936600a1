"""Golden kinds of Wan 2.2 Animate: the transformer with pose and face, and what the inputs become."""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from omniavatar_animate.adapter import AnimateAdapter
from omniavatar_animate.image import AnimateImage
from omniavatar_animate.motion import AnimateMotion, face_of
from omniavatar_i2v.clip import ClipImageEncoder
from omniavatar_i2v.image_dit import ImageDiT
from PIL import Image
from torch import Tensor, nn

from omniavatar.engine.scopes import Forward, Job, Request
from omniavatar.engine.unit import PipelineUnit, UnitInputs
from omniavatar.hookspecs import hookimpl
from omniavatar.testing import GivenModels
from tests.golden.calls import first_window, one_call
from tests.golden.cases import Case, kind
from tests.golden.kind_i2v import IMAGE_TOKENS, encoder_only
from tests.golden.kind_networks import loaded
from tests.media.samples import write_lossless

ADAPTER_KEYS = ("pose_patch_embedding.", "motion_encoder.", "face_encoder.", "face_adapter.")
BFLOAT16 = 2.0**-8
"""The rounding of the reference's condition channels."""


class GivenImage(AnimateImage):
    """The unit with a condition in place of a picture."""

    class Inputs(UnitInputs):
        """None."""

    begin_window = None  # type: ignore[assignment]

    @hookimpl
    def begin_job(self, job: Job) -> None:
        job.leading += 1


class Taps(PipelineUnit):
    """Keeps the tokens of one call."""

    name = "taps"

    def __init__(self) -> None:
        super().__init__()
        self.taps: dict[str, Tensor] = {}

    @hookimpl(trylast=True)
    def embed(self, forward: Forward) -> None:
        frames, rows, columns = forward.grid
        self.taps["after_pose"] = rearrange(forward.x, "b (f h w) d -> b d f h w", f=frames, h=rows, w=columns)

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        self.taps[f"before_block_{index}"] = forward.x

    @hookimpl(tryfirst=True)
    def after_block(self, forward: Forward, index: int) -> None:
        self.taps[f"block_{index}_out"] = forward.x


@kind("animate")
def run_animate(case: Case) -> None:
    """Codes and tokens of a face, and one call with it, with a black one, and without pose and face."""
    adapter, dit = networks(case)
    pictures = case.inputs["face_pixel_values"]
    case.compare("face_motion", adapter.codes(pictures)[0], rtol=5e-5)
    faces = adapter.face(pictures)
    case.compare("motion_vec", faces, rtol=5e-5)
    pose = case.inputs["pose_latents"]
    taps = call(case, adapter, dit, pose, faces)
    for name in ("after_pose", "block_0_out", "before_block_1", "block_5_out", "noise_pred"):
        case.compare(name, taps[name], rtol=5e-5)
    black = call(case, adapter, dit, pose, adapter.face(torch.full_like(pictures, -1.0)))
    case.compare("noise_pred_negative_face", black["noise_pred"], rtol=5e-5)
    case.compare("noise_pred_without", call(case, adapter, dit, None, None)["noise_pred"], rtol=5e-5)


def networks(case: Case) -> tuple[AnimateAdapter, ImageDiT]:
    """The two networks that a case's weights are of."""
    config = case.config["animate_adapter"]
    numbers = {key: config[key] for key in inspect.signature(AnimateAdapter).parameters if key in config}
    own = {key: value for key, value in case.weights.items() if key.startswith(ADAPTER_KEYS)}
    base = case.config["dit"]
    adapter = AnimateAdapter(**numbers, patch_size=base["patch_size"])
    dit = ImageDiT(**{key: base[key] for key in inspect.signature(ImageDiT).parameters if key in base})
    return loaded(adapter, own), loaded(dit, {key: case.weights[key] for key in case.weights if key not in own})


def call(
    case: Case, adapter: AnimateAdapter, dit: ImageDiT, pose: Tensor | None, faces: Tensor | None
) -> dict[str, Tensor]:
    """What one call through the engine makes, and the tokens on the way."""
    taps = Taps()
    encoder = ClipImageEncoder(
        tokens=IMAGE_TOKENS, patch_size=1, dim=dit.clip_dim, out_dim=1, mlp_ratio=1, num_heads=1, num_layers=1
    )
    given: dict[str, Any] = {"condition": case.inputs["y"], "image_features": case.inputs["clip_feature"]}
    forward = one_call(
        case,
        [GivenImage(), AnimateMotion(), taps],
        {"dit": dit, "animate_adapter": adapter, "image_encoder": encoder},
        **given,
        pose_latents=pose,
        face_tokens=faces,
    )
    return {**taps.taps, "noise_pred": forward.output}


class Pictures(nn.Module):
    """An adapter that hands on the pictures of the face."""

    face_size = 16

    def face(self, pictures: Tensor) -> Tensor:
        return pictures


@kind("animate_prep")
def run_animate_prep(case: Case) -> None:
    """Condition channels of a replacement, latents of the poses, the face and the black one."""
    size = case.config["call"]
    models = GivenModels(vae=encoder_only(case), dit=nn.Identity(), animate_adapter=Pictures())
    units = (AnimateImage(), AnimateMotion())
    with tempfile.TemporaryDirectory() as folder:
        request = Request(files(case, Path(folder)), height=size["height"], width=size["width"])
        with first_window(units, models, request, torch.empty(0)) as window:
            case.equal("frames", window.job.length, size["num_frames"])
            case.compare("y", window["condition"], rtol=BFLOAT16)
            case.compare("pose_latents", window["pose_latents"], rtol=1e-4)
            case.compare("face_positive", face_of(window.branch("positive")), rtol=1e-4)
            case.compare("face_negative", face_of(window.branch("negative", drops=["face"])), rtol=1e-4)


def files(case: Case, folder: Path) -> dict[str, Path]:
    """The inputs of a case as files, by the names that the units have for them."""
    found = {"image": folder / "image.png"}
    Image.fromarray(case.inputs["image_u8"].numpy()).save(found["image"])
    for name in ("pose", "face", "background", "mask"):
        frames: np.ndarray = case.inputs[f"{name}_u8"].numpy()
        found[name] = write_lossless(folder / f"{name}.mkv", frames)
    return found
