"""Golden kinds of the engine and its units: schedule, windows, prompt, caches, denoising, the whole program."""

from __future__ import annotations

import math
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import astuple
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from omniavatar.checkpoints.lora import read_lora
from omniavatar.engine import flow_match
from omniavatar.engine.engine import Engine
from omniavatar.engine.outline import Length
from omniavatar.engine.plan import Plan
from omniavatar.engine.scopes import Job, Request, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.engine.windows import Span, audio_rows, plan_spans
from omniavatar.hookspecs import hookimpl
from omniavatar.media.image import fit_image
from omniavatar.models.lora import merged
from omniavatar.models.tiling import DECODE_TILING, ENCODE_TILING
from omniavatar.testing import GivenModels, LatentFormat
from omniavatar.testing.models import WAN
from omniavatar.testing.recorder import SeenWindow, WindowRecorder, video_of
from omniavatar.units import (
    Audio,
    AudioAdapter,
    Euler,
    FixedFrames,
    Guidance,
    Prompt,
    ReferenceImage,
    Schedule,
    TeaCache,
    Transformer,
    VaeDecode,
)
from omniavatar.units.prompt import clean
from omniavatar.units.teacache import TeaSchedule, decide, relative_changes
from tests.golden.cases import Case, group, kind
from tests.golden.files import networks_of, registry
from tests.golden.kind_networks import wav2vec_of
from tests.golden.kind_vae import wan_vae

ROWS = {"Wan2.1-I2V-14B-480P": "Wan2.1-I2V-14B", "Wan2.1-I2V-14B-720P": "Wan2.1-Fun-14B-Control"}
"""Rows of the registry with the TeaCache polynomial of a model, where the row has another name than the model."""


# Pure numbers -------------------------------------------------------------------------------------------------------


@kind("scheduler")
def scheduler(case: Case) -> None:
    for index, record in enumerate(case.records):
        inputs, expected = record["inputs"], record["expected"]
        name = f"{index}.{inputs['op']}"
        sigmas = sigmas_of(inputs)
        if inputs["op"] == "set_timesteps":
            case.close(f"{name}.sigmas", sigmas, torch.tensor(expected["sigmas"]), atol=1e-6)
            case.close(f"{name}.timesteps", sigmas * 1000, torch.tensor(expected["timesteps"]), atol=1e-3)
        elif inputs["op"] == "training_weights":
            weights = flow_match.training_weights(sigmas)[inputs["indices"]]
            case.close(f"{name}.weights", weights, torch.tensor(expected["weights"]), rtol=1e-5)
            times = sigmas[inputs["indices"]] * flow_match.TIMESTEPS
            case.close(f"{name}.timesteps", times, torch.tensor(expected["timesteps"]), atol=1e-3)
            total = torch.tensor(expected["sum"])
            case.close(f"{name}.sum", flow_match.training_weights(sigmas).sum(), total, rtol=1e-5)
        else:
            scheduler_tensors(case, name, inputs, expected, sigmas)


def sigmas_of(inputs: Mapping[str, Any]) -> Tensor:
    constructor, call = inputs["constructor"], inputs.get("set_timesteps") or {}
    if inputs["op"] == "training_weights" and not call["training"]:
        raise ValueError("a schedule that is not for training has no weights")
    return flow_match.shifted_sigmas(
        call.get("num_inference_steps", 1000),
        call.get("shift", constructor["shift"]),
        strength=call.get("denoising_strength", 1.0),
        sigma_min=constructor["sigma_min"],
        end_included=not constructor["extra_one_step"],
    )


def scheduler_tensors(
    case: Case, name: str, inputs: Mapping[str, Any], expected: Mapping[str, Any], sigmas: Tensor
) -> None:
    """`step`, `add_noise` and `training_target`."""
    values = {key: torch.tensor(value) for key, value in inputs.items() if isinstance(value, list)}
    index = inputs.get("timestep_index", 0)
    if "timestep" in inputs:  # the original looks up the nearest timestep of the schedule
        index = int((sigmas * flow_match.TIMESTEPS - inputs["timestep"]).abs().argmin())
    if inputs["op"] == "step":
        is_final = inputs.get("to_final") or index + 1 == len(sigmas)
        following = torch.zeros(()) if is_final else sigmas[index + 1]
        step = SimpleNamespace(
            window=SimpleNamespace(latents=values["sample"]),
            velocity=values["model_output"],
            sigma=sigmas[index],
            sigma_next=following,
        )
        actual = Euler().advance(cast(Step, step))
    elif inputs["op"] == "add_noise":
        actual = flow_match.add_noise(values["sample"], values["noise"], sigmas[index])
    else:
        actual = flow_match.velocity_target(values["sample"], values["noise"])
    (result,) = (value for value in expected.values() if isinstance(value, list))
    case.close(name, actual, torch.tensor(result), atol=1e-5)


