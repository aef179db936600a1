"""Whole videos of a tiny S2V model: what each call sees, how clips chain, and that it goes with everything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omniavatar_s2v.adapter import S2VAdapter
from omniavatar_s2v.audio import S2VAudio
from omniavatar_s2v.testing import ADAPTER, DIT, write_tiny
from omniavatar_s2v.transformer import S2VTransformer
from PIL import Image
from torch import Tensor, nn

from omniavatar.cli import run_cli
from omniavatar.distributed.groups import Group
from omniavatar.distributed.sharding import Sharding
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Plan, build_plan
from omniavatar.engine.scopes import Branch, Forward, Job, Request, Step
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import CheckpointError, InputError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.media.audio import load_waveform
from omniavatar.media.ffmpeg import Ffmpeg
from omniavatar.media.video import decoder, probe_video, read_video
from omniavatar.models.wan_dit import PerToken, WanDiT
from omniavatar.plugins import discover
from omniavatar.resources import asset
from omniavatar.testing import FakeVAE, GivenLora, tiny
from omniavatar.testing.recorder import WindowRecorder, video_of
from omniavatar.testing.tiny import tiny_file
from tests.media.samples import convert, gradient_frames, noise_burst, write_lossless, write_wav
from tests.models.networks import noise, randomized

PLAN = "s2v-write-video"
PORTRAIT, SPEECH = asset("demo", "portrait.png"), asset("demo", "speech.flac")
CHANNELS = {"in_dim": 4, "out_dim": 4}
"""Of the fake VAE's latents."""
SETTINGS: dict[str, dict[str, Any]] = {
    "s2v-image": {"sizes": [[64, 64]]},
    "s2v-clips": {"clip_frames": 8},
    "schedule": {"steps": 2},
    "guidance": {"scale": 3.0},
    "prompt": {"length": 16},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def models(**networks: Any) -> tiny.TinyModels:
    """The tiny networks with those of S2V, over a VAE that only averages."""
    dit = WanDiT(**{**DIT, **CHANNELS})
    adapter = S2VAdapter(**{**ADAPTER, "in_dim": 4, "cond_dim": 4})
    return tiny.TinyModels(**{"dit": randomized(dit), "s2v_adapter": randomized(adapter), "vae": FakeVAE(), **networks})


class Look(WindowRecorder):
    """Keeps the calls and the windows."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards: list[Forward] = []
        self.tokens: list[Tensor] = []
        self.blocks = 0

    @hookimpl(trylast=True)
    def embed(self, forward: Forward) -> None:
        self.forwards.append(forward)
        self.tokens.append(forward.x)

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        self.blocks += 1

    @property
    def video(self) -> Tensor:
        """All pictures (1 3 t h w)."""
        return video_of(self.windows)


class Merged(PipelineUnit):
    """All branches in one transformer call."""

    name = "merged"

    @hookimpl
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor]:
        return step.forward(branches).chunk(len(branches))


def made(
    expression: str = PLAN,
    *more: PipelineUnit,
    frames: int = 5,
    inputs: Mapping[str, Any] | None = None,
    given: tiny.TinyModels | None = None,
    **settings: Any,
) -> Look:
    """Make a small video of the portrait; `settings` replace those of a unit."""
    look = Look()
    plan = build_plan(expression, discover().catalog(), SETTINGS, settings)
    engine = Engine(Plan((*plan.units, *more)), given or models(), observers=[look])
    engine.generate(portrayed(frames, **(inputs or {})))
    return look


def portrayed(frames: int, **inputs: Any) -> Request:
    """A video of the portrait."""
    return Request(inputs={"image": PORTRAIT, **inputs}, seconds=frames / 16, fps=16)


def differ(one: Look, other: Look) -> bool:
    return not torch.allclose(one.windows[0].latents, other.windows[0].latents, atol=1e-3)


@pytest.fixture(scope="module")
def talk() -> Look:
    """A talking video of 12 frames in two clips, the first with 2 latent frames behind the picture, the second too."""
    return made(frames=12, inputs={"audio": SPEECH})


# Clips


def test_a_video_has_its_length_and_the_first_clip_begins_with_the_picture(talk: Look) -> None:
    first, second = talk.windows
    assert talk.video.shape == (1, 3, 12, 64, 64)
    assert (first.latents.shape[2], second.latents.shape[2]) == (1 + 2, 19 + 2)
    assert first.latents[:, :, :1].equal(first["image_latent"])
    assert first["motion_latents"] is None


def test_a_clip_continues_the_frames_shown_before_it_and_grey_where_there_are_none(talk: Look) -> None:
    _, second = talk.windows
    before = torch.cat([torch.full((1, 3, 73 - 5, 64, 64), 0.5), video_of(talk.windows[:1])], dim=2)
    expected = FakeVAE().encode(before * 2 - 1)
    torch.testing.assert_close(second["motion_latents"], expected)
    assert second.latents[:, :, :19].equal(second["motion_latents"])


def test_the_third_clip_continues_what_the_second_shows() -> None:
    look = made(frames=20, schedule={"steps": 1})
    third = look.windows[2]
    before = torch.cat([torch.full((1, 3, 73 - 13, 64, 64), 0.5), video_of(look.windows[:2])], dim=2)
    # The last frames of the second window's own are those it shows.
    torch.testing.assert_close(third["motion_latents"][:, :, -2:], FakeVAE().encode(before * 2 - 1)[:, :, -2:])


def test_an_earlier_video_is_continued(tmp_path: Path) -> None:
    movie = write_lossless(tmp_path / "before.mkv", gradient_frames(100, 64, 64), fps=16)
    look, fresh = made(frames=8, inputs={"motion": movie}), made(frames=8)
    (window,) = look.windows
    assert (window.span.start, window.span.given, look.video.shape[2]) == (-73, 73, 8)
    levels = torch.from_numpy(gradient_frames(100, 1, 1)[27:, 0, 0, 0]).float()[::4] / 127.5 - 1
    torch.testing.assert_close(window["motion_latents"][0, 0, :, 0, 0], levels, atol=0.02, rtol=0)
    assert not torch.allclose(look.video[:, :, :5], fresh.video[:, :, :5], atol=1e-2)


def test_pictures_that_end_long_before_the_sound_are_found(tmp_path: Path) -> None:
    silent = write_lossless(tmp_path / "silent.mkv", gradient_frames(20, 64, 64), fps=16)
    sound = write_wav(tmp_path / "long.wav", noise_burst(9, 16000, start=8), 16000)
    movie = convert(silent, tmp_path / "movie.mkv", "-i", str(sound), "-c:v", "copy")
    (window,) = made(frames=4, inputs={"motion": movie}).windows
    assert (window["motion_latents"][:, :, -5:].abs() > 0.01).all()


def test_a_short_earlier_video_is_continued_too(tmp_path: Path) -> None:
    movie = write_lossless(tmp_path / "before.mkv", gradient_frames(9, 64, 64), fps=16)
    (window,) = made(frames=4, inputs={"motion": movie}).windows
    motion = window["motion_latents"]
    assert motion.shape[2] == 19
    assert (motion[:, :, :16].abs() < 0.01).all()
    assert (motion[:, :, 17:].abs() > 0.01).all()


# What a call sees


def test_tokens_of_picture_and_past_stand_behind_those_of_the_clip(talk: Look) -> None:
    first, second = talk.forwards[0], talk.forwards[4]
    video, picture, past = 2 * 16, 16, 16 + 4 + 4
    for forward, given, count in ((first, 1, video + picture), (second, 19, video + picture + past)):
        assert forward.x.shape[1] == len(forward.rope) == count
        assert forward.frame_index.tolist() == [given] * 16 + [given + 1] * 16 + [-1] * (count - video)
        assert isinstance(forward.time, PerToken)
        assert isinstance(forward.t_mod, PerToken)
        assert forward.time.values.shape == (1, count, DIT["dim"])
        assert forward.t_mod.values.shape == (1, count, 6, DIT["dim"])


def test_only_tokens_of_the_clip_are_told_the_time(talk: Look) -> None:
    dit: Any = models().networks["dit"]
    now = dit.embed_time(torch.tensor([0, talk.forwards[2].step.timestep], dtype=torch.float64))[0]
    told = talk.forwards[2].time
    assert isinstance(told, PerToken)
    time = told.values[0]
    torch.testing.assert_close(time[:32], now[1].expand(32, -1))
    torch.testing.assert_close(time[32:], now[0].expand(16, -1))


def test_picture_and_past_are_the_same_in_every_step(talk: Look) -> None:
    for calls in (slice(0, 4), slice(4, 8)):
        first, *others = (tokens[:, 32:] for tokens in talk.tokens[calls])
        assert all(tokens.equal(first) for tokens in others)


def test_the_engine_gives_no_motion_to_given_frames(talk: Look) -> None:
    assert not talk.forwards[4].output[:, :, :19].any()
    assert talk.forwards[4].output[:, :, 19:].any(dim=2).all()


# Conditions


def test_the_sound_changes_the_video_and_silence_is_what_the_other_branch_hears() -> None:
    talks, silent = made(inputs={"audio": SPEECH}), made()
    assert differ(talks, silent)
    (window,) = talks.windows
    assert window["audio_speech"].shape == (1, 2, 6, DIT["dim"])
    torch.testing.assert_close(silent.windows[0]["audio_speech"], window["audio_silence"])
    deaf = made(inputs={"audio": SPEECH}, guidance={"scale": 3.0, "audio_scale": 0.0})
    assert {forward.branches[0].name for forward in deaf.forwards} == {"no-audio", "negative"}
    same = made(guidance={"scale": 3.0, "audio_scale": 0.0})
    torch.testing.assert_close(deaf.windows[0].latents, same.windows[0].latents)


class Loudness(nn.Module):
    """An audio encoder of one hidden state of one value, how loud the sound is at that time."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))
        self.model = SimpleNamespace(config=SimpleNamespace(conv_stride=[320], conv_kernel=[400]))

    def conv_features(self, sound: Tensor) -> Tensor:
        return sound.unfold(1, 400, 320).square().mean(dim=-1, keepdim=True)

    def hidden_states(self, features: Tensor) -> list[Tensor]:
        return [features]


class Hear(S2VAdapter):
    """Keeps the features that are heard, window by window, those of silence first."""

    def __init__(self) -> None:
        super().__init__(**{**ADAPTER, "in_dim": 4, "cond_dim": 4, "audio_layers": 1, "audio_dim": 1})
        self.heard_features: list[Tensor] = []

    def speech(self, features: Tensor) -> Tensor:
        self.heard_features.append(features)
        return super().speech(features)


def test_frame_n_hears_the_sound_at_n_over_fps(tmp_path: Path) -> None:
    """A burst that begins with frame 11, of the second clip, whose features begin with frame 5; 3 frames lead."""
    burst = write_wav(tmp_path / "burst.wav", noise_burst(2, 16000, start=11 / 16, length=1 / 16), 16000)
    adapter = randomized(Hear())
    given = models(s2v_adapter=adapter, audio_encoder=Loudness())
    look = made(frames=13, given=given, inputs={"audio": burst}, schedule={"steps": 1})
    assert [window.span.keep_start for window in look.windows] == [0, 5]
    _, first, _, second = (features.flatten() for features in adapter.heard_features)
    loudness = torch.cat([first, second])
    assert len(loudness) == 3 + 13
    assert loudness.argmax() == 3 + 11
    assert loudness[: 3 + 10].max() < 0.01 * loudness.max()


def test_the_picture_changes_the_video(tmp_path: Path) -> None:
    path = tmp_path / "me.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    assert differ(made(), made(inputs={"image": path}))


def test_poses_change_the_video_and_none_are_as_if_the_unit_were_left_out(tmp_path: Path) -> None:
    movie = write_lossless(tmp_path / "pose.mkv", gradient_frames(6, 64, 64), fps=16)
    posed, plain, without = made(inputs={"pose": movie}), made(), made(f"{PLAN}-s2v-pose")
    assert differ(posed, plain)
    assert plain.windows[0].latents.equal(without.windows[0].latents)


def test_videos_in_memory_are_followed_as_their_files(tmp_path: Path) -> None:
    movie = write_lossless(tmp_path / "pose.mkv", gradient_frames(6, 64, 64), fps=16)
    held, path = ((made(frames=4, inputs={"pose": it, "motion": it})) for it in ((read_video(movie), 16), movie))
    for name in ("pose_latents", "motion_latents"):
        assert held.windows[0][name].equal(path.windows[0][name])


def test_each_video_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Ffmpeg] = []

    def counted(source: Path, arguments: list[str]) -> Ffmpeg:
        started.append(decoder(source, arguments))
        return started[-1]

    monkeypatch.setattr("omniavatar.media.footage.decoder", counted)
    movie = write_lossless(tmp_path / "pose.mkv", gradient_frames(10, 64, 64), fps=16)
    assert len(made(frames=13, inputs={"pose": movie, "motion": movie}).windows) > 1
    assert len(started) == 2


