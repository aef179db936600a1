"""The units in an engine over tiny networks: what the transformer is told, in every window, beside other units."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omniavatar_fun.camera import token_places
from omniavatar_fun.networks import CameraAdapter, ReferenceEmbedding
from omniavatar_fun.testing import CAMERA, CAMERA_DIT, CAMERA_DIT_22, CONTROL_DIT, CONTROL_DIT_22, REFERENCE
from omniavatar_fun.trajectory import ORIGIN, directed, folded_rays
from omniavatar_i2v.image_dit import ImageDiT
from omniavatar_i2v.testing import tiny_image_models
from PIL import Image
from torch import Tensor, nn

from omniavatar.distributed.groups import Group
from omniavatar.distributed.sharding import Sharding
from omniavatar.engine import finite
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Catalog, Plan, build_plan
from omniavatar.engine.run import Result
from omniavatar.engine.scopes import Branch, Forward, Job, Request, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import CheckpointError, InputError, OmniError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.media.image import fit_image, load_image
from omniavatar.models.wan_dit import BlockInputs, WanDiT
from omniavatar.plugins import discover
from omniavatar.testing.models import GivenModels
from omniavatar.testing.recorder import WindowRecorder
from tests.media.samples import write_lossless, write_wav
from tests.models.networks import randomized, relative_error

SETTINGS: dict[str, dict[str, Any]] = {
    "prompt": {"length": 16},
    "image-to-video": {"sizes": [[32, 32]]},
    "fixed-frames": {"window_frames": 9, "overlap": 5},
    "schedule": {"steps": 2},
    "guidance": {"scale": 3.0},
}
CONTROL, REFERENCED, CAMERA_VIDEO = "fun-control-video", "fun-reference-video", "fun-camera-video"
PER_FRAME = 4
"""Tokens of a frame of 32x32 pixels."""


class Watch(WindowRecorder):
    """What happened in every window and every call."""

    engine: Engine

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []
        self.blocks = 0

    @hookimpl(tryfirst=True)
    def before_block(self, forward: Forward, index: int) -> None:
        self.blocks += 1
        if index == 0:
            names = ("x", "conditions", "rope", "grid", "frame_index")
            self.calls.append({name: getattr(forward, name) for name in names})

    @property
    def latents(self) -> list[Tensor]:
        """Of every window."""
        return [window.latents for window in self.windows]

    def __getitem__(self, name: str) -> Any:
        """A value of the whole video."""
        return self.windows[0][name]

    @property
    def condition(self) -> Tensor:
        """Of the first window."""
        condition: Tensor = self.windows[0]["condition"]
        return condition


def make(
    expression: str,
    models: GivenModels | None = None,
    *,
    frames: int | None = 9,
    size: int | None = 32,
    extra: Iterable[PipelineUnit] = (),
    settings: dict[str, dict[str, Any]] | None = None,
    **inputs: Any,
) -> tuple[Result, Watch]:
    """A video of some frames by a plan that writes none, and decodes only what a later window goes on from."""
    leave_out = "-write-video" if "fixed-frames" in expression or "avatar" in expression else "-write-video-vae-decode"
    plan = build_plan(expression + leave_out, catalog(), SETTINGS, settings or {})
    watch = Watch()
    watch.engine = Engine(Plan((*plan.units, *extra)), models or made_for(expression), observers=[watch])
    seconds = None if frames is None else frames / 25
    return watch.engine.generate(Request(inputs, seconds=seconds, height=size, width=size)), watch


@cache
def catalog() -> Catalog:
    """All units."""
    return discover().catalog()


def made_for(expression: str, **networks: nn.Module) -> GivenModels:
    """Tiny networks of the kind that a plan is for, with weights that leave no default in place."""
    config = CAMERA_DIT if "camera" in expression else CONTROL_DIT
    parts: dict[str, nn.Module] = {
        "dit": randomized(ImageDiT(**config)),
        "fun_reference": randomized(ReferenceEmbedding(**REFERENCE), seed=1),
        "fun_camera": randomized(CameraAdapter(**CAMERA), seed=2),
    }
    models: GivenModels = tiny_image_models(**{**parts, **networks})
    return models


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny tensors are slower on many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Control videos of 13 frames and of 6, pictures, a voice, a trajectory."""
    folder = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(0)
    video = generator.integers(0, 256, (13, 32, 32, 3), np.uint8)
    for name in ("first", "reference"):
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{name}.png")
    poses = directed("LeftUp", torch.arange(4)).tolist()
    (folder / "poses.txt").write_text("\n".join(["https://title", *(" ".join(map(str, pose)) for pose in poses)]))
    return {
        "control": write_lossless(folder / "control.mkv", video),
        "short": write_lossless(folder / "short.mkv", video[:6]),
        "first": folder / "first.png",
        "reference": folder / "reference.png",
        "voice": write_wav(folder / "voice.wav", 0.1 * np.ones(16000 * 8 // 25, np.float32), 16000),
        "poses": folder / "poses.txt",
    }


def shown(path: Path) -> Tensor:
    """The frames of a lossless video (1 3 n h w) in [-1, 1]."""
    from omniavatar.media.video import read_video

    return torch.from_numpy(read_video(path).copy()).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def encoded(watch: Watch, pictures: Tensor) -> Tensor:
    """The latents of pictures (1 3 t h w)."""
    latents: Tensor = watch.engine.model("vae").encode(pictures)
    return latents


class Merged(PipelineUnit):
    """All branches in one transformer call."""

    name = "merged"

    @hookimpl
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor]:
        return step.forward(branches).chunk(len(branches))


class Lead(PipelineUnit):
    """One frame of its own in front."""

    name = "lead"

    @hookimpl
    def begin_job(self, job: Job) -> None:
        job.leading += 1


class Experts(PipelineUnit):
    """The second step goes to another transformer."""

    name = "experts"
    experts = ("dit", "dit2")

    @hookimpl
    def begin_window(self, window: Window) -> None:
        window.steps[1].expert = "dit2"


# A control video


def test_the_video_follows_the_control(files: dict[str, Path]) -> None:
    (_, one), (_, same) = (make(CONTROL, control_video=files["control"]) for _ in range(2))
    _, other = make(CONTROL, control_video=files["short"])
    assert one.latents[0].equal(same.latents[0])
    assert relative_error(other.latents[0], one.latents[0]) > 1e-4


def test_without_a_control_video_the_network_is_one_without_its_channels(files: dict[str, Path]) -> None:
    dit = randomized(WanDiT(**{**CONTROL_DIT_22}))
    state, kept = dit.state_dict(), [*range(16), *range(32, 52)]
    smaller = WanDiT(**{**CONTROL_DIT_22, "in_dim": 36})
    smaller.load_state_dict({**state, "patch_embedding.weight": state["patch_embedding.weight"][:, kept]})
    _, mine = make(CONTROL, made_for(CONTROL, dit=dit), image=files["first"])
    _, plain = make("i2v", made_for(CONTROL, dit=smaller), image=files["first"])
    torch.testing.assert_close(mine.latents[0], plain.latents[0], atol=1e-5, rtol=1e-5)


def test_each_window_is_told_its_part_of_the_control(files: dict[str, Path]) -> None:
    _, watch = make(f"{CONTROL}+fixed-frames", control_video=files["control"], frames=13)
    pictures = shown(files["control"])
    for window, start in zip(watch.windows, (0, 4), strict=True):
        expected = encoded(watch, pictures[:, :, start : start + 9])
        torch.testing.assert_close(window["condition"][:, :16], expected, atol=1e-5, rtol=1e-5)


def test_behind_its_end_the_last_picture_stays(files: dict[str, Path]) -> None:
    """6 frames of control: the third window begins with frame 8, the fourth with 12."""
    _, watch = make(f"{CONTROL}+fixed-frames", control_video=files["short"], frames=21)
    pictures = shown(files["short"])
    pictures = torch.cat([pictures, pictures[:, :, -1:].expand(-1, -1, 15, -1, -1)], dim=2)
    assert len(watch.windows) == 4
    for window, start in zip(watch.windows, range(0, 16, 4), strict=True):
        expected = encoded(watch, pictures[:, :, start : start + 9])
        torch.testing.assert_close(window["condition"][:, :16], expected, atol=1e-5, rtol=1e-5)


def test_a_picture_as_control_holds_and_sets_no_length(files: dict[str, Path]) -> None:
    _, watch = make(CONTROL, control_video=files["first"])
    pictures = fit_image(load_image(files["first"]), (32, 32))[:, :, None].expand(-1, -1, 9, -1, -1)
    torch.testing.assert_close(watch.condition[:, :16], encoded(watch, pictures), atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match=r"no audio is given, so the length of the video is unknown; give one"):
        make(CONTROL, control_video=files["first"], frames=None)


def test_a_network_without_mask_sees_the_picture_in_its_frame_alone(files: dict[str, Path]) -> None:
    _, watch = make(CONTROL, control_video=files["control"], image=files["first"])
    picture = watch.condition[:, 16:]
    torch.testing.assert_close(picture[:, :, :1], watch["image_latent"], atol=1e-5, rtol=1e-5)
    assert picture[:, :, 1:].count_nonzero() == 0
    assert make(CONTROL)[1].condition.equal(torch.zeros(1, 32, 3, 4, 4))


def test_grey_is_what_another_program_shows_it(files: dict[str, Path]) -> None:
    pictures = torch.zeros(1, 3, 9, 32, 32)
    pictures[:, :, :1] = fit_image(load_image(files["first"]), (32, 32))[:, :, None]
    _, watch = make(CONTROL, image=files["first"], settings={"fun-control": {"unknown": "grey"}})
    torch.testing.assert_close(watch.condition[:, 16:], encoded(watch, pictures), atol=1e-5, rtol=1e-5)


def test_a_network_with_mask_sees_all_of_the_condition(files: dict[str, Path]) -> None:
    models = made_for(CONTROL, dit=randomized(WanDiT(**CONTROL_DIT_22)))
    pictures: dict[str, Any] = {"image": files["first"], "end_image": files["reference"]}
    _, plain = make("i2v", made_for(CONTROL, dit=randomized(WanDiT(**CAMERA_DIT_22))), **pictures)
    _, watch = make(CONTROL, models, control_video=files["control"], **pictures)
    assert watch.condition.shape == (1, 36, 3, 4, 4)
    assert watch.condition[:, 16:].equal(plain.condition)


def test_later_windows_know_the_frames_they_take_over(files: dict[str, Path]) -> None:
    inputs: dict[str, Any] = {"control_video": files["control"], "image": files["first"], "frames": 13}
    _, watch = make(f"{CONTROL}+fixed-frames", **inputs)
    second = watch.windows[1]
    assert second["given_latents"].shape[2] == 2
    torch.testing.assert_close(second["condition"][:, 16:, :2], second["given_latents"], atol=1e-5, rtol=1e-5)
    assert second["condition"][:, 16:, 2:].count_nonzero() == 0
    assert watch.latents[1][:, :, :2].equal(second["given_latents"])


def test_frames_in_front_have_neither_control_nor_picture(files: dict[str, Path]) -> None:
    inputs = control(files, image=files["first"])
    _, plain = make(CONTROL, **inputs)
    _, watch = make(CONTROL, extra=[Lead()], **inputs)
    assert watch.condition[:, :, :1].count_nonzero() == 0
    assert watch.condition[:, :, 1:].equal(plain.condition)


def test_size_and_length_are_those_of_the_control_video(files: dict[str, Path]) -> None:
    settings = {"fun-control": {"pixels": 48 * 48}}
    result, watch = make(CONTROL, frames=None, size=None, settings=settings, **control(files, image=files["first"]))
    assert (result.size, result.frames) == ((48, 48), 13)
    assert watch.latents[0].shape == (1, 16, 4, 6, 6)
    result, _ = make(CONTROL, frames=5, size=None, image=files["first"])
    assert (result.size, result.frames) == ((32, 32), 5)


def control(files: dict[str, Path], **more: Any) -> dict[str, Any]:
    """Inputs with a control video."""
    return {"control_video": files["control"], **more}


def test_a_sound_sets_the_length_and_drives_a_controlled_avatar(files: dict[str, Path]) -> None:
    """8 rows of sound make 9 frames; the control video would have 13."""
    models = made_for(REFERENCED)
    settings = {"audio": {"silence": 0}}
    inputs = control(files, image=files["first"], reference_image=files["reference"], frames=None)
    plan = "i2v-avatar+fun-control+fun-reference"
    _, talking = make(plan, models, settings=settings, audio=files["voice"], **inputs)
    _, silent = make(plan, models, settings=settings, **{**inputs, "frames": 9})
    assert talking.latents[0].shape[2] == silent.latents[0].shape[2] == 3
    assert talking.calls[0]["x"].equal(silent.calls[0]["x"])
    assert talking.latents[0][:, :, :1].equal(silent.latents[0][:, :, :1]), "frame 0 is the picture"
    assert not talking.latents[0][:, :, 1:].equal(silent.latents[0][:, :, 1:])


# A reference picture


def test_the_reference_is_a_frame_of_tokens_in_front(files: dict[str, Path]) -> None:
    models = made_for(REFERENCED)
    _, watch = make(REFERENCED, models, **control(files, reference_image=files["reference"]))
    dit: Any = models.networks["dit"]
    call = watch.calls[0]
    latent = encoded(watch, fit_image(load_image(files["reference"]), (32, 32))[:, :, None])
    torch.testing.assert_close(call["x"][:, :PER_FRAME], models.networks["fun_reference"](latent))
    assert call["grid"] == (4, 2, 2)
    assert call["rope"].equal(dit.rope((4, 2, 2)))
    assert call["frame_index"].tolist() == [n for n in (-1, 0, 1, 2) for _ in range(PER_FRAME)]
    assert watch.latents[0].shape == (1, 16, 3, 4, 4)


def test_the_velocity_is_that_of_the_frames_behind_the_reference(files: dict[str, Path]) -> None:
    """The network by hand, over one frame more, of which the result is dropped."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Compare(PipelineUnit):
        name = "compare"

        @hookimpl(wrapper=True, tryfirst=True)
        def unembed(self, forward: Forward) -> Iterator[None]:
            yield
            dit, layer = forward.network, forward.engine.model("fun_reference")
            x, (_, rows, columns) = dit.embed_patches(torch.cat([forward.latents, forward["condition"]], dim=1))
            x = torch.cat([layer(forward["fun-reference.latent"]), x], dim=1)
            time, t_mod = dit.embed_time(torch.tensor([forward.step.timestep], dtype=torch.float64))
            for block in dit.blocks:
                x = block(x, BlockInputs(t_mod, dit.rope((4, rows, columns)), forward.conditions))
            seen.append((forward.output, dit.unembed(x[:, PER_FRAME:], time, (3, rows, columns))))

    plan = build_plan(f"{REFERENCED}-write-video", catalog(), SETTINGS)
    engine = Engine(Plan((Compare(), *plan.units)), made_for(REFERENCED))
    inputs = control(files, reference_image=files["reference"])
    engine.generate(Request(inputs, seconds=9 / 25, height=32, width=32))
    assert len(seen) == 4
    for actual, expected in seen:
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_another_reference_makes_another_video(files: dict[str, Path]) -> None:
    videos = [
        make(REFERENCED, **control(files, **inputs))[1].latents[0]
        for inputs in ({}, {"reference_image": files["reference"]}, {"reference_image": files["first"]})
    ]
    videos.append(make(CONTROL, **control(files))[1].latents[0])
    for index, video in enumerate(videos):
        for other in videos[:index]:
            assert relative_error(video, other) > 1e-4


def test_without_a_reference_the_frame_is_empty(files: dict[str, Path]) -> None:
    models = made_for(REFERENCED)
    layer: Any = models.networks["fun_reference"]
    _, watch = make(REFERENCED, models, **control(files))
    assert watch.calls[0]["x"][:, :PER_FRAME].equal(layer.ref_conv.bias.expand(1, PER_FRAME, -1))
    assert watch["image_features"].count_nonzero() == 0


def test_clip_sees_the_reference_in_place_of_the_first_frame(files: dict[str, Path]) -> None:
    models = made_for(REFERENCED)
    pictures = {"image": files["first"], "reference_image": files["reference"]}
    _, watch = make(REFERENCED, models, **control(files, **pictures))
    encoder: Any = models.networks["image_encoder"]
    expected = encoder(fit_image(load_image(files["reference"]), (32, 32)))
    torch.testing.assert_close(watch["image_features"], expected)
    dit: Any = models.networks["dit"]
    torch.testing.assert_close(watch.calls[0]["conditions"]["image"], dit.embed_image(expected))
    torch.testing.assert_close(watch.condition[:, 16:, :1], watch["image_latent"], atol=1e-5, rtol=1e-5)


def test_a_network_without_image_tokens_takes_a_reference_too(files: dict[str, Path]) -> None:
    models = made_for(REFERENCED, dit=randomized(WanDiT(**CONTROL_DIT_22)))
    del models.networks["image_encoder"]
    _, watch = make(REFERENCED, models, **control(files, reference_image=files["reference"]))
    assert watch["image_features"] is None
    assert watch.calls[0]["x"].shape == (1, 4 * PER_FRAME, 96)


# A camera


def test_the_camera_is_added_to_the_tokens(files: dict[str, Path]) -> None:
    models = made_for(CAMERA_VIDEO)
    _, still = make(CAMERA_VIDEO, models, image=files["first"])
    _, moving = make(CAMERA_VIDEO, models, image=files["first"], camera="Left", camera_speed=0.1)
    adapter = models.networks["fun_camera"]
    rays = torch.cat(list(folded_rays(directed("Left", torch.arange(9), 0.1), (32, 32))), dim=2)
    added = moving.calls[0]["x"] - still.calls[0]["x"]
    torch.testing.assert_close(added, adapter(rays), atol=1e-5, rtol=1e-5)
    assert relative_error(moving.latents[0], still.latents[0]) > 1e-4


def test_without_a_camera_the_network_is_an_image_to_video_one(files: dict[str, Path]) -> None:
    dit = randomized(WanDiT(**CAMERA_DIT_22))
    _, mine = make(CAMERA_VIDEO, made_for(CAMERA_VIDEO, dit=dit), image=files["first"])
    _, plain = make("i2v", made_for(CAMERA_VIDEO, dit=dit), image=files["first"])
    assert mine.latents[0].equal(plain.latents[0])


def test_a_camera_network_without_mask_sees_the_picture_in_its_frame_alone(files: dict[str, Path]) -> None:
    _, watch = make(CAMERA_VIDEO, image=files["first"], camera="In")
    assert watch.condition.shape == (1, 16, 3, 4, 4)
    torch.testing.assert_close(watch.condition[:, :, :1], watch["image_latent"], atol=1e-5, rtol=1e-5)
    assert watch.condition[:, :, 1:].count_nonzero() == 0


def test_a_trajectory_is_the_same_as_its_direction_while_it_lasts(files: dict[str, Path]) -> None:
    """Of 4 poses the last one holds: the first latent frame is the same, the second is not quite, the third differs."""
    models = made_for(CAMERA_VIDEO)
    _, along = make(CAMERA_VIDEO, models, image=files["first"], camera_trajectory=files["poses"])
    _, toward = make(CAMERA_VIDEO, models, image=files["first"], camera="LeftUp")
    trajectory, direction = (watch.calls[0]["x"] for watch in (along, toward))
    torch.testing.assert_close(trajectory[:, :PER_FRAME], direction[:, :PER_FRAME])
    assert relative_error(trajectory[:, PER_FRAME:], direction[:, PER_FRAME:]) > 1e-3


def test_every_window_is_told_the_way_from_its_first_frame(files: dict[str, Path]) -> None:
    """Going straight, both windows are told the same; along a trajectory that ends, the second one rests."""
    settings = {"schedule": {"steps": 1}, "guidance": {"scale": 1}}
    options: dict[str, Any] = {"models": made_for(CAMERA_VIDEO), "image": files["first"], "frames": 13}
    plan = f"{CAMERA_VIDEO}+fixed-frames"
    _, still = make(plan, **options, settings=settings)
    _, going = make(plan, **options, settings=settings, camera="In")
    _, ending = make(plan, **options, settings=settings, camera_trajectory=files["poses"])
    first, second = (going.calls[n]["x"] - still.calls[n]["x"] for n in (0, 1))
    same_latents = slice(2 * PER_FRAME, None)  # behind the frames taken over, which differ
    torch.testing.assert_close(first[:, same_latents], second[:, same_latents], atol=1e-5, rtol=1e-5)
    resting = made_for(CAMERA_VIDEO).networks["fun_camera"](
        torch.cat(list(folded_rays(torch.tensor([ORIGIN] * 9, dtype=torch.float64), (32, 32))), dim=2)
    )
    rested = ending.calls[1]["x"] - still.calls[1]["x"]
    torch.testing.assert_close(rested[:, same_latents], resting[:, same_latents], atol=1e-5, rtol=1e-5)


def test_frames_in_front_have_no_camera(files: dict[str, Path]) -> None:
    options: dict[str, Any] = {"models": made_for(CAMERA_VIDEO), "image": files["first"]}
    _, alone = make(CAMERA_VIDEO, **options, camera="Up")
    _, moving = make(CAMERA_VIDEO, **options, camera="Up", extra=[Lead()])
    _, still = make(CAMERA_VIDEO, **options, extra=[Lead()])
    added = moving.calls[0]["x"] - still.calls[0]["x"]
    assert added[:, :PER_FRAME].count_nonzero() == 0
    base = make(CAMERA_VIDEO, **options)[1].calls[0]["x"]
    torch.testing.assert_close(added[:, PER_FRAME:], alone.calls[0]["x"] - base, atol=1e-5, rtol=1e-5)


def test_tokens_find_their_place_whichever_frames_a_call_has() -> None:
    frames = torch.tensor([-1, -1, 1, 1, 1, -1, 2, 2, 2, -1])
    assert token_places(frames, 3, nowhere=99).tolist() == [99, 99, 3, 4, 5, 99, 6, 7, 8, 99]


# Beside other units


CASES: dict[str, dict[str, Any]] = {
    REFERENCED: {"control_video": "control", "reference_image": "reference", "image": "first"},
    CAMERA_VIDEO: {"camera": "RightDown", "image": "first"},
}


def found(inputs: dict[str, Any], files: dict[str, Path]) -> dict[str, Any]:
    """Inputs with the paths of files."""
    return {name: files.get(value, value) if isinstance(value, str) else value for name, value in inputs.items()}


@pytest.mark.slow
@pytest.mark.parametrize("plan", CASES)
def test_branches_may_share_a_call(files: dict[str, Path], plan: str) -> None:
    inputs = found(CASES[plan], files)
    (_, apart), (_, joined) = make(plan, **inputs), make(plan, extra=[Merged()], **inputs)
    assert len(joined.calls) == 2
    assert joined.calls[0]["x"].shape[0] == 2
    torch.testing.assert_close(joined.latents[0], apart.latents[0], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("others", ["sequence-parallel", "teacache(threshold=1e-9)", "vae-parallel+fsdp"])
@pytest.mark.parametrize("plan", CASES)
def test_units_that_only_spread_or_save_work_change_nothing(files: dict[str, Path], plan: str, others: str) -> None:
    models, inputs = made_for(plan), found(CASES[plan], files)
    (_, plain), (_, more) = make(plan, models, **inputs), make(f"{plan}+{others}", models, **inputs)
    torch.testing.assert_close(more.latents[0], plain.latents[0], atol=1e-6, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("plan", CASES)
def test_skipped_steps_of_every_window_need_no_blocks(files: dict[str, Path], plan: str) -> None:
    settings, inputs = {"schedule": {"steps": 6}}, found(CASES[plan], files)
    _, plain = make(f"{plan}+fixed-frames", frames=13, settings=settings, **inputs)
    _, cached = make(f"{plan}+fixed-frames+teacache(threshold=10)", frames=13, settings=settings, **inputs)
    assert len(cached.latents) == 2
    assert cached.blocks == plain.blocks * 2 // 6
    assert all(latents.isfinite().all() for latents in cached.latents)


@pytest.mark.slow
def test_a_second_transformer_has_its_own_parts(files: dict[str, Path]) -> None:
    settings = {"guidance": {"scale": 1}}
    for plan, role, part in (
        (REFERENCED, "fun_reference", ReferenceEmbedding(**REFERENCE)),
        (CAMERA_VIDEO, "fun_camera", CameraAdapter(**CAMERA)),
    ):
        options: dict[str, Any] = {"extra": [Experts()], "settings": settings, **found(CASES[plan], files)}
        twin = made_for(plan).networks["dit"]
        first, second = made_for(plan).networks[role], randomized(part, seed=7)
        both = make(plan, made_for(plan, dit2=twin, **{f"{role}2": second}), **options)[1].calls
        one = make(plan, made_for(plan, dit2=twin), **options)[1].calls
        assert both[0]["x"].equal(one[0]["x"])
        assert relative_error(both[1]["x"], one[1]["x"]) > 1e-2
        assert not any(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


class Rank(Group):
    """One of several ranks; the parts of the others are unknown."""

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return [tensor if rank == self.rank else torch.full_like(tensor, torch.nan) for rank in range(self.size)]


class Shard(PipelineUnit):
    """A part of the tokens of a call, as sequence-parallel leaves a rank."""

    name = "shard"

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__()
        self.group = Rank(rank, ranks)

    @hookimpl(wrapper=True, tryfirst=True)
    def embed(self, forward: Forward) -> Iterator[None]:
        yield
        forward.shard_tokens(Sharding(self.group, forward.x.shape[1]))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("plan", CASES)
def test_the_parts_of_all_ranks_are_the_whole(
    files: dict[str, Path], plan: str, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without exchange between tokens, each rank's part is that of one rank alone; the other tokens are no numbers."""
    monkeypatch.setattr(finite.Watch, "check", lambda *_: None)
    config = CAMERA_DIT if plan == CAMERA_VIDEO else CONTROL_DIT
    models = made_for(plan, dit=randomized(ImageDiT(**config, attention=lambda q, k, v: v)))
    options: dict[str, Any] = {"settings": {"schedule": {"steps": 1}}, **found(CASES[plan], files)}
    whole = make(plan, models, **options)[1].latents[0]
    parts = [make(plan, models, extra=[Shard(rank, ranks)], **options)[1].latents[0] for rank in range(ranks)]
    known = torch.stack([part.isfinite() for part in parts])
    assert (known.sum(dim=0) == 1).all()
    torch.testing.assert_close(torch.stack(parts).nan_to_num().sum(dim=0), whole, atol=1e-5, rtol=1e-5)


# What is refused


@pytest.mark.usefixtures("only_headers")
@pytest.mark.parametrize(
    ("plan", "inputs", "error", "reason"),
    [
        (CONTROL, {"control_video": "no.mp4"}, InputError, "video 'no.mp4' does not exist"),
        (CONTROL, {"frames": None}, InputError, "length of the video is unknown"),
        (CONTROL, {"image": "first", "end_image": "first"}, InputError, "takes no end picture; leave --end-image out"),
        (CONTROL, {"image": "first", "end_image": "first", "frames": 6}, InputError, "takes no end picture"),
        (CAMERA_VIDEO, {"image": "first", "end_image": "first"}, InputError, "takes no end picture"),
        (REFERENCED, {"reference_image": "no.png"}, InputError, "image 'no.png' does not exist"),
        (CAMERA_VIDEO, {"camera": "Sideways"}, InputError, "unit 'fun-camera': camera = 'Sideways'.*'LeftUp'"),
        (CAMERA_VIDEO, {"camera_speed": -1}, InputError, "unit 'fun-camera': camera_speed = -1"),
        (CAMERA_VIDEO, {"camera_trajectory": "no.txt"}, InputError, "trajectory 'no.txt' does not exist"),
        (CAMERA_VIDEO, {"camera": "In", "camera_trajectory": "poses"}, InputError, "a direction or along a trajectory"),
        (f"{CONTROL}+fun-camera", {}, PlanError, "no Fun model takes both a camera and a control video"),
    ],
)
def test_what_cannot_be_used_is_named(
    files: dict[str, Path], plan: str, inputs: dict[str, Any], error: type[OmniError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        make(plan, **found(inputs, files))


@pytest.mark.slow
@pytest.mark.usefixtures("only_headers")
@pytest.mark.parametrize(("plan", "role"), [(REFERENCED, "fun_reference"), (CAMERA_VIDEO, "fun_camera")])
def test_parts_must_be_there_and_fit(files: dict[str, Path], plan: str, role: str) -> None:
    narrow = {"fun_reference": ReferenceEmbedding(**{**REFERENCE, "dim": 48})}.get(
        role, CameraAdapter(**{**CAMERA, "dim": 48})
    )
    second = made_for(plan).networks["dit"]
    for name in (role, f"{role}2"):
        with pytest.raises(CheckpointError, match=f"'{name}' makes tokens of width 48 and the transformer takes 96"):
            make(plan, made_for(plan, dit2=second, **{name: narrow}), extra=[Experts()])
    models = made_for(plan)
    del models.networks[role]
    with pytest.raises(CheckpointError, match=f"needs a model for the role '{role}'"):
        make(plan, models)


@pytest.mark.parametrize(
    ("number", "value", "reason"),
    [
        (1, 0.0, " = .*focal lengths must be above 0"),
        (7, float("nan"), ".7 = nan: input should be a finite number"),
        (7, 0.0, " = .*it flattens"),
    ],
)
def test_the_origin_must_be_a_camera(number: int, value: float, reason: str) -> None:
    origin = [*ORIGIN[:number], value, *ORIGIN[number + 1 :]]
    with pytest.raises(PlanError, match=f"unit 'fun-camera': origin{reason}"):
        build_plan(f"{CAMERA_VIDEO}-write-video", catalog(), {"fun-camera": {"origin": origin}})


def test_the_units_stand_beside_image_to_video() -> None:
    for unit in ("fun-reference", "fun-camera"):
        with pytest.raises(PlanError, match=f"unit '{unit}' needs"):
            build_plan(f"default-reference-image+{unit}", catalog())
