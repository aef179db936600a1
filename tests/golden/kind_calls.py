"""Golden kinds about how a noise prediction is asked for: branches in one batch, a window in pieces."""

from __future__ import annotations

import torch

from omniavatar.units import CfgMerge, SlidingWindow
from omniavatar.units.sliding_window import blend, pieces, ramp
from tests.golden.calls import one_call, one_step
from tests.golden.cases import Case, kind
from tests.golden.kind_i2v import given_image, image_dit
from tests.golden.kind_networks import wan_dit


@kind("cfg_merge")
def cfg_merge(case: Case) -> None:
    """Two branches by one call, and by two."""
    dit = image_dit(case)
    units, networks, values = given_image(case, dit)
    step = one_step(case, [*units, CfgMerge()], networks, **values)
    branches = [step.window.branch("positive"), step.window.branch("negative", drops=["text"])]
    calls: list[int] = []
    dit.patch_embedding.register_forward_hook(lambda layer, inputs, output: calls.append(len(output)))
    positive, negative = step.predict(branches)
    case.equal("batches", calls, [2])
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
        expected = case.expected[f"window_start_len_{name}"].tolist()
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
    networks = {"dit": wan_dit(case.config["dit"], case.weights)}
    for name, units in {
        "noise_pred": [SlidingWindow(size=call["sliding_window_size"], stride=call["sliding_window_stride"])],
        "noise_pred_one_window": [],
    }.items():
        case.compare(name, one_call(case, units, networks, condition=case.inputs["y"]).output, rtol=2e-5)