def test_pose_n_goes_with_frame_n_and_black_follows_its_end(tmp_path: Path) -> None:
    """The fake VAE keeps every fourth frame: of each clip the last ones of its latent frames."""
    movie = write_lossless(tmp_path / "pose.mkv", gradient_frames(10, 64, 64), fps=16)
    first, second = (
        window["pose_latents"][0, 0, :, 0, 0] for window in made(frames=13, inputs={"pose": movie}).windows
    )
    levels = gradient_frames(10, 1, 1)[:, 0, 0, 0] / 127.5 - 1
    torch.testing.assert_close(first.double(), torch.tensor([levels[0], levels[4]]), atol=0.02, rtol=0)
    torch.testing.assert_close(second.double(), torch.tensor([levels[8], -1.0]).double(), atol=0.02, rtol=0)


# Together with other units


def test_branches_in_one_call_are_as_good_as_one_call_each(talk: Look) -> None:
    merged = made(PLAN, Merged(), frames=12, inputs={"audio": SPEECH})
    assert 2 * len(merged.forwards) == len(talk.forwards)
    torch.testing.assert_close(merged.windows[1].latents, talk.windows[1].latents, atol=1e-4, rtol=1e-4)


def test_a_cache_skips_steps_and_keeps_what_the_sound_added() -> None:
    steps = {"steps": 6}
    full = made(inputs={"audio": SPEECH}, schedule=steps)
    cached = made(f"{PLAN}+teacache(threshold=10)", inputs={"audio": SPEECH}, schedule=steps)
    careful = made(f"{PLAN}+teacache(threshold=1e-9)", inputs={"audio": SPEECH}, schedule=steps)
    assert cached.blocks == full.blocks / 3, "the first and the last of six steps"
    assert careful.windows[0].latents.equal(full.windows[0].latents)
    assert differ(cached, made(f"{PLAN}+teacache(threshold=10)", schedule=steps))


