"""Golden kinds of Wan 2.2 Animate: the transformer with pose and face, and what the inputs become."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange
from omniavatar_animate.adapter import AnimateAdapter
from omniavatar_animate.image import AnimateImage
from omniavatar_animate.motion import AnimateMotion, face_of
from PIL import Image
from torch import Tensor, nn

from omniavatar.engine.scopes import Forward, Job, Request
from omniavatar.engine.unit import PipelineUnit, UnitInputs
from omniavatar.hookspecs import hookimpl
from omniavatar.testing import GivenModels
from tests.golden.calls import first_window, one_call
from tests.golden.cases import Case, kind
from tests.golden.files import Networks, networks_of
from tests.golden.kind_i2v import given_image
from tests.golden.kind_vae import encoder_only
from tests.media.samples import write_lossless

BFLOAT16 = 2.0**-8
"""The rounding of the reference's condition channels."""


class GivenImage(AnimateImage):
    """The unit with a condition in place of a picture."""

    class Inputs(UnitInputs):
        """None."""

    plan_size = None  # type: ignore[assignment]
    plan_length = None  # type: ignore[assignment]
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
    sections = {"dit": case.config["dit"], "animate_adapter": case.config["animate_adapter"]}
    _, networks, given = given_image(case, networks_of(case, **sections))
    adapter = cast(AnimateAdapter, networks["animate_adapter"])
    pictures, size = case.inputs["face_pixel_values"], case.config["call"]
    case.equal("face_size", [adapter.face_size] * 3, [size["face_size"], *pictures.shape[-2:]])
    case.equal("face_frames", pictures.shape[2], size["face_frames"])
    case.compare("face_motion", adapter.codes(pictures)[0], rtol=5e-5)
    faces = adapter.face(pictures)
    case.compare("motion_vec", faces, rtol=5e-5)
    pose = case.inputs["pose_latents"]
    taps = call(case, networks, given, pose, faces)
    for name in taps.keys() & case.expected.keys():
        case.compare(name, taps[name], rtol=5e-5)
    black = call(case, networks, given, pose, adapter.face(torch.full_like(pictures, -1.0)))
    case.compare("noise_pred_negative_face", black["noise_pred"], rtol=5e-5)
    case.compare("noise_pred_without", call(case, networks, given, None, None)["noise_pred"], rtol=5e-5)


def call(
    case: Case, networks: Networks, given: dict[str, Any], pose: Tensor | None, faces: Tensor | None
) -> dict[str, Tensor]:
    """What one call through the engine makes, and the tokens on the way."""
    taps = Taps()
    units: list[PipelineUnit] = [GivenImage(), AnimateMotion(), taps]
    forward = one_call(case, units, networks, **given, pose_latents=pose, face_tokens=faces)
    return {**taps.taps, "noise_pred": forward.output}


class Pictures(nn.Module):
    """An adapter that hands on the pictures of the face."""

    def __init__(self, face_size: int) -> None:
        super().__init__()
        self.face_size = face_size

    def face(self, pictures: Tensor) -> Tensor:
        return pictures


@kind("animate_prep")
def run_animate_prep(case: Case) -> None:
    """Condition channels of a replacement, latents of the poses, the face and the black one."""
    size = case.config["call"]
    models = GivenModels(
        vae=encoder_only(case), dit=nn.Identity(), animate_adapter=Pictures(case.inputs["face_u8"].shape[1])
    )
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
