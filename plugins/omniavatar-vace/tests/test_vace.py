"""VACE: what the branch is told, what it changes, and that it works with windows, caches, batches and shards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omniavatar_vace.context import folded_mask, on_white
from omniavatar_vace.network import Vace
from omniavatar_vace.unit import VaceUnit
from PIL import Image
from torch import Tensor

from omniavatar import builtin
from omniavatar.distributed.groups import Group
from omniavatar.distributed.sharding import Sharding
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.scopes import Branch, Forward, Job, Request, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import CheckpointError, InputError, OmniError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.media.ffmpeg import Ffmpeg
from omniavatar.media.image import load_image
from omniavatar.media.video import decoder, read_video
from omniavatar.models.wan_dit import BlockInputs, WanDiT
from omniavatar.resources import asset
from omniavatar.testing.recorder import WindowRecorder, video_of
from omniavatar.testing.tiny import DIT, TinyModels
from tests.media.samples import write_lossless, write_wav
from tests.models.networks import noise, randomized, relative_error
from tests.scenes import TINY_SETTINGS

BRANCH: dict[str, Any] = {
    **{key: DIT[key] for key in ("dim", "ffn_dim", "num_heads", "eps", "patch_size")},
    "in_dim": 96,
    "layers": [0, 2, 4],
}
Networks = dict[str, Any]
TEXT_ONLY = "default-reference-image-audio-audio-adapter-write-video"


class Look(WindowRecorder):
    """Keeps the windows, and each call's tokens after the first block."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[Tensor] = []

    @hookimpl(trylast=True)
    def after_block(self, forward: Forward, index: int) -> None:
        if index == 0:
            self.tokens.append(forward.x.clone())

    @property
    def context(self) -> Tensor:
        """Of the first window."""
        context: Tensor = self.windows[0]["vace_context"]
        return context

    @property
    def video(self) -> Tensor:
        return video_of(self.windows)


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    units: list[type[PipelineUnit]] = [*builtin.omni_units(), VaceUnit, Merged]
    return Catalog({unit.name: unit for unit in units}, builtin.omni_presets())


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def networks() -> Networks:
    """A tiny text-to-video transformer and its branch."""
    return {"dit": randomized(WanDiT(**{**DIT, "in_dim": 16})), "vace": randomized(Vace(**BRANCH), seed=1)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A control video of 13 frames with its own noise in each, a mask that changes with time, stills, a voice."""
    folder = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "a.png")
    Image.fromarray(generator.integers(0, 256, (64, 32, 3), np.uint8)).save(folder / "b.png")
    Image.fromarray(half(1)[0] * 255).save(folder / "mask.png")
    levels = np.arange(10, 140, 10).astype(np.uint8)[:, None, None, None]
    return {
        "video": write_lossless(folder / "video.mkv", generator.integers(0, 256, (13, 32, 32, 3), np.uint8)),
        "mask": write_lossless(folder / "mask.mkv", half(13) * levels),
        "still": folder / "mask.png",
        "a": folder / "a.png",
        "b": folder / "b.png",
        "voice": write_wav(folder / "voice.wav", 0.1 * np.ones(16000 * 8 // 25, np.float32), 16000),
    }


def half(frames: int) -> np.ndarray:
    """Frames (t 32 32 3) whose left half is 1."""
    pictures = np.zeros((frames, 32, 32, 3), np.uint8)
    pictures[:, :, :16] = 1
    return pictures


class Merged(PipelineUnit):
    """All branches of guidance in one transformer call."""

    name = "merged"

    @hookimpl
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor]:
        return step.forward(branches).chunk(len(branches))


def make(
    catalog: Catalog,
    networks: Networks,
    expression: str = f"{TEXT_ONLY}+vace",
    *units: PipelineUnit,
    seconds: float | None = 0.36,
    size: int | None = 32,
    fps: int = 25,
    inputs: dict[str, Any] | None = None,
    **settings: Any,
) -> Look:
    """Make a video of one window of 9 frames, 32x32, unless it is said otherwise."""
    look = Look()
    plan = build_plan(expression, catalog, TINY_SETTINGS, {"prompt": {"length": 16}}, settings)
    engine = Engine(type(plan)((*plan.units, *units)), TinyModels(**networks), observers=[look])
    engine.generate(Request(inputs or {}, height=size, width=size, seconds=seconds, fps=fps))
    return look


# What the branch is told


def test_without_inputs_nothing_changes(catalog: Catalog, networks: Networks) -> None:
    plain, with_unit = make(catalog, networks, TEXT_ONLY), make(catalog, networks)
    assert with_unit.windows[0]["vace_context"] is None
    assert with_unit.video.equal(plain.video)


def test_everything_given_changes_the_video(catalog: Catalog, networks: Networks, files: dict[str, Path]) -> None:
    given: list[dict[str, Any]] = [
        {},
        {"control_video": files["video"]},
        {"control_mask": files["still"]},
        {"control_video": files["video"], "control_mask": files["still"]},
        {"reference_images": files["a"]},
    ]
    videos = [make(catalog, networks, inputs=inputs).video for inputs in given]
    for index, video in enumerate(videos):
        assert video.shape == (1, 3, 9, 32, 32)
        for other in videos[:index]:
            assert relative_error(video, other) > 1e-3


def test_the_strength_counts_and_none_is_nothing(catalog: Catalog, networks: Networks, files: dict[str, Path]) -> None:
    inputs = {"control_video": files["video"]}
    tokens = [make(catalog, networks, inputs=inputs, vace={"scale": scale}).tokens[0] for scale in (0.0, 1.0, 2.0)]
    assert tokens[0].equal(make(catalog, networks, TEXT_ONLY).tokens[0])
    torch.testing.assert_close(tokens[2] - tokens[0], 2 * (tokens[1] - tokens[0]), atol=1e-4, rtol=1e-4)
    assert (tokens[1] - tokens[0]).abs().max() > 0.1


def test_the_context_is_what_stays_what_changes_and_the_mask(
    catalog: Catalog, networks: Networks, files: dict[str, Path]
) -> None:
    inputs = {"control_video": files["video"], "control_mask": files["still"]}
    context = make(catalog, networks, inputs=inputs).context
    assert context.shape == (1, 96, 3, 4, 4)
    pictures, mask = frames(files["video"], 0, 9) * 2 - 1, torch.from_numpy(half(9)).permute(3, 0, 1, 2)[None].float()
    vae: Any = TinyModels(**networks).networks["vae"]
    torch.testing.assert_close(context[:, :16], vae.encode(pictures * (1 - mask)))
    torch.testing.assert_close(context[:, 16:32], vae.encode(pictures * mask))
    assert (context[:, 32:, :, :, :2] == 1).all()
    assert (context[:, 32:, :, :, 2:] == 0).all()


def frames(path: Path, start: int, stop: int) -> Tensor:
    """Frames of a lossless video (1 3 n h w) in [0, 1]."""
    pictures = torch.from_numpy(read_video(path)[start:stop].copy())
    return pictures.permute(3, 0, 1, 2)[None].float() / 255


@pytest.mark.slow
def test_what_is_not_given_is_grey_and_all_of_it_is_made(
    catalog: Catalog, networks: Networks, files: dict[str, Path]
) -> None:
    """The control video ends with frame 12; the mask's still goes on."""
    longer: dict[str, Any] = {"seconds": 0.84, "fixed-frames": {"window_frames": 21, "overlap": 5}}
    video = make(catalog, networks, inputs={"control_video": files["video"]}, **longer).context
    assert video.shape[2] == 6
    assert (video[:, 32:] == 1).all()
    pictures = frames(files["video"], 0, 13) * 2 - 1
    grey = torch.zeros(1, 3, 8, 32, 32)
    vae: Any = TinyModels(**networks).networks["vae"]
    torch.testing.assert_close(video[:, 16:32], vae.encode(torch.cat([pictures, grey], dim=2)))
    still = make(catalog, networks, inputs={"control_mask": files["still"]}, **longer).context
    assert (still[:, 32:, :, :, 2:] == 0).all()
    both = make(
        catalog, networks, inputs={"control_video": files["video"], "control_mask": files["still"]}, **longer
    ).context
    assert both[:, 32:, :4].equal(still[:, 32:, :4])
    assert (both[:, 32:, 4:] == 1).all(), "what is not there cannot stay"
    moving = make(catalog, networks, inputs={"control_mask": files["mask"]}, **longer).context
    assert (moving[0, 32:, 4:] == 1).all()
    assert (moving[0, 32:, 3, :, 2:] == 0).all()


def test_each_window_gets_its_part_and_knows_what_it_took_over(
    catalog: Catalog, networks: Networks, files: dict[str, Path]
) -> None:
    """Windows 0-8 and 4-12 of a mask whose frame n has the level 10 (n+1)."""
    inputs = {"control_video": files["video"], "control_mask": files["mask"]}
    vae: Any = TinyModels(**networks).networks["vae"]
    for extend in (True, False):
        first, second = make(catalog, networks, inputs=inputs, seconds=0.52, vace={"extend": extend}).windows
        pictures = frames(files["video"], 4, 13) * 2 - 1
        mask = frames(files["mask"], 4, 13)
        if extend:
            pictures[:, :, :5] = first["frames"][:, :, 4:] * 2 - 1
            mask[:, :, :5] = 0
        torch.testing.assert_close(second["vace_context"][:, :16], vae.encode(pictures * (1 - mask)))
        torch.testing.assert_close(second["vace_context"][:, 16:32], vae.encode(pictures * mask))
        torch.testing.assert_close(second["vace_context"][:, 32:], folded_mask(mask[:, :1], 3, 8))
        levels = first["vace_context"][0, 32, :, 0, 0] * 255
        assert levels.round().tolist() == [20, 50, 80], "of every latent the middle frame, as nearest-exact picks it"


def test_frames_that_are_not_shown_repeat_the_last_one(
    catalog: Catalog, networks: Networks, files: dict[str, Path]
) -> None:
    """11 frames need a second window of 9, which ends two frames behind the video."""
    look = make(catalog, networks, inputs={"control_mask": files["mask"]}, seconds=0.44, vace={"extend": False})
    mask = frames(files["mask"], 4, 11)[:, :1]
    mask = torch.cat([mask, mask[:, :, -1:], mask[:, :, -1:]], dim=2)
    torch.testing.assert_close(look.windows[1]["vace_context"][:, 32:], folded_mask(mask, 3, 8))


def test_every_frame_is_decoded_once(
    catalog: Catalog, networks: Networks, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two windows, a video and a mask: two decoders, which are gone when the job is done."""
    started: list[Ffmpeg] = []

    def counted(source: Path, arguments: list[str]) -> Ffmpeg:
        started.append(decoder(source, arguments))
        return started[-1]

    monkeypatch.setattr("omniavatar.media.footage.decoder", counted)
    inputs = {"control_video": files["video"], "control_mask": files["mask"]}
    assert len(make(catalog, networks, inputs=inputs, seconds=0.52).windows) == 2
    assert len(started) == 2
    for process in started:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def test_inputs_in_memory_are_those_of_the_files(catalog: Catalog, networks: Networks, files: dict[str, Path]) -> None:
    paths = {"control_video": files["video"], "control_mask": files["mask"], "reference_images": [files["a"]]}
    held = {
        "control_video": (read_video(files["video"]), 25),
        "control_mask": files["mask"].read_bytes(),
        "reference_images": load_image(files["a"]),
    }
    assert make(catalog, networks, inputs=held).context.equal(make(catalog, networks, inputs=paths).context)


@pytest.mark.parametrize("fps", [4, 50])
def test_a_picture_as_mask_holds_at_any_rate(
    catalog: Catalog, networks: Networks, files: dict[str, Path], fps: int
) -> None:
    context = make(catalog, networks, inputs={"control_mask": files["still"]}, fps=fps, seconds=9 / fps).context
    assert (context[:, 32:, :, :, :2] == 1).all()
    assert (context[:, 32:, :, :, 2:] == 0).all()


def test_a_video_of_another_rate_keeps_its_speed(catalog: Catalog, networks: Networks, files: dict[str, Path]) -> None:
    look = make(catalog, networks, inputs={"control_mask": files["mask"]}, fps=50, seconds=0.18)
    levels = look.context[0, 32, :, 0, 0] * 255
    assert levels.round().tolist() == [10, 30, 40], "each frame twice, of which 1, 4 and 7 count"


# References


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["whole", "cover"])
def test_references_are_frames_in_front(catalog: Catalog, networks: Networks, files: dict[str, Path], fit: str) -> None:
    inputs = {"reference_images": [files["a"], files["b"]], "control_mask": files["still"]}
    look = make(catalog, networks, inputs=inputs, vace={"reference_fit": fit})
    context, window = look.context, look.windows[0]
    assert context.shape == (1, 96, 2 + 3, 4, 4)
    assert window.latents.shape[2] == 2 + 3
    assert window["frames"].shape[2] == 9
    vae: Any = TinyModels(**networks).networks["vae"]
    picture = torch.from_numpy(np.array(Image.open(files["a"]))).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    torch.testing.assert_close(context[:, :16, :1], vae.encode(picture))
    assert (context[:, 16:, :2] == 0).all()
    alone = make(catalog, networks, inputs={**inputs, "reference_images": files["b"]}, vace={"reference_fit": fit})
    torch.testing.assert_close(context[:, :, 1:], alone.context)


def test_references_go_in_front_of_every_window(catalog: Catalog, networks: Networks, files: dict[str, Path]) -> None:
    look = make(catalog, networks, inputs={"reference_images": files["a"]}, seconds=0.52)
    first, second = (window["vace_context"] for window in look.windows)
    assert first[:, :, :1].equal(second[:, :, :1])
    assert (first[:, 32:, 1:] == 1).all()
    assert (second[:, 32:, 1:3] == 0).all(), "the frames taken over"
    given = look.windows[1]["given_latents"]
    torch.testing.assert_close(look.windows[1].latents[:, :, 1 : 1 + given.shape[2]], given)


def test_a_picture_on_white_is_whole_and_in_the_middle() -> None:
    placed = on_white(np.zeros((64, 32, 3), np.uint8), (32, 48))
    assert placed.shape == (1, 3, 32, 48)
    assert (placed[..., 16:32] == -1).all()
    assert (placed[..., :16] == 1).all()
    assert (placed[..., 32:] == 1).all()
    assert on_white(np.zeros((8, 8, 3), np.uint8), (16, 32))[..., 8:24].max() == -1, "scaled up as well"


# Size and length


def test_size_and_length_are_those_of_the_control_video(
    catalog: Catalog, networks: Networks, files: dict[str, Path]
) -> None:
    options: dict[str, Any] = {"size": None, "seconds": None, "vace": {"pixels": 32 * 32}}
    look = make(catalog, networks, inputs={"control_video": files["video"]}, **options)
    assert look.video.shape == (1, 3, 13, 32, 32)
    options["seconds"] = 0.16
    for name in ("control_mask", "reference_images"):
        path = files["mask" if name == "control_mask" else "b"]
        video = make(catalog, networks, inputs={name: path}, **options).video
        assert video.shape == (1, 3, 4, *((32, 32) if name == "control_mask" else (48, 16)))


# With other units


@pytest.fixture(scope="module")
def avatar(networks: Networks) -> Networks:
    """The transformer with condition channels, and a branch."""
    return {"dit": randomized(WanDiT(**DIT)), "vace": networks["vace"]}


@pytest.mark.slow
def test_with_sound_and_portrait(catalog: Catalog, avatar: Networks, files: dict[str, Path]) -> None:
    """The sound sets the length, 8 + 8 rows with its silence; sound and control both count."""
    portrait, changes = asset("demo", "portrait.png"), {"fixed-frames": {"window_frames": 17, "overlap": 5}}
    inputs: dict[str, Any] = {"image": portrait, "audio": files["voice"]}
    control = {"control_video": files["video"], "reference_images": files["a"]}
    make_avatar: dict[str, Any] = {"expression": "default-write-video+vace", "seconds": None, **changes}
    both = make(catalog, avatar, inputs={**inputs, **control}, **make_avatar)
    assert both.video.shape == (1, 3, 17, 32, 32)
    assert both.context.shape == (1, 96, 1 + 5, 4, 4)
    for other in ({"image": portrait, **control}, inputs, {**inputs, **control, "image": None}):
        one = make(catalog, avatar, inputs=other, **{**make_avatar, "seconds": 0.68})
        assert relative_error(one.video, both.video) > 1e-3


def test_merged_branches_are_separate_ones(catalog: Catalog, avatar: Networks, files: dict[str, Path]) -> None:
    inputs = {"control_video": files["video"], "reference_images": files["a"]}
    plan = "default-write-video+vace"
    separate, merged = (make(catalog, avatar, units, inputs=inputs).video for units in (plan, f"{plan}+merged"))
    assert relative_error(merged, separate) < 1e-4


def test_a_piece_of_a_window_gets_its_part_of_the_context(
    catalog: Catalog, networks: Networks, files: dict[str, Path]
) -> None:
    seen: list[Tensor] = []
    hook = networks["vace"].vace_patch_embedding.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    plan = f"{TEXT_ONLY}+vace+sliding-window(size=2, stride=1)"
    context = make(catalog, networks, plan, inputs={"reference_images": files["a"]}).context
    hook.remove()
    for piece, start in zip(seen, (0, 1, 2), strict=False):
        torch.testing.assert_close(piece, context[:, :, start : start + 2])


def test_the_branch_attends_to_the_text_where_there_is_more(networks: Networks) -> None:
    dit: Any = networks["dit"]
    branch: Any = networks["vace"]
    x, control = noise(1, 4, 96), branch.embed(noise(1, 96, 1, 4, 4))
    others: list[dict[str, Tensor]] = [{}, {"image": noise(1, 5, 96)}]
    made = []
    for more in others:
        conditions = {"text": noise(1, 3, 96, seed=1), **more}
        made.append(list(branch.hints(control, x, BlockInputs(noise(1, 6, 96), dit.rope((1, 2, 2)), conditions))))
    for alone, beside in zip(*made, strict=True):
        assert alone.equal(beside)


def test_the_branch_rests_where_a_cache_skips_the_blocks(
    catalog: Catalog, networks: Networks, files: dict[str, Path]
) -> None:
    calls = {"dit": 0, "vace": 0}

    def count(role: str, network: Any) -> Any:
        def counted(*_: Any) -> None:
            calls[role] += 1

        return network.register_forward_hook(counted)

    dit, vace = networks["dit"], networks["vace"]
    handles = [count("dit", dit.blocks[0]), count("vace", vace.vace_blocks[0])]
    inputs = {"control_video": files["video"]}
    options: dict[str, Any] = {"inputs": inputs, "schedule": {"steps": 6}}
    cached = make(catalog, networks, f"{TEXT_ONLY}+vace+teacache(threshold=10)", **options)
    for handle in handles:
        handle.remove()
    assert calls == {"dit": 4, "vace": 4}, "the first and the last step of two branches"
    assert relative_error(cached.video, make(catalog, networks, **options).video) > 1e-4


class Experts(PipelineUnit):
    """The second step goes to another transformer."""

    name = "experts"
    experts = ("dit", "dit2")

    @hookimpl
    def begin_window(self, window: Window) -> None:
        window.steps[1].expert = "dit2"


def test_a_second_transformer_has_its_own_branch(catalog: Catalog, networks: Networks, files: dict[str, Path]) -> None:
    second = {"dit2": networks["dit"], "vace2": randomized(Vace(**BRANCH), seed=5)}
    copy = WanDiT(**{**DIT, "in_dim": 16})
    copy.load_state_dict(networks["dit"].state_dict())
    options: dict[str, Any] = {"inputs": {"control_video": files["video"]}, "guidance": {"scale": 1}}
    one = make(catalog, networks, **options).tokens
    two = make(catalog, {**networks, **second, "dit2": copy}, f"{TEXT_ONLY}+vace", Experts(), **options).tokens
    without = make(catalog, {**networks, "dit2": copy}, f"{TEXT_ONLY}+vace", Experts(), **options).tokens
    assert two[0].equal(one[0])
    assert relative_error(two[1], one[1]) > 1e-3
    assert without[1].equal(one[1]), "one branch serves both"


# Shards


class Ahead(PipelineUnit):
    """Three tokens of no frame in front, so that the branch pads at the end."""

    name = "ahead"

    @hookimpl
    def embed(self, forward: Forward) -> None:
        forward.x = torch.cat([noise(*forward.x[:, :3].shape), forward.x], dim=1)
        forward.rope = torch.cat([forward.rope[:3], forward.rope])
        forward.frame_index = torch.cat([torch.full((3,), -1), forward.frame_index])

    @hookimpl
    def unembed(self, forward: Forward) -> None:
        forward.x = forward.gather(forward.x)[:, 3:]
        forward.sharding = None


class Ranks(Group):
    """A group of which this process plays one rank."""

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return [tensor] * self.size


class Shard(PipelineUnit):
    """Sequence parallelism of one rank, without the others."""

    name = "shard"

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__()
        self.group = Ranks(rank, ranks)

    @hookimpl(wrapper=True, tryfirst=True)
    def embed(self, forward: Forward) -> Iterator[None]:
        yield
        forward.shard_tokens(Sharding(self.group, forward.x.shape[1]))


def by_itself(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """An attention in which every token sees itself alone, so that shards need no others."""
    return v


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 5])
def test_a_rank_gets_the_hints_of_its_tokens(catalog: Catalog, files: dict[str, Path], ranks: int) -> None:
    """4 frames of 4 tokens and 3 more are 19, which no number of ranks here divides."""
    networks: Networks = {
        "dit": randomized(WanDiT(**{**DIT, "in_dim": 16}, attention=by_itself)),
        "vace": randomized(Vace(**BRANCH, attention=by_itself), seed=1),
    }
    inputs = {"control_video": files["video"], "reference_images": files["a"]}
    options: dict[str, Any] = {"inputs": inputs, "schedule": {"steps": 1}, "guidance": {"scale": 1}}
    plan = f"{TEXT_ONLY}+vace"
    whole = make(catalog, networks, plan, Ahead(), **options).tokens[0]
    shards = [make(catalog, networks, plan, Ahead(), Shard(rank, ranks), **options).tokens[0] for rank in range(ranks)]
    assert whole.shape[1] == 19
    assert len({shard.shape for shard in shards}) == 1
    torch.testing.assert_close(torch.cat(shards, dim=1)[:, :19], whole, atol=1e-5, rtol=1e-5)


# The network


def test_hints_come_one_at_a_time_for_evenly_spread_blocks(networks: Networks) -> None:
    branch: Any = networks["vace"]
    assert list(branch.layers) == [0, 2, 4]
    seen: list[int] = []
    handles = [
        block.register_forward_hook(lambda *_, index=index: seen.append(index))
        for index, block in enumerate(branch.vace_blocks)
    ]
    dit: Any = networks["dit"]
    x = noise(2, 4, 96)
    inputs = BlockInputs(noise(2, 6, 96), dit.rope((1, 2, 2)), {"text": noise(2, 5, 96)})
    made = branch.hints(branch.embed(noise(1, 96, 1, 4, 4)), x, inputs)
    assert next(made).shape == x.shape
    assert seen == [0]
    assert len(list(made)) == 2
    for handle in handles:
        handle.remove()


# What is refused


class Leader(PipelineUnit):
    """Frames in front that are not ours."""

    name = "leader"

    @hookimpl
    def begin_job(self, job: Job) -> None:
        job.leading += 1


class Shorter(PipelineUnit):
    """Transformer calls over the first latent frame alone."""

    name = "shorter"

    @hookimpl(wrapper=True, tryfirst=True)
    def embed(self, forward: Forward) -> Iterator[None]:
        forward.latents = forward.latents[:, :, :1]
        yield


@pytest.mark.parametrize(
    ("inputs", "units", "settings", "error", "reason"),
    [
        ({"control_mask": "no.png"}, (), {}, InputError, "mask 'no.png' does not exist"),
        ({"reference_images": ["no.png"]}, (), {}, InputError, "image 'no.png' does not exist"),
        ({"control_video": __file__}, (), {}, InputError, "test_vace.py"),
        ({}, (), {"size": None}, InputError, "give one with --size, or something to follow"),
        ({}, (), {"size": 40}, InputError, "40x40 is not made of positive multiples of 16"),
        ({"control_mask": "still"}, (), {"seconds": None}, InputError, "length of the video is unknown"),
        ({"control_video": "a"}, (), {"seconds": None}, InputError, "length of the video is unknown"),
        ({"control_mask": "still"}, (Leader(),), {}, PlanError, "0 frames in front of the video and another unit"),
        ({"control_mask": "still"}, (Shorter(),), {}, PlanError, "12 tokens and the transformer call 4"),
        ({}, (), {"vace": {"scale": -1}}, PlanError, "unit 'vace': scale = -1"),
    ],
)
def test_what_cannot_be_used_is_named(
    catalog: Catalog,
    networks: Networks,
    files: dict[str, Path],
    inputs: dict[str, Any],
    units: tuple[PipelineUnit, ...],
    settings: dict[str, Any],
    error: type[OmniError],
    reason: str,
) -> None:
    found = {name: files.get(value, value) if isinstance(value, str) else value for name, value in inputs.items()}
    with pytest.raises(error, match=reason):
        make(catalog, networks, f"{TEXT_ONLY}+vace", *units, inputs=found, **settings)


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"dim": 48}, "'vace' has width 48 .* transformer has width 96"),
        ({"layers": [0, 2, 6]}, "goes up to block 6 and the transformer has 6 blocks"),
        ({"in_dim": 32}, "takes 32 channels, with this VAE there are 96"),
    ],
)
def test_a_branch_for_another_model(catalog: Catalog, networks: Networks, numbers: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        make(catalog, {**networks, "vace": Vace(**{**BRANCH, **numbers})})


@pytest.mark.parametrize("layers", [None, []])
def test_a_branch_that_does_not_know_its_layers(layers: list[int] | None) -> None:
    with pytest.raises(CheckpointError, match=r"put the config\.json of the checkpoint, with 'vace_layers', beside"):
        Vace(**{**BRANCH, "layers": layers})


@pytest.mark.parametrize("layers", [[0, 2, 2], [2, 0], [-1, 0], [0, 1.5], [0, True], ["0"]])
def test_layers_are_numbers_of_blocks_in_their_order(layers: list[Any]) -> None:
    with pytest.raises(CheckpointError, match="must be numbers of blocks, each larger than the one before"):
        Vace(**{**BRANCH, "layers": layers})