class WithLora(tiny.TinyModels):
    """A LoRA for one layer of the transformer."""

    def adapters(self) -> Sequence[Any]:
        width, layer = DIT["dim"], "blocks.1.self_attn.q"
        tensors = {f"{layer}.lora_A.weight": noise(2, width), f"{layer}.lora_B.weight": noise(width, 2, seed=1)}
        return [GivenLora(tensors)]


def test_a_lora_changes_the_video() -> None:
    networks: dict[str, Any] = models().networks
    assert differ(made(), made(given=WithLora(**networks)))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_shards_hear_what_the_whole_hears(size: int) -> None:
    """Every rank's part of the tokens, frames cut anywhere, ranks with tokens of picture and past alone included."""
    look = Look()
    engine = Engine(build_plan(PLAN, discover().catalog(), SETTINGS), models(), observers=[look])
    with engine.start(portrayed(12, audio=SPEECH)) as run, torch.inference_mode():
        windows = run.windows()
        for window in windows:
            for _ in run.denoise(window):
                pass
            if window.is_last:
                break
            for _ in run.decode(window):
                pass
        compare_shards(look.forwards[4], size)


def compare_shards(whole: Forward, size: int) -> None:
    """Hold the parts of a call that ranks have against the whole."""
    engine, step = whole.engine, whole.step
    audio = next(unit for unit in engine.plan.units if isinstance(unit, S2VAudio))
    transformer = next(unit for unit in engine.plan.units if isinstance(unit, S2VTransformer))
    x = noise(*whole.x.shape, seed=3)

    def forward() -> Forward:
        call = Forward(step, whole.branches)
        call.grid, call.x, call.time, call.t_mod = whole.grid, x, whole.time, whole.t_mod
        call.rope, call.frame_index = whole.rope, whole.frame_index
        call.memory = type(call.memory)(whole.window)
        return call

    alone = forward()
    audio.after_block(alone, 2)
    assert (alone.x - x)[:, :32].abs().amax(dim=-1).min() > 1e-3
    assert alone.x[:, 32:].equal(x[:, 32:])
    parts, values = [], []
    for rank in range(size):
        call = forward()
        call.shard_tokens(Sharding(Group(rank, size), x.shape[1]))
        audio.after_block(call, 2)
        parts.append(call.x)
        values.append(call.network.head(call.x, call.time))
    torch.testing.assert_close(torch.cat(parts, dim=1)[:, : x.shape[1]], alone.x)
    transformer.unembed(alone)
    call.sharding = Sharding(Gathering(values), x.shape[1])
    transformer.unembed(call)
    torch.testing.assert_close(call.output, alone.output)


