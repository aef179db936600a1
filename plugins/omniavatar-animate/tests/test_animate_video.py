"""Whole videos of a tiny Animate model: what each window is told, and that it goes with everything else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omniavatar_animate.image import on_black
from omniavatar_animate.motion import no_face
from omniavatar_animate.testing import random_adapter, tiny_animate_models
from omniavatar_i2v.image_dit import ImageDiT
from omniavatar_i2v.testing import IMAGE_DIT
from PIL import Image
from torch import Tensor

from omniavatar.distributed.groups import Group
from omniavatar.distributed.sharding import Sharding
from omniavatar.engine import finite
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Catalog, Plan, build_plan
from omniavatar.engine.scopes import Forward, Job, Request, Step
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import CheckpointError, InputError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.media.ffmpeg import Ffmpeg
from omniavatar.media.image import fit_image, load_image
from omniavatar.media.video import decoder, read_video
from omniavatar.plugins import discover
from omniavatar.resources import asset
from omniavatar.testing import GivenLora, tiny
from omniavatar.testing.recorder import WindowRecorder, video_of
from tests.media.samples import write_lossless
from tests.models.networks import noise, randomized, relative_error

SETTINGS: dict[str, dict[str, Any]] = {
    "prompt": {"length": 16},
    "animate-image": {"sizes": [[32, 32], [32, 48]]},
    "fixed-frames": {"window_frames": 9, "overlap": 5},
    "schedule": {"steps": 2},
    "guidance": {"scale": 3.0},
}
TOKENS = 4
"""Of a frame of 32x32 pixels."""
SPEECH = asset("demo", "speech.flac")


class Look(WindowRecorder):
    """Keeps calls, tokens and windows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedded: list[Tensor] = []
        self.after_first: list[Tensor] = []
        self.conditions: list[dict[str, Tensor]] = []
        self.blocks = 0
        self.black: list[Tensor] = []

    @hookimpl(trylast=True)
    def embed(self, forward: Forward) -> None:
        self.embedded.append(forward.x)
        self.conditions.append(forward.conditions)

    @hookimpl(trylast=True)
    def after_block(self, forward: Forward, index: int) -> None:
        self.blocks += 1
        if index == 0:
            self.after_first.append(forward.x)

    @hookimpl
    def before_step(self, step: Step) -> None:
        self.black.append(no_face(step.window))

    @property
    def latents(self) -> list[Tensor]:
        """Of every window."""
        return [window.latents for window in self.windows]

    @property
    def video(self) -> Tensor:
        return video_of(self.windows)

    @property
    def condition(self) -> Tensor:
        """Of the first window."""
        channels: Tensor = self.windows[0]["condition"]
        return channels


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def networks() -> dict[str, Any]:
    """Tiny networks; weights that leave no default in place in the transformer and beside it."""
    made: dict[str, Any] = tiny_animate_models(dit=randomized(ImageDiT(**IMAGE_DIT))).networks
    return made


@cache
def catalog() -> Catalog:
    return discover().catalog()


def models(**changes: Any) -> tiny.TinyModels:
    return tiny.TinyModels(**{**networks(), **changes})


