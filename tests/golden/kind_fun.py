"""Golden kinds of the package omniavatar-fun: control video, reference picture and camera, through its units."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from einops import rearrange
from omniavatar_fun.camera import FunCamera
from omniavatar_fun.control import FunControl
from omniavatar_fun.reference import FunReference
from omniavatar_fun.trajectory import directed, folded_rays, plucker
from omniavatar_i2v.unit import ImageToVideo
from PIL import Image
from torch import Tensor, nn

from omniavatar.engine.scopes import Forward, Request, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.testing import GivenModels
from tests.golden.calls import first_window, one_call
from tests.golden.cases import Case, kind
from tests.golden.files import networks_of
from tests.golden.kind_i2v import given_image
from tests.golden.kind_vae import encoder_only
from tests.media.samples import write_lossless

FPS = 25


class Numbers(nn.Module):
    """A network of which only the numbers are asked."""

    def __init__(self, **numbers: int | None) -> None:
        super().__init__()
        vars(self).update(numbers)


class Tap(PipelineUnit):
    """Keeps the tokens that the first block sees."""

    name = "tap"

    @hookimpl(trylast=True)
    def before_block(self, forward: Forward, index: int) -> None:
        if index == 0:
            self.tokens = forward.x


@kind("ref_conv")
def run_ref_conv(case: Case) -> None:
    image, networks, given = given_image(case, networks_of(case, dit=case.config["dit"]))
    units: list[PipelineUnit] = [*image, FunControl()]
    without = one_call(case, units, networks, **given)
    case.compare("noise_pred_without_reference", without.output, rtol=2e-5)
    tap = Tap()
    given["fun-reference.latent"] = case.inputs["reference_latents"]
    forward = one_call(case, [*units, FunReference(), tap], networks, **given)
    case.compare("before_block_0", tap.tokens, rtol=2e-5)
    case.compare("noise_pred", forward.output, rtol=2e-5)


@kind("camera")
def run_camera(case: Case) -> None:
    image, networks, given = given_image(case, networks_of(case, dit=case.config["dit"]))
    rays = case.inputs["control_camera_latents_input"]
    _, _, frames, rows, columns = case.expected["adapter_out"].shape
    tokens = networks["fun_camera"](rays)
    made = rearrange(tokens, "b (f h w) d -> b d f h w", f=frames, h=rows, w=columns)
    case.compare("adapter_out", made, rtol=2e-5)
    units = [*image, FunCamera()]
    without = one_call(case, units, networks, **given)
    case.compare("noise_pred_without_camera", without.output, rtol=2e-5)
    with mock.patch("omniavatar_fun.camera.folded_rays", return_value=rays.split(1, dim=2)):
        forward = one_call(case, units, networks, inputs={"camera": "Left"}, **given)
    case.compare("noise_pred", forward.output, rtol=2e-5)


@kind("camera_plucker")
def run_camera_plucker(case: Case) -> None:
    call = case.config["call"]
    size = call["height"], call["width"]
    for direction in call["directions"]:
        entries = directed(direction, torch.arange(call["length"]), call["speed"], call["origin"])
        case.compare(f"coordinates_{direction}", entries, rtol=1e-5)
        case.compare(f"plucker_{direction}", plucker(entries, size), rtol=1e-5)


@kind("camera_prep")
def run_camera_prep(case: Case) -> None:
    call = case.config["call"]
    with tempfile.TemporaryDirectory() as folder:
        image = picture(Path(folder) / "image.png", case.inputs["image_u8"])
        inputs = {"image": image, "camera": call["direction"], "camera_speed": call["speed"]}
        for in_dim in call["in_dims"]:
            with prepared(case, [ImageToVideo(), FunCamera()], inputs, in_dim=in_dim) as window:
                case.compare(f"y_in_dim_{in_dim}", window["condition"], rtol=2e-5)
                rays = torch.cat(list(folded_rays(window["fun-camera.entries"], window.job.size)), dim=2)
    case.compare("control_camera_latents_input", rays, rtol=2e-5)


@kind("control_prep")
def run_control_prep(case: Case) -> None:
    """The given condition is noise, also where it should be a mask, so it is taken as DiffSynth does."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = write_lossless(folder / "control.mkv", case.inputs["control_u8"].numpy())
        control = {"control_video": video}
        for in_dim in case.config["call"]["in_dims"]:
            with prepared(case, [ImageToVideo(), FunControl()], control, in_dim=in_dim, clip_dim=1280) as alone:
                case.compare(f"y_alone_in_dim_{in_dim}", alone["condition"], rtol=2e-5)
                features: Tensor = alone["image_features"]
            units = [FunControl(unknown="grey")]
            image = {"condition": case.inputs["y"], "image_features": case.inputs["clip_feature"]}
            with prepared(case, units, control, in_dim=in_dim, **image) as window:
                case.compare(f"y_with_image_in_dim_{in_dim}", window["condition"], rtol=2e-5)
        case.compare("clip_feature_abs_sum_alone", features.abs().sum()[None], atol=0)
        case.equal("clip shape", list(features.shape), case.take("clip_feature_shape_alone").tolist())
        reference = {"reference_image": picture(folder / "reference.png", case.inputs["reference_u8"])}
        with prepared(case, [FunReference()], reference, image_features=None) as window:
            case.compare("reference_latents", window["fun-reference.latent"], rtol=2e-5)


def picture(path: Path, pixels: Tensor) -> Path:
    """A file of a picture (h w 3) uint8."""
    Image.fromarray(pixels.numpy()).save(path)
    return path


def prepared(
    case: Case,
    units: Sequence[PipelineUnit],
    inputs: dict[str, Any],
    *,
    in_dim: int = 36,
    clip_dim: int | None = None,
    **given: Any,
) -> AbstractContextManager[Window]:
    """The window of a job with these inputs, once the units have prepared it."""
    call = case.config["call"]
    dit = Numbers(dim=1, in_dim=in_dim, clip_dim=clip_dim)
    networks = {"vae": encoder_only(case), "image_encoder": Numbers(dim=1280, tokens=257), "dit": dit}
    models = GivenModels(**networks, fun_camera=dit, fun_reference=dit)
    request = Request(inputs, height=call["height"], width=call["width"], seconds=call["num_frames"] / FPS)
    return first_window(units, models, request, torch.zeros(case.inputs["latents"].shape), **given)
