"""Golden kinds `vace` (hints and one transformer call) and `vace_prep` (files to context, order of the noise)."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from omniavatar_vace.unit import VaceUnit, hints
from PIL import Image
from torch import nn

from omniavatar.engine.scopes import Forward, Request, Window
from omniavatar.hookspecs import hookimpl
from omniavatar.testing import GivenModels
from tests.golden.calls import first_window, one_call
from tests.golden.cases import Case, kind
from tests.golden.files import networks_of
from tests.golden.kind_vae import encoder_only
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
    networks = networks_of(case, dit=case.config["dit"], vace=case.config["vace"])
    case.compare("noise_pred_without", one_call(case, [VaceUnit()], networks).output, rtol=2e-5)
    for scale in case.config["call"]["vace_scales"]:
        unit = Watched(scale=scale)
        forward = one_call(case, [unit], networks, vace_context=case.inputs["vace_context"])
        case.compare("hints", unit.hints, rtol=2e-5)
        case.compare(f"noise_pred_scale_{scale}", forward.output, rtol=2e-5)


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
    models = GivenModels(vae=encoder_only(case), dit=nn.Identity(), vace=nn.Identity())
    seconds = call["num_frames"] / FPS
    request = Request(inputs, height=call["height"], width=call["width"], seconds=seconds, fps=FPS)
    return first_window([VaceUnit()], models, request, torch.empty(0))