def make(
    files: dict[str, Path],
    names: Iterable[str] = ("pose", "face"),
    expression: str = "animate",
    *more: PipelineUnit,
    frames: int | None = 9,
    fps: int = 25,
    size: int | None = None,
    given: tiny.TinyModels | None = None,
    inputs: dict[str, Any] | None = None,
    **settings: Any,
) -> Look:
    """A small video of the picture that follows the files of these names."""
    plan = build_plan(f"{expression}-write-video", catalog(), SETTINGS, settings)
    look = Look()
    engine = Engine(Plan((*plan.units, *more)), given or models(), observers=[look])
    wanted = {name: files[name] for name in ("image", *names)} | (inputs or {})
    seconds = None if frames is None else frames / fps
    engine.generate(Request(wanted, seconds=seconds, fps=fps, height=size, width=size))
    return look


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A picture, videos of 21 frames with their own noise in each, a mask whose frame n has the level 10 (n+1)."""
    folder = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(0)
    found = {}
    for name in ("image", "other"):
        found[name] = folder / f"{name}.png"
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(found[name])
    for name, shape in {"pose": (32, 32), "face": (16, 16), "background": (32, 32)}.items():
        found[name] = write_lossless(folder / f"{name}.mkv", generator.integers(0, 256, (21, *shape, 3), np.uint8))
    left = np.zeros((21, 32, 32, 3), np.uint8)
    left[:, :, :16] = 1
    levels = np.arange(10, 220, 10).astype(np.uint8)[:, None, None, None]
    found["mask"] = write_lossless(folder / "mask.mkv", left * levels)
    found["still"] = folder / "still.png"
    Image.fromarray(left[0] * 255).save(found["still"])
    return found


def frames_of(path: Path, start: int, stop: int) -> Tensor:
    """Frames of a lossless video (1 3 n h w) in [0, 1]."""
    from omniavatar.media.video import read_video

    return torch.from_numpy(read_video(path)[start:stop].copy()).permute(3, 0, 1, 2)[None].float() / 255


def encoded(pictures: Tensor) -> Tensor:
    """Latents of pictures in [0, 1]."""
    latents: Tensor = networks()["vae"].encode(pictures * 2 - 1)
    return latents


def fitted(files: dict[str, Path]) -> Tensor:
    return fit_image(load_image(files["image"]), (32, 32))


@pytest.fixture(scope="module")
def moved(files: dict[str, Path]) -> Look:
    """One window that follows pose and face."""
    return make(files)


# The picture


def test_the_picture_is_a_frame_in_front_that_is_not_shown(files: dict[str, Path], moved: Look) -> None:
    assert moved.latents[0].shape[2] == 1 + 3
    assert moved.video.shape == (1, 3, 9, 32, 32)
    reference = encoded(fitted(files)[:, :, None] / 2 + 0.5)
    assert (moved.condition[:, :4, :1] == 1).all()
    torch.testing.assert_close(moved.condition[:, 4:, :1], reference)


def test_behind_it_nothing_is_known(moved: Look) -> None:
    assert not moved.condition[:, :4, 1:].any()
    torch.testing.assert_close(moved.condition[:, 4:, 1:], encoded(torch.full((1, 3, 9, 32, 32), 0.5)))
    assert moved.windows[0]["given_latents"] is None


def test_the_blocks_see_its_tokens(files: dict[str, Path], moved: Look) -> None:
    features = networks()["image_encoder"](fitted(files))
    for conditions in moved.conditions:
        torch.testing.assert_close(conditions["image"], networks()["dit"].embed_image(features))


def test_another_picture_makes_another_video(files: dict[str, Path], moved: Look) -> None:
    other = make({**files, "image": files["other"]})
    assert relative_error(other.latents[0], moved.latents[0]) > 1e-3


def test_all_of_a_picture_is_shown_on_black() -> None:
    placed = on_black(np.full((64, 32, 3), 255, np.uint8), (32, 48))
    assert placed.shape == (1, 3, 32, 48)
    assert (placed[..., 16:32] == 1).all()
    assert (placed[..., :16] == -1).all()
    assert (placed[..., 32:] == -1).all()


def test_the_picture_may_be_cropped_instead(files: dict[str, Path]) -> None:
    wide: dict[str, Any] = {"animate-image": {"sizes": [[32, 48]]}}
    crop: dict[str, Any] = {"animate-image": {"sizes": [[32, 48]], "fit": "cover"}}
    whole = make(files, (), **wide)
    cover = make(files, (), **crop)
    assert whole.video.shape == cover.video.shape == (1, 3, 9, 32, 48)
    assert not whole.condition[:, 4:, :1].equal(cover.condition[:, 4:, :1])


# Pose and face


def test_pose_and_face_change_the_video(files: dict[str, Path], moved: Look) -> None:
    looks = [make(files, names) for names in ((), ("pose",), ("face",))]
    for index, look in enumerate([*looks, moved]):
        for other in looks[:index]:
            assert relative_error(look.latents[0], other.latents[0]) > 1e-3


def test_without_them_nothing_changes(files: dict[str, Path]) -> None:
    with_unit, without = make(files, ()), make(files, (), "animate-animate-motion")
    assert with_unit.latents[0].equal(without.latents[0])


def test_the_pose_is_added_to_the_tokens_of_its_frame(files: dict[str, Path]) -> None:
    posed, plain = make(files, ["pose"]), make(files, ())
    added = (posed.embedded[0] - plain.embedded[0]).unflatten(1, (4, TOKENS))
    adapter = networks()["animate_adapter"]
    expected = adapter.pose(encoded(frames_of(files["pose"], 0, 9)))
    assert not added[:, 0].any()
    torch.testing.assert_close(added[:, 1:], expected, atol=1e-5, rtol=1e-5)


def test_the_tokens_of_a_frame_attend_to_its_face(files: dict[str, Path]) -> None:
    faced, plain = make(files, ["face"], guidance={"scale": 1.0}), make(files, (), guidance={"scale": 1.0})
    adapter = networks()["animate_adapter"]
    faces = adapter.face(frames_of(files["face"], 0, 9) * 2 - 1)
    x = plain.after_first[0]
    for frame in range(4):
        own = slice(frame * TOKENS, (frame + 1) * TOKENS)
        expected = adapter.expression(0, x[:, own], faces[:, [frame]], torch.ones(TOKENS, 5, dtype=torch.bool))
        torch.testing.assert_close(faced.after_first[0][:, own], x[:, own] + expected, atol=1e-5, rtol=1e-5)


def test_the_negative_branch_sees_the_pose_and_a_black_face(files: dict[str, Path]) -> None:
    black = write_lossless(files["face"].parent / "black.mkv", np.zeros((21, 16, 16, 3), np.uint8))
    look, dark, plain = make(files), make({**files, "face": black}), make(files, ())
    positive, negative = 0, 1
    assert relative_error(look.embedded[negative], plain.embedded[negative]) > 1e-3
    torch.testing.assert_close(look.after_first[negative], dark.after_first[negative])
    assert relative_error(look.after_first[positive], dark.after_first[positive]) > 1e-3
    pictures = look.black[0]
    assert pictures.shape == (1, 3, 9, 16, 16)
    assert (pictures == -1).all()


def test_the_shortest_video_limits_the_length(files: dict[str, Path]) -> None:
    short = write_lossless(files["face"].parent / "short.mkv", np.zeros((7, 16, 16, 3), np.uint8))
    assert make(files, frames=None).video.shape[2] == 21
    look = make({**files, "face": short}, frames=17)
    assert look.video.shape[2] == 7
    assert look.latents[0].shape[2] == 1 + 3


def test_behind_the_end_the_last_picture_stays(files: dict[str, Path]) -> None:
    """7 frames are made as 9."""
    look = make(files, ["pose"], frames=7)
    pictures = frames_of(files["pose"], 0, 7)
    pictures = torch.cat([pictures, pictures[:, :, -1:], pictures[:, :, -1:]], dim=2)
    torch.testing.assert_close(look.windows[0]["pose_latents"], encoded(pictures))


def test_a_video_of_another_rate_keeps_its_speed(files: dict[str, Path]) -> None:
    look = make(files, ["pose"], frames=9, fps=50)
    pictures = frames_of(files["pose"], 0, 5).repeat_interleave(2, dim=2)[:, :, :9]
    torch.testing.assert_close(look.windows[0]["pose_latents"], encoded(pictures))


# Replacement


def test_the_background_stays_where_the_mask_is_black(files: dict[str, Path]) -> None:
    look = make({**files, "mask": files["still"]}, ("pose", "face", "background", "mask"))
    mask, latents = look.condition[:, :4, 1:], look.condition[:, 4:, 1:]
    assert not mask[..., :2].any()
    assert (mask[..., 2:] == 1).all()
    torch.testing.assert_close(latents, encoded(frames_of(files["background"], 0, 9)))
    assert relative_error(look.latents[0], make(files).latents[0]) > 1e-3


def test_the_mask_of_every_frame_is_a_channel(files: dict[str, Path]) -> None:
    """Frame 0 fills all channels of its latent frame."""
    look = make(files, ("background", "mask"))
    levels = (1 - look.condition[0, :4, 1:, 0, 0]) * 255
    assert levels.T.round().tolist() == [[10] * 4, [20, 30, 40, 50], [60, 70, 80, 90]]


def test_the_background_chooses_the_size(files: dict[str, Path]) -> None:
    wide = write_lossless(files["face"].parent / "wide.mkv", np.zeros((9, 64, 96, 3), np.uint8))
    look = make({**files, "background": wide}, ("background", "mask"))
    assert look.video.shape[-2:] == (32, 48)


@pytest.mark.parametrize(("given", "missing"), [("background", "mask"), ("mask", "background")])
def test_one_of_background_and_mask_is_not_enough(files: dict[str, Path], given: str, missing: str) -> None:
    with pytest.raises(InputError, match=f"both background and mask are needed; give --{missing} as well"):
        make(files, [given])


# Long video


@pytest.mark.slow
@pytest.mark.parametrize("names", [("pose", "face"), ("pose", "face", "background", "mask")])
def test_each_window_reads_its_part_and_is_told_what_it_takes_over(
    files: dict[str, Path], names: tuple[str, ...]
) -> None:
    look = make({**files, "mask": files["still"]}, names, frames=13)
    assert look.video.shape[2] == 13
    first, second = look.windows
    torch.testing.assert_close(second["pose_latents"], encoded(frames_of(files["pose"], 4, 13)))
    adapter = networks()["animate_adapter"]
    torch.testing.assert_close(second["face_tokens"], adapter.face(frames_of(files["face"], 4, 13) * 2 - 1))
    assert second["condition"][:, :, :1].equal(first["condition"][:, :, :1])
    pictures = torch.full((1, 3, 9, 32, 32), 0.5)
    if "background" in names:
        pictures = frames_of(files["background"], 4, 13)
    pictures[:, :, :5] = first["frames"][:, :, 4:]
    torch.testing.assert_close(second["condition"][:, 4:, 1:], encoded(pictures), atol=1e-5, rtol=1e-5)
    mask = second["condition"][:, :4, 1:]
    assert (mask[:, :, :2] == 1).all()
    assert (mask[:, :, 2, :, :2] == 0).all()
    assert (mask[:, :, 2, :, 2:] == float("background" in names)).all()
    given = second["given_latents"]
    assert look.latents[1][:, :, 1:3].equal(given)


def test_every_frame_is_decoded_once(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two windows and four videos: four decoders, which are gone when the job is done."""
    started: list[Ffmpeg] = []

    def counted(source: Path, arguments: list[str]) -> Ffmpeg:
        started.append(decoder(source, arguments))
        return started[-1]

    monkeypatch.setattr("omniavatar.media.footage.decoder", counted)
    assert len(make(files, ["pose", "face", "background", "mask"], frames=13).windows) == 2
    assert len(started) == 4
    for process in started:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def test_videos_in_memory_are_followed_as_their_files(files: dict[str, Path]) -> None:
    names = ["pose", "face", "background", "mask"]
    held = {name: (read_video(files[name]), 25) for name in names} | {"image": Image.open(files["image"])}
    assert make(files, inputs=held).latents[0].equal(make(files, names).latents[0])