@kind("windows")
def windows(case: Case) -> None:
    for index, record in enumerate(case.records):
        inputs, expected = record["inputs"], record["expected"]
        length = WAN.frames_for(inputs["max_tokens"], inputs["height"], inputs["width"])
        rows = audio_rows(inputs["samples"], inputs["sample_rate"], inputs["fps"], float_ceil=True)
        overlap = inputs["overlap_frame"]  # which counts if there are any such frames
        spans = plan_spans(rows + 1, length, overlap if inputs["random_prefix_frames"] else 1, WAN, full=True)
        padded = spans[-1].stop - 1
        case.equal(
            f"{index}",
            {
                "frames_per_chunk": length,
                "latent_frames": WAN.latent_frames(spans[0].frames),
                "audio_frames": rows,
                "padded_audio_frames": padded,
                "padded_samples": padded * int(inputs["sample_rate"] / inputs["fps"]),
                "num_chunks": len(spans),
                "chunks": [chunk(span, number, length) for number, span in enumerate(spans)],
                "video_frames": rows + 1,
            },
            expected.read(),
        )


def chunk(span: Span, number: int, length: int) -> dict[str, Any]:
    """One span in the words of the case."""
    zero_rows = 1 if span.start == 0 else 0
    return {
        "zero_rows": zero_rows,
        "audio_rows": [span.start - 1 + zero_rows, span.stop - 1],
        "prefix_rows": span.given,
        "prefix_latent_frames": WAN.latent_frames(span.given),
        "mask_zero_latent_frames": WAN.latent_frames(span.given),
        "prefix_from_previous_frames": "image" if number == 0 else [length - span.given, length],
        "kept_frames": [span.keep.start, span.keep.stop],
    }


@kind("prompt_clean")
def prompt_clean(case: Case) -> None:
    for record in case.records:
        inputs = record["inputs"]
        case.equal("clean", "whitespace", inputs["clean"])
        case.equal(inputs["text"], clean(inputs["text"]), record["expected"]["text"])


def teacache_settings(model: str, threshold: float) -> TeaCache:
    """The unit with the polynomial that the registry has for a model."""
    (row,) = (row for row in registry().rows if row.name == ROWS.get(model, model))
    return TeaCache(threshold=threshold, **row.settings["teacache"], clamp=False)


@kind("teacache")
def teacache(case: Case) -> None:
    if case.records:
        teacache_decisions(case)
    else:
        denoise(case)


def teacache_decisions(case: Case) -> None:
    for index, record in enumerate(case.records):
        inputs, expected = record["inputs"], record["expected"]
        settings = teacache_settings(inputs["model_id"], inputs["rel_l1_thresh"]).settings
        changes = relative_changes([torch.tensor(values) for values in inputs["t_mod"]])
        steps = inputs["num_inference_steps"]  # the original's counter restarts after this many calls
        runs = [decide(changes[start : start + steps], settings) for start in range(0, len(changes), steps)]
        schedule = TeaSchedule(
            *(tuple(chain.from_iterable(values)) for values in zip(*map(astuple, runs), strict=True))
        )
        compare_schedule(case, f"{index}.", schedule, expected, expected["skip"])


def compare_schedule(case: Case, prefix: str, schedule: Any, expected: Mapping[str, Any], skips: Any) -> None:
    case.equal(f"{prefix}skip", [bool(skip) for skip in schedule.skips], [bool(skip) for skip in skips])
    for name, actual in (("rel_l1", schedule.changes), ("accumulated", schedule.sums)):
        values = torch.tensor([value or 0.0 for value in map(float_or_none, expected[name])], dtype=torch.float64)
        case.close(f"{prefix}{name}", torch.tensor(actual, dtype=torch.float64).nan_to_num(), values, atol=1e-5)


def float_or_none(value: Any) -> float | None:
    number = None if value is None else float(value)
    return None if number is None or math.isnan(number) else number


# Denoising ----------------------------------------------------------------------------------------------------------


class Given(PipelineUnit):
    """Puts the values of a case where units would have computed them."""

    name = "given"

    def __init__(self, noise: list[Tensor], frames: int | None = None, **values: Any) -> None:
        super().__init__()
        self.given_noise = noise
        self.frames = frames
        self.values = values

    @hookimpl
    def begin_job(self, job: Job) -> None:
        job.values.update(self.values)

    @hookimpl
    def plan_length(self) -> Length | None:
        return None if self.frames is None else Length(self.frames)

    @hookimpl
    def noise(self, window: Window) -> Tensor:
        return self.given_noise[window.index].clone()


