"""Golden kinds of Wan 2.2 S2V: the transformer with picture, past, poses and speech; the features of a sound."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from einops import rearrange
from omniavatar_s2v.adapter import MOTION_FRAMES, S2VAdapter
from omniavatar_s2v.audio import FEATURE_RATE, S2VAudio, SpeechTrack, feature_row
from omniavatar_s2v.clips import first_span
from omniavatar_s2v.transformer import S2VTransformer
from torch import Tensor
from transformers import Wav2Vec2Config

from omniavatar.engine.scopes import Forward, Job, Request, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.engine.windows import Span
from omniavatar.hookspecs import hookimpl
from omniavatar.models.wav2vec import AudioEncoder
from omniavatar.testing import LatentFormat
from omniavatar.units import Guidance
from tests.golden.cases import Case, kind
from tests.golden.kind_engine import Given, GivenPrompt, generate
from tests.golden.kind_networks import loaded, wan_dit

ADAPTER_KEYS = ("casual_audio_encoder.", "audio_injector.", "cond_encoder.", "frame_packer.", "trainable_cond_mask.")


def s2v_adapter(config: dict[str, Any], weights: dict[str, Tensor]) -> S2VAdapter:
    """The layers of a case that lie beside the transformer."""
    numbers = {key: config[key] for key in inspect.signature(S2VAdapter).parameters}
    return loaded(S2VAdapter(**numbers), {key: value for key, value in weights.items() if key.startswith(ADAPTER_KEYS)})


class OneCall(PipelineUnit):
    """One window and one step with the time of a case, at the end of which the velocity and some tokens are kept."""

    name = "one-call"

    def __init__(self, span: Span, timestep: float) -> None:
        super().__init__()
        self.span = span
        self.timestep = timestep
        self.taps: dict[str, Tensor] = {}

    @hookimpl
    def plan_windows(self, job: Job) -> Sequence[Span]:
        return [self.span]

    @hookimpl
    def plan_steps(self, window: Window) -> Sequence[Step]:
        return [Step(window, 0, self.timestep, sigma=1.0, sigma_next=0.0)]

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        self.taps[f"before_block_{index}"] = forward.x
        self.taps["rope_cos"], self.taps["rope_sin"] = forward.rope.unbind(-1)

    @hookimpl(tryfirst=True)
    def after_block(self, forward: Forward, index: int) -> None:
        self.taps[f"after_block_{index}"] = forward.x

    @hookimpl
    def advance(self, step: Step) -> Tensor:
        self.taps["noise_pred"] = step.velocity
        return step.window.latents


class SilentAudio(S2VAudio):
    """The unit with features in place of a sound."""

    begin_job = None  # type: ignore[assignment]


@kind("s2v")
def run_s2v(case: Case) -> None:
    """The network's parts, and one call with and without past and poses, and one that hears features of zeros."""
    adapter, inputs = s2v_adapter(case.config["dit"], case.weights), case.inputs
    features = rearrange(inputs["audio_embeds"], "b l c t -> b t l c")
    speech = torch.cat([case.expected["audio_local"], case.expected["audio_global"]], dim=2)
    past = (MOTION_FRAMES + 3) // 4
    case.close("speech", adapter.speech(features), speech[:, past:], rtol=2e-5)
    tokens, _ = adapter.motion(inputs["motion_latents"])
    case.compare("motion_tokens", tokens, rtol=2e-5)
    for name, motion, heard in (
        ("motion_pose", inputs["motion_latents"], features),
        ("no_motion_no_pose", None, features),
        ("negative_audio", inputs["motion_latents"], torch.zeros_like(features)),
    ):
        taps = one_call(case, adapter, motion, heard)
        given = taps["noise_pred"].shape[2] - 2
        case.equal(f"velocity of given frames, {name}", int(taps["noise_pred"][:, :, :given].count_nonzero()), 0)
        expected = case.expected[f"noise_pred_{name}"]
        case.close(f"noise_pred_{name}", taps["noise_pred"][:, :, given:], expected[:, :, 1:], rtol=2e-5)
        if name == "motion_pose":
            for tap in ("before_block_0", "after_block_0", "before_block_1", "rope_cos", "rope_sin"):
                case.compare(tap, taps[tap], rtol=2e-5)