# Together with other units


@pytest.mark.slow
@pytest.mark.parametrize(
    "others",
    ["+cfg-merge", "+sequence-parallel", "+teacache(threshold=1e-9)", "+vae-parallel+fsdp"],
)
def test_units_that_only_spread_or_save_work_change_nothing(files: dict[str, Path], moved: Look, others: str) -> None:
    look = make(files, expression="animate" + others)
    torch.testing.assert_close(look.latents[0], moved.latents[0], atol=1e-4, rtol=1e-4)


def test_branches_share_a_call(files: dict[str, Path], moved: Look) -> None:
    merged = make(files, expression="animate+cfg-merge")
    assert 2 * len(merged.embedded) == len(moved.embedded)
    assert merged.embedded[0].shape[0] == 2


@pytest.mark.slow
def test_skipped_steps_keep_what_the_face_added(files: dict[str, Path]) -> None:
    steps: dict[str, Any] = {"schedule": {"steps": 6}, "frames": 13}
    plan = "animate+teacache(threshold=10)"
    full, cached, faceless = (
        make(files, **steps),
        make(files, expression=plan, **steps),
        make(files, ["pose"], plan, **steps),
    )
    assert cached.blocks == full.blocks / 3, "the first and the last of six steps"
    assert relative_error(cached.latents[1], faceless.latents[1]) > 1e-3