class GivenPrompt(Prompt):
    """The prompt unit with embeddings in place of text."""

    check_request = None  # type: ignore[assignment]
    begin_job = None  # type: ignore[assignment]


def guidance_of(scale: float, audio_scale: float) -> Guidance:
    """The original ignores the audio scale at guidance 1."""
    return Guidance(scale=scale, audio_scale=None if scale == 1 else audio_scale)


class GivenSchedule(Schedule):
    """The schedule unit for a start that is given, also where its strength is below 1 and there is no footage.

    The original's loop always starts from noise; its strength says of which level.
    """

    check_request = None  # type: ignore[assignment]


class HeldLatents(FixedFrames):
    """The fixed-frames unit with given latents in place of an image."""

    plan_windows = None  # type: ignore[assignment]
    begin_window = None  # type: ignore[assignment]


@kind("denoise")
def denoise(case: Case) -> None:
    call, inputs = case.config, case.inputs
    networks = networks_of(case, dit=call)
    fixed, clean_latents = call["fixed_frame"], inputs["lat"]
    given = Given(
        [inputs["noise"]],
        frames=inputs["noise"].shape[2] * 4 - 3,
        prompt_embedding=inputs["context_pos"],
        negative_embedding=inputs["context_neg"],
        condition=inputs["y"],
        audio_rows=inputs["audio_emb"],
        given_latents=clean_latents[:, :, :fixed] if fixed else None,
    )
    units = [given, GivenPrompt(), AudioAdapter(), HeldLatents(), *denoising_units(call)]
    height, width = (side * 8 for side in inputs["noise"].shape[-2:])
    request = Request(height=height, width=width)
    (window,) = generate(units, request, **networks, vae=LatentFormat())
    case.compare("latents", window.latents, atol=5e-5)
    compare_caches(case, window, "")


def denoising_units(call: Mapping[str, Any]) -> list[PipelineUnit]:
    """Guidance, sampler, transformer and, if it is on, the cache."""
    units: list[PipelineUnit] = [
        guidance_of(call["cfg_scale"], call["audio_cfg_scale"]),
        GivenSchedule(
            steps=call["num_inference_steps"], shift=call["sigma_shift"], strength=call["denoising_strength"]
        ),
        Euler(),
        Transformer(),
    ]
    model, threshold = call.get("tea_cache_model_id"), call.get("tea_cache_l1_thresh", 0)
    if model and threshold:
        units.append(teacache_settings(model, threshold))
    return units


def generate(units: list[PipelineUnit], request: Request, **networks: nn.Module) -> list[SeenWindow]:
    """The windows that the engine makes with these networks; roles that no given unit calls are filled with nothing."""
    idle = {role: nn.Identity() for unit in units for role in unit.roles if role not in networks}
    recorder = WindowRecorder()
    Engine(Plan(tuple(units)), GivenModels(**networks, **idle), observers=[recorder]).generate(request)
    return recorder.windows


def compare_caches(case: Case, window: SeenWindow, suffix: str) -> None:
    """The cache schedule of a window; one schedule serves all branches."""
    if f"skipped_pos{suffix}" not in case.expected:
        return
    expected = {name: case.take(name + suffix) for name in ("rel_l1", "accumulated")}
    (schedule,) = window["teacache.schedules"].values()
    compare_schedule(case, f"teacache{suffix}.", schedule, expected, case.take(f"skipped_pos{suffix}"))
    if f"skipped_neg{suffix}" in case.expected:
        negative = case.take(f"skipped_neg{suffix}").tolist()
        case.equal(f"skipped_neg{suffix}", [int(skip) for skip in schedule.skips], negative)