class Gathering(Group):
    """A group whose ranks' values are known."""

    def __init__(self, values: list[Tensor]) -> None:
        super().__init__(len(values) - 1, len(values))
        object.__setattr__(self, "values", values)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        values: list[Tensor] = self.__dict__["values"]
        return values


# What is refused


@pytest.mark.parametrize("other", ["audio", "audio-adapter", "reference-image", "fixed-frames", "transformer"])
def test_what_s2v_replaces_cannot_stand_beside_it(other: str) -> None:
    with pytest.raises(PlanError, match=f"units 's2v-[a-z]+' and '{other}' cannot work together: .*; leave one out"):
        build_plan(f"s2v+{other}", discover().catalog())


class Leading(PipelineUnit):
    """A frame in front of the video, as reference pictures of other models are."""

    name = "leading"

    @hookimpl
    def begin_job(self, job: Job) -> None:
        job.leading += 1


def test_frames_in_front_of_the_video_are_refused() -> None:
    with pytest.raises(PlanError, match="S2V clips have no place for them"):
        made(PLAN, Leading())


def test_without_clips_the_plan_is_refused() -> None:
    with pytest.raises(PlanError, match="unit 's2v-transformer' needs 'motion_latents'"):
        build_plan("s2v-s2v-clips", discover().catalog())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("s2v-image(sizes=[[480, 832]])", r"\[480, 832\] is not made of positive multiples of 64"),
        ("s2v-clips(clip_frames=81)", "clip_frames = 81: input should be a multiple of 4"),
        ("s2v-clips(clip_frames=124)", "clip_frames = 124: input should be less than or equal to 120"),
        ("s2v-audio(silence=-1)", "silence = -1"),
    ],
)
def test_settings_are_checked(settings: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        build_plan(f"s2v+{settings}", discover().catalog())


@pytest.mark.usefixtures("only_headers")
def test_a_size_that_does_not_divide_is_named() -> None:
    engine = Engine(build_plan(PLAN, discover().catalog(), SETTINGS), models())
    with pytest.raises(InputError, match="the size 64x96 is not made of positive multiples of 64"):
        engine.generate(Request(inputs={"image": PORTRAIT}, height=96, width=64, seconds=0.3, fps=16))


@pytest.mark.usefixtures("only_headers")
def test_a_picture_is_required() -> None:
    engine = Engine(build_plan(PLAN, discover().catalog(), SETTINGS), models())
    with pytest.raises(InputError, match="unit 's2v-image': 'image' is required"):
        engine.generate(Request(seconds=0.3, fps=16))


def test_another_audio_encoder_is_refused() -> None:
    adapter = S2VAdapter(**{**ADAPTER, "in_dim": 4, "cond_dim": 4, "audio_layers": 25})
    with pytest.raises(CheckpointError, match="gives 3 hidden states of 32 values and the S2V transformer takes 25"):
        made(given=models(s2v_adapter=adapter), inputs={"audio": SPEECH})


# The command


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_the_command_makes_a_video_with_its_sound(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = randomized(S2VAdapter(**ADAPTER))
    file = write_tiny(tmp_path / "model", randomized(WanDiT(**DIT)), adapter)
    files = [file, *(tiny_file(name) for name in ("vae.safetensors", "text_encoder.safetensors", "wav2vec2"))]
    sound = write_wav(tmp_path / "burst.wav", noise_burst(1, 16000, start=0.2), 16000)
    options = [
        "--size",
        "64x64",
        "--fps",
        "16",
        "--dtype",
        dtype,
        "--seconds",
        "0.375",
        "--schedule.steps",
        "1",
        "--prompt.length",
        "16",
    ]
    words = [word for path in files for word in ("--model", str(path))]
    inputs = ["--image", str(PORTRAIT), "--audio", str(sound), "-o", str(tmp_path / "talk.mp4")]
    assert run_cli(["run", "--units", "s2v", *words, *options, *inputs, "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    info = probe_video(tmp_path / "talk.mp4")
    assert (info.width, info.height, info.fps, info.frames, info.has_audio) == (64, 64, 16, 6, True)
    assert read_video(tmp_path / "talk.mp4").std() > 1
    heard = load_waveform(tmp_path / "talk.mp4")
    start = np.argmax(np.abs(heard) > 0.1 * np.abs(heard).max()) / 16000
    assert start == pytest.approx(0.2, abs=0.01), "the sound is not delayed"