class WithLora(tiny.TinyModels):
    """A LoRA for one layer."""

    layer = "blocks.1.self_attn.q"

    def adapters(self) -> list[Any]:
        width = IMAGE_DIT["dim"]
        pairs = {f"{self.layer}.lora_A.weight": noise(2, width), f"{self.layer}.lora_B.weight": noise(width, 2, seed=1)}
        return [GivenLora(pairs)]


def test_a_lora_changes_the_video(files: dict[str, Path], moved: Look) -> None:
    own: dict[str, Any] = models(dit=randomized(ImageDiT(**IMAGE_DIT))).networks
    given = WithLora(**own)
    assert relative_error(make(files, given=given).latents[0], moved.latents[0]) > 1e-3


def test_a_lora_for_the_face_layers_is_refused(files: dict[str, Path]) -> None:
    given = WithLora(**networks())
    given.layer = "face_adapter.fuser_blocks.0.linear2"
    with pytest.raises(CheckpointError, match="face_adapter"):
        make(files, given=given)


class Rank(Group):
    """One of several ranks; the parts of the others are unknown."""

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return [tensor if rank == self.rank else torch.full_like(tensor, torch.nan) for rank in range(self.size)]


class Part(PipelineUnit):
    """Some of the tokens of a call, as sequence-parallel leaves a rank."""

    name = "part"

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size

    @hookimpl(wrapper=True, tryfirst=True)
    def embed(self, forward: Forward) -> Iterator[None]:
        yield
        forward.shard_tokens(Sharding(Rank(self.rank, self.size), forward.x.shape[1]))


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_tokens_of_every_rank_see_their_pose_and_face(
    files: dict[str, Path], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without exchange between tokens, the parts of 16 tokens are those of one rank alone, padding or not; the other
    tokens are no numbers."""
    monkeypatch.setattr(finite.Watch, "check", lambda *_: None)
    dit = randomized(ImageDiT(**IMAGE_DIT, attention=lambda q, k, v: v))
    plain: dict[str, Any] = {"schedule": {"steps": 1}, "given": models(dit=dit)}
    whole = make(files, **plain).latents[0]
    parts = [make(files, ("pose", "face"), "animate", Part(rank, size), **plain).latents[0] for rank in range(size)]
    known = torch.stack([part.isfinite() for part in parts])
    assert (known.sum(dim=0) == 1).all()
    joined = torch.stack(parts).nan_to_num(0).sum(dim=0)
    torch.testing.assert_close(joined, whole, atol=1e-4, rtol=1e-4)


def test_two_experts_share_the_layers(files: dict[str, Path], moved: Look) -> None:
    second = randomized(ImageDiT(**IMAGE_DIT), seed=5)
    look = make(files, expression="animate+moe(offload=false)", given=models(dit2=second), moe={"boundary": 0.9})
    assert look.blocks == moved.blocks
    assert relative_error(look.latents[0], moved.latents[0]) > 1e-3


@pytest.mark.slow
def test_sound_drives_an_animated_person(files: dict[str, Path]) -> None:
    """Its features go to the tokens of the video alone; the shorter of sound and pose sets the length."""
    setting: dict[str, Any] = {"audio": {"silence": 0}, "frames": 13}
    silent = make(files, expression="animate-avatar", **setting)
    talking = make(files, expression="animate-avatar", inputs={"audio": SPEECH}, **setting)
    assert talking.video.shape[2] == 13
    for index in range(2):
        assert relative_error(talking.latents[index], silent.latents[index]) > 1e-3
    assert make(files, expression="animate-avatar", inputs={"audio": SPEECH}, frames=None).video.shape[2] == 21


# What is refused


@pytest.mark.parametrize("other", ["reference-image", "image-to-video"])
def test_other_pictures_have_no_place(other: str) -> None:
    with pytest.raises(PlanError, match="both provide"):
        build_plan(f"animate+{other}", catalog())


def test_pieces_without_the_picture_are_refused() -> None:
    with pytest.raises(PlanError, match="'animate-image' and 'sliding-window' cannot work together"):
        build_plan("animate+sliding-window", catalog())


class Leading(PipelineUnit):
    """A frame in front of the video, as reference pictures of other models are."""

    name = "leading"

    @hookimpl
    def begin_job(self, job: Job) -> None:
        job.leading += 1


def test_other_frames_in_front_are_refused(files: dict[str, Path]) -> None:
    with pytest.raises(PlanError, match="puts 1 frame in front of the video and other units 1"):
        make(files, (), "animate", Leading())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dim": 48}, "have width 48 and the transformer has width 96; give both from one file"),
        (
            {"face_layers": 1},
            "do not reach the last of 6 blocks; put the config.json of the checkpoint, with 'face_every'",
        ),
        ({"face_layers": 3}, "go up to block 10 and the transformer has 6 blocks; give both from one file"),
    ],
)
def test_layers_of_another_transformer_are_refused(files: dict[str, Path], change: dict[str, int], reason: str) -> None:
    adapter = random_adapter(**change)
    with pytest.raises(CheckpointError, match=reason):
        make(files, given=models(animate_adapter=adapter))


@pytest.mark.usefixtures("only_headers")
def test_a_picture_is_required() -> None:
    engine = Engine(build_plan("animate", catalog(), SETTINGS), models())
    with pytest.raises(InputError, match="unit 'animate-image': 'image' is required"):
        engine.generate(Request(seconds=0.36))


@pytest.mark.usefixtures("only_headers")
def test_a_size_that_does_not_divide_is_named(files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="the size 40x40 is not made of positive multiples of 16"):
        make(files, size=40)


def test_stills_alone_leave_the_length_open(files: dict[str, Path]) -> None:
    look = make({**files, "pose": files["still"]}, ["pose"])
    assert look.video.shape[2] == 9
    with pytest.raises(InputError, match="the length of the video is unknown"):
        make({**files, "pose": files["still"]}, ["pose"], frames=None)