@kind("generate")
def whole_program(case: Case) -> None:
    call, inputs, derived = case.config["call"], case.inputs, case.config["derived"]
    weights = {role: group(case.weights, role) for role in ("dit", "vae", "audio_encoder")}
    networks = {
        **networks_of(case, weights=weights["dit"], dit=case.config["dit"]),
        "vae": wan_vae(case, case.config["vae"], weights["vae"]),
        "audio_encoder": wav2vec_of(case, case.config["audio_encoder"], weights["audio_encoder"]),
    }
    check_tiles(case)
    case.equal("do_normalize", True, case.config["audio_encoder"]["do_normalize"])
    noise = [inputs[f"noise_{index}"] for index in range(derived["num_chunks"])]
    given = Given(noise, prompt_embedding=inputs["context_pos"], negative_embedding=inputs["context_neg"])
    length = WAN.frames_for(call["max_tokens"], *derived["selected"])
    overlap = call["overlap_frame"]
    units = [
        given,
        GivenPrompt(),
        ReferenceImage(sizes=call["sizes"], fit="original", tiled=call["tiled"]),
        Audio(silence=0, frame_count="original", segment=0),
        AudioAdapter(),
        FixedFrames(
            overlap=overlap if call["random_prefix_frames"] else 1,
            max_tokens=64,
            window_frames=length,
            full_windows=True,
            tiled=call["tiled"],
        ),
        *denoising_units(call),
        VaeDecode(tiled=call["tiled"]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        image, audio = Path(folder, "image.png"), Path(folder, "sound.wav")
        Image.fromarray(inputs["image"].numpy()).save(image)
        audio.write_bytes(wav_float32(inputs["waveform"].numpy(), call["sample_rate"]))
        windows = generate(units, Request(inputs={"image": image, "audio": audio}, fps=call["fps"]), **networks)
    fitted = fit_image(inputs["image"].numpy(), tuple(windows[0]["frames"].shape[-2:]), original_rounding=True)
    case.compare("image_tensor", fitted.unsqueeze(2), atol=1e-5)
    case.compare("image_latent", windows[0]["image_latent"], atol=2e-5)
    total = windows[-1].span.stop - 1
    case.compare("audio_features", windows[0]["audio_track"].rows(0, total, total), atol=5e-5)
    for window in windows:
        compare_window(case, window, total)
    video = video_of(windows).clamp(0, 1).transpose(1, 2)
    case.compare("video", video, atol=5e-5)
    made = {
        "selected": list(video.shape[-2:]),
        "frames_per_chunk": windows[0].span.frames,
        "latent_frames": windows[0].latents.shape[2],
        "audio_frames": audio_rows(len(inputs["waveform"]), call["sample_rate"], call["fps"], float_ceil=True),
        "padded_audio_frames": total,
        "padded_samples": total * int(call["sample_rate"] / call["fps"]),
        "num_chunks": len(windows),
        "prefix_latent_frames": [WAN.latent_frames(window.span.given) for window in windows],
        "video_frames": video.shape[1],
    }
    case.equal("derived", made, derived.read())


def check_tiles(case: Case) -> None:
    """The tiles that a case names are those of the units, which matters where a picture has more than one."""
    call, latents = case.config["call"], case.inputs["noise_0"]
    for operation, tiling in (("encode", ENCODE_TILING), ("decode", DECODE_TILING)):
        named = tuple(tuple(call[f"{operation}_tile_{part}"]) for part in ("size", "stride"))
        if any(
            side > limit
            for size in (tiling.size, named[0])
            for side, limit in zip(latents.shape[-2:], size, strict=True)
        ):
            case.equal(f"{operation} tiles", (tiling.size, tiling.stride), named)


def compare_window(case: Case, window: SeenWindow, total: int) -> None:
    """What one chunk saw and made."""
    suffix = f"_{window.index}"
    rows = window["audio_track"].rows(window.span.start - 1, window.span.stop - 1, total)
    case.compare(f"audio_emb{suffix}", rows[None], atol=5e-5)
    case.compare(f"y{suffix}", window["condition"], atol=2e-5)
    case.compare(f"prefix_latent{suffix}", window["given_latents"], atol=5e-5)
    case.compare(f"latents{suffix}", window.latents, atol=2e-4)
    case.compare(f"last_frame{suffix}", window["frames"][0, :, -1], atol=5e-5)
    compare_caches(case, window, suffix)


def wav_float32(wave: Any, rate: int) -> bytes:
    """A mono WAV file of 32-bit floats."""
    data: bytes = wave.astype("<f4").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, rate, 4 * rate, 4, 32)
    chunks = form + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI4s", b"RIFF", 4 + len(chunks), b"WAVE") + chunks


# LoRA ---------------------------------------------------------------------------------------------------------------


@kind(
    "lora",
    unused={
        "inputs.lora/unknown_prefix/*": "trainers of today write `transformer.`, which the original does not know",
        "expected.changed/unknown_prefix": "so the original changes nothing, and here the LoRA is applied",
    },
)
def lora(case: Case) -> None:
    call = case.config["call"]
    weights = networks_of(case, dit=case.config["dit"])["dit"].state_dict()
    for scheme in call["schemes"]:
        if scheme == "unknown_prefix":
            continue
        tensors = group(case.inputs, f"lora/{scheme}")
        ranks = {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name or "lora_down" in name}
        case.equal(f"rank/{scheme}", ranks, {call["rank"]})
        fit = read_lora(tensors).fit({key: value.shape for key, value in weights.items()})
        changed = {
            f"fused/{scheme}/{key}": merged(weights[key], [(change, call["alpha"]) for change in changes])
            for key, changes in fit.changes.items()
        }
        case.equal(f"changed/{scheme}", len(changed), int(case.take(f"changed/{scheme}")))
        for name, weight in changed.items():
            case.compare(name, weight, rtol=1e-6)
