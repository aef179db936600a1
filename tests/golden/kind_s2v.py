"""Golden kinds of Wan 2.2 S2V: the transformer with picture, past, poses and speech; the features of a sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from einops import rearrange
from omniavatar_s2v.adapter import MOTION_LATENTS, S2VAdapter
from omniavatar_s2v.audio import FEATURE_RATE, S2VAudio, SpeechTrack, feature_row
from omniavatar_s2v.clips import first_span
from omniavatar_s2v.transformer import S2VTransformer
from torch import Tensor

from omniavatar.engine.scopes import Forward, Job, Request, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.engine.windows import Span
from omniavatar.hookspecs import hookimpl
from omniavatar.testing import LatentFormat
from omniavatar.units import Guidance
from tests.golden.cases import Case, kind
from tests.golden.files import Networks, networks_of
from tests.golden.kind_engine import Given, GivenPrompt, generate
from tests.golden.kind_networks import wav2vec_of


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
    networks, inputs, call = networks_of(case, dit=case.config["dit"]), case.inputs, case.config["call"]
    adapter = cast(S2VAdapter, networks["s2v_adapter"])
    case.equal("motion_latent_frames", inputs["motion_latents"].shape[2], call["motion_latent_frames"])
    case.equal("audio_frames", inputs["audio_embeds"].shape[-1], call["audio_frames"])
    features = rearrange(inputs["audio_embeds"], "b l c t -> b t l c")
    speech = torch.cat([case.take("audio_local"), case.take("audio_global")], dim=2)
    case.close("speech", adapter.speech(features), speech[:, MOTION_LATENTS:], rtol=2e-5)
    tokens, _ = adapter.motion(inputs["motion_latents"])
    case.compare("motion_tokens", tokens, rtol=2e-5)
    frames = inputs["latents"].shape[2] - 1
    for name, motion, heard in (
        ("motion_pose", inputs["motion_latents"], features),
        ("no_motion_no_pose", None, features),
        ("negative_audio", inputs["motion_latents"], torch.zeros_like(features)),
    ):
        taps = one_call(case, networks, motion, heard)
        given, video = taps["noise_pred"].tensor_split([-frames], dim=2)
        case.equal(f"velocity of given frames, {name}", int(given.count_nonzero()), 0)
        case.close(f"noise_pred_{name}", video, case.take(f"noise_pred_{name}")[:, :, 1:], rtol=2e-5)
        if name == "motion_pose":
            for part in ("cos", "sin"):
                taps[f"motion_rope_{part}"] = taps[f"rope_{part}"][None, -tokens.shape[1] :]
            for tap in (taps.keys() & case.expected.keys()) - {"noise_pred"}:
                case.compare(tap, taps[tap], rtol=2e-5)


def one_call(case: Case, networks: Networks, motion: Tensor | None, features: Tensor) -> dict[str, Tensor]:
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
    generate(units, Request(height=height, width=width), **networks, vae=LatentFormat())
    return call.taps


@kind("s2v_audio")
def run_s2v_audio(case: Case) -> None:
    """Sound to hidden states, rows, and the features of the frames of every clip."""
    encoder = wav2vec_of(case, case.config["audio_encoder"], case.weights)
    call = case.config["call"]
    track = SpeechTrack(case.inputs["audio"].numpy(), encoder, segment=0)
    case.compare("normalized_input", track.wave[None], atol=5e-5)
    states = rearrange(track.hidden_states(0, track.states), "t l c -> l t c")
    case.compare("hidden_states_50hz", states, rtol=5e-5)
    rows = rearrange(track.rows(range(track.length)), "t l c -> l t c")
    case.compare("features_30hz", rows, rtol=5e-5)
    case.compare("features_30hz_last", rows[-1:], rtol=5e-5)
    picked = picked_rows(track.length, call["fps"], call["batch_frames"], call["m"])
    embeds = side_by_side(track, picked)
    case.compare("audio_embeds", rearrange(embeds, "(n t) l c -> n l c t", t=call["batch_frames"]), rtol=5e-5)
    compare_fixed_stride(case, track, call)


def compare_fixed_stride(case: Case, track: SpeechTrack, call: Mapping[str, Any]) -> None:
    """Every `stride`-th row with its neighbours, which no clip is made of."""
    stride, frames = call["bucket_stride"], call["bucket_frames"]
    clips = clips_of(track.length, frames * stride)
    rows = [neighbours(frame * stride, track.length, call["bucket_m"], 2) for frame in range(clips * frames)]
    case.compare("bucket", side_by_side(track, rows), rtol=5e-5)
    case.equal("bucket_clips", case.take("bucket_clips").tolist(), [clips])


def side_by_side(track: SpeechTrack, groups: Sequence[Sequence[int]]) -> Tensor:
    """Rows in groups, those of a group joined: (groups layers width)."""
    rows = track.rows([row for group in groups for row in group])
    joined: Tensor = rearrange(rows, "(t m) l c -> t l (m c)", t=len(groups))
    return joined


def clips_of(rows: int, rows_of_clip: float) -> int:
    """The clips of a track, the last one not full."""
    return int(rows / rows_of_clip) + 1


def picked_rows(rows: int, fps: int, batch_frames: int, reach: int) -> list[list[int]]:
    """For every frame of all clips its row of a track of `rows`, with neighbours."""
    frames = clips_of(rows, batch_frames * FEATURE_RATE / fps) * batch_frames
    return [neighbours(feature_row(frame, fps), rows, reach, FEATURE_RATE // fps) for frame in range(frames)]


@kind("s2v_bucket")
def run_s2v_bucket(case: Case) -> None:
    """Which rows go with which frames of the video."""
    for number, record in enumerate(case.records):
        inputs, expected = record["inputs"], record["expected"]
        picked = picked_rows(inputs["audio_frames"], inputs["fps"], inputs["batch_frames"], inputs["m"])
        case.equal(f"{number}", picked, expected["indices"])
        case.equal(f"{number}.clips", len(picked) // inputs["batch_frames"], expected["clips"])


def neighbours(row: int, length: int, reach: int, stride: int) -> list[int]:
    """A row with those before and after it, clamped to the track; -1 for a row behind it."""
    if row >= length:
        return [-1] * (2 * reach + 1)
    return [min(max(row + step * stride, 0), length - 1) for step in range(-reach, reach + 1)]
