"""Golden kinds about how a noise prediction is asked for: branches in one batch, a window in pieces."""

from __future__ import annotations

from typing import cast

import torch
from omniavatar_fun.control import FunControl
from omniavatar_fun.reference import FunReference
from torch import Tensor

from omniavatar.models.wan_dit import WanDiT
from omniavatar.units import CfgMerge, SlidingWindow
from omniavatar.units.sliding_window import blend, pieces, ramp
from tests.golden.calls import one_call, one_step
from tests.golden.cases import Case, kind
from tests.golden.files import networks_of
from tests.golden.kind_i2v import given_image


@kind("cfg_merge")
def cfg_merge(case: Case) -> None:
    """Two branches by one call, and by two."""
    networks = networks_of(case, dit=case.config["dit"])
    units, networks, values = given_image(case, networks)
    if "fun_reference" in networks:
        units += [FunControl(), FunReference()]
        values["fun-reference.latent"] = case.inputs["reference_latents"]
    step = one_step(case, [*units, CfgMerge()], networks, **values)
    branches = [step.window.branch("positive"), step.window.branch("negative", drops=["text"])]
    dit = cast(WanDiT, networks["dit"])
    batches: list[int] = []
    contexts: list[Tensor] = []
    dit.patch_embedding.register_forward_hook(lambda layer, inputs, output: batches.append(len(output)))
    dit.text_embedding.register_forward_pre_hook(lambda layer, inputs: contexts.append(inputs[0]))
    positive, negative = step.predict(branches)
    case.equal("batches", batches, [2])
    case.compare("merged_context", torch.cat(contexts), rtol=2e-5)
    case.compare("positive", positive, rtol=2e-5)
    case.compare("negative", negative, rtol=2e-5)
    case.compare("guided", negative + case.config["call"]["cfg_scale"] * (positive - negative), rtol=2e-5)
    for branch, name in zip(branches, ("positive_separate", "negative_separate"), strict=True):
        case.compare(name, step.forward([branch]), rtol=2e-5)


@kind("sliding")
def sliding(case: Case) -> None:
    """Pieces, ramps and blending around a function of a piece."""
    call = case.config["call"]
    latents, y = case.inputs["latents"], case.inputs["y"]
    total = latents.shape[2]
    for name, (size, stride) in call["windows"].items():
        spans = pieces(total, size, stride)
        expected = case.take(f"window_start_len_{name}").tolist()
        case.equal(f"pieces {name}", [[span.start, span.stop - span.start] for span in spans], expected)
        parts = [
            0.5 * latents[:, :, span].cumsum(2) + torch.arange(span.stop - span.start)[:, None, None] + y[:, :3, span]
            for span in spans
        ]
        case.compare(f"out_{name}", blend(parts, spans, size - stride), rtol=1e-5)
    for length, is_first, is_last, overlap in call["masks"]:
        weights = ramp(length, overlap, rises=not is_first, falls=not is_last)
        case.compare(f"mask_{length}_{is_first}_{is_last}_{overlap}", weights, rtol=1e-5)


@kind("sliding_dit")
def sliding_dit(case: Case) -> None:
    """One prediction in pieces, and whole."""
    call = case.config["call"]
    units, networks, values = given_image(case, networks_of(case, dit=case.config["dit"]))
    for name, further in {
        "noise_pred": [SlidingWindow(size=call["sliding_window_size"], stride=call["sliding_window_stride"])],
        "noise_pred_one_window": [],
    }.items():
        case.compare(name, one_call(case, [*units, *further], networks, **values).output, rtol=2e-5)