def one_call(case: Case, adapter: S2VAdapter, motion: Tensor | None, features: Tensor) -> dict[str, Tensor]:
    """What the engine makes of the case; poses go with the past."""
    inputs = case.inputs
    picture, video = inputs["latents"].split([1, inputs["latents"].shape[2] - 1], dim=2)
    first = first_span(continues=motion is not None)
    frames = 4 * video.shape[2]
    span = Span(first.start, first.stop + frames, first.given, 0, frames)
    noise = torch.cat([picture if motion is None else motion, video], dim=2)
    given = Given(
        [noise],
        frames=frames,
        prompt_embedding=inputs["context"],
        image_latent=picture,
        motion_latents=motion,
        pose_latents=None if motion is None else inputs["s2v_pose_latents"],
        audio_track=SimpleNamespace(rows=lambda indices: features[0]),
    )
    call = OneCall(span, inputs["timestep"].item())
    units = [call, given, GivenPrompt(), SilentAudio(), Guidance(scale=1), S2VTransformer()]
    height, width = (side * 8 for side in noise.shape[-2:])
    dit = wan_dit(case.config["dit"], {key: case.weights[key] for key in case.weights if key not in adapter_keys(case)})
    generate(units, Request(height=height, width=width), dit=dit, s2v_adapter=adapter, vae=LatentFormat())
    return call.taps


def adapter_keys(case: Case) -> set[str]:
    """The names of the case's weights that belong to the adapter."""
    return {key for key in case.weights if key.startswith(ADAPTER_KEYS)}


@kind("s2v_audio")
def run_s2v_audio(case: Case) -> None:
    """Sound to hidden states, rows, and the features of the frames of every clip."""
    encoder = AudioEncoder.from_state_dict(Wav2Vec2Config(**case.config["audio_encoder"]), case.weights)
    call = case.config["call"]
    track = SpeechTrack(case.inputs["audio"].numpy(), encoder, segment=0)
    case.compare("normalized_input", track.wave[None], atol=5e-5)
    states = rearrange(track.hidden_states(0, track.states), "t l c -> l t c")
    case.compare("hidden_states_50hz", states, rtol=5e-5)
    rows = rearrange(track.rows(range(track.length)), "t l c -> l t c")
    case.compare("features_30hz", rows, rtol=5e-5)
    case.compare("features_30hz_last", rows[-1:], rtol=5e-5)
    clips, layers, width, frames = case.expected["audio_embeds"].shape
    picked = track.rows([feature_row(frame, call["fps"]) for frame in range(clips * frames)])
    embeds = rearrange(picked, "(n t) l c -> n l c t", n=clips)
    case.compare("audio_embeds", embeds, rtol=5e-5)
    case.equal("sizes", [layers, width], [encoder.model.config.num_hidden_layers + 1, encoder.hidden_size])
    compare_fixed_stride(case, track, call)


def compare_fixed_stride(case: Case, track: SpeechTrack, call: dict[str, Any]) -> None:
    """Every `stride`-th row with its neighbours side by side, which no clip is made of."""
    centres = [frame * call["bucket_stride"] for frame in range(case.expected["bucket"].shape[0])]
    groups = [neighbours(row, track.length, call["bucket_m"], call["bucket_stride"]) for row in centres]
    rows = track.rows([row for group in groups for row in group])
    case.compare("bucket", rearrange(rows, "(t m) l c -> t l (m c)", t=len(groups)), rtol=5e-5)
    case.equal("bucket_clips", case.expected["bucket_clips"].tolist(), [len(groups) // call["bucket_frames"]])


@kind("s2v_bucket")
def run_s2v_bucket(case: Case) -> None:
    """Which rows go with which frames of the video."""
    for number, record in enumerate(case.records):
        inputs, expected = record["inputs"], record["expected"]
        fps, rows = inputs["fps"], inputs["audio_frames"]
        centres = [feature_row(frame, fps) for frame in range(expected["clips"] * inputs["batch_frames"])]
        picked = [neighbours(row, rows, inputs["m"], FEATURE_RATE // fps) for row in centres]
        case.equal(f"{number}", picked, expected["indices"])


def neighbours(row: int, length: int, reach: int, stride: int) -> list[int]:
    """A row with those before and after it, clamped to the track; -1 for a row behind it."""
    if row >= length:
        return [-1] * (2 * reach + 1)
    return [min(max(row + step * stride, 0), length - 1) for step in range(-reach, reach + 1)]
