"""The unit in an engine over tiny networks: what it conditions on, in which window, and beside which other units."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omniavatar_i2v.clip import ClipImageEncoder
from omniavatar_i2v.image_dit import ImageBlock, ImageCrossAttention, ImageDiT
from omniavatar_i2v.testing import CLIP, FLF2V_DIT, IMAGE_DIT, tiny_image_models
from PIL import Image
from torch import Tensor

from omniavatar.distributed.groups import Group
from omniavatar.distributed.sharding import Sharding
from omniavatar.engine import finite
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Plan, build_plan
from omniavatar.engine.run import Result
from omniavatar.engine.scopes import Branch, Forward, Job, Request, Step
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import CheckpointError, InputError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.media.image import fit_image, load_image
from omniavatar.models.attention import sdpa
from omniavatar.models.wan_dit import BlockInputs, CrossAttention, WanDiT
from omniavatar.plugins import discover
from omniavatar.resources import asset
from omniavatar.testing.models import GivenModels
from omniavatar.testing.recorder import WindowRecorder
from omniavatar.testing.tiny import DIT
from tests.models.networks import given, noise, randomized, relative_error

SETTINGS: dict[str, dict[str, Any]] = {
    "prompt": {"length": 16},
    "image-to-video": {"sizes": [[32, 32]]},
    "fixed-frames": {"window_frames": 9, "overlap": 5},
    "schedule": {"steps": 2},
    "guidance": {"scale": 3.0},
}
FAST = "-write-video"


class Watch(WindowRecorder):
    """What happened in every window and every call."""

    def __init__(self) -> None:
        super().__init__()
        self.conditions: list[dict[str, Tensor]] = []
        self.blocks = 0

    @hookimpl(trylast=True)
    def embed(self, forward: Forward) -> None:
        self.conditions.append(forward.conditions)

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        self.blocks += 1

    @property
    def latents(self) -> list[Tensor]:
        """Of every window."""
        return [window.latents for window in self.windows]

    def __getitem__(self, name: str) -> Any:
        """A value of the whole video."""
        return self.windows[0][name]


def make(
    expression: str = "i2v",
    models: GivenModels | None = None,
    *,
    frames: int = 9,
    extra: Iterable[PipelineUnit] = (),
    settings: dict[str, dict[str, Any]] | None = None,
    **inputs: Any,
) -> tuple[Result, Watch]:
    """A video of some frames by a plan without a writer."""
    plan = build_plan(expression + FAST, discover().catalog(), SETTINGS, settings or {})
    watch = Watch()
    engine = Engine(Plan((*plan.units, *extra)), models or random_models(), observers=[watch])
    return engine.generate(Request(inputs, seconds=frames / 25)), watch


def random_models(config: dict[str, Any] = IMAGE_DIT, **networks: Any) -> GivenModels:
    """Tiny networks; weights that leave no default in place in the transformer."""
    return tiny_image_models(**{"dit": randomized(ImageDiT(**config)), **networks})


def picture(folder: Path, name: str, seed: int) -> Path:
    """A file of coloured squares."""
    squares = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(squares).resize((48, 40), Image.Resampling.NEAREST).save(folder / name)
    return folder / name


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny tensors are slower on many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return picture(tmp_path, "first.png", 1)


@pytest.fixture
def last(tmp_path: Path) -> Path:
    return picture(tmp_path, "last.png", 2)


# The condition


def marked(condition: Tensor) -> list[int]:
    """For every latent frame, how many of its four mask channels are 1; each is the same everywhere."""
    mask = condition[0, :4]
    assert mask.equal(mask[:, :, :1, :1].expand_as(mask))
    return mask[:, :, 0, 0].sum(dim=0).int().tolist()


def test_one_window_is_conditioned_on_the_picture_and_holds_nothing(first: Path) -> None:
    _, watch = make(image=first)
    (window,) = watch.windows
    assert marked(window["condition"]) == [4, 0, 0]
    torch.testing.assert_close(window["condition"][:, 4:, :1], watch["image_latent"])
    assert window.get("given_latents") is None
    assert not watch.latents[0][:, :, :1].equal(watch["image_latent"])


def test_an_end_picture_is_the_last_frame(first: Path, last: Path) -> None:
    (_, one), (_, both) = make(image=first), make(image=first, end_image=last)
    assert marked(both.windows[0]["condition"]) == [4, 0, 1]
    assert both.windows[0]["condition"][0, :4, 2, 0, 0].tolist() == [0, 0, 0, 1]
    assert both.windows[0]["condition"][:, 4:, :2].equal(one.windows[0]["condition"][:, 4:, :2]), "the VAE is causal"
    assert relative_error(both.latents[0], one.latents[0]) > 1e-3


def test_the_end_picture_belongs_to_the_last_frame_of_the_video(first: Path, last: Path) -> None:
    """7 frames are made as 9; the last shown one and those behind it are the end picture."""
    _, watch = make(image=first, end_image=last, frames=7)
    assert watch.windows[0]["condition"][0, :4, 2, 0, 0].tolist() == [0, 1, 1, 1]


def test_another_picture_makes_another_video(first: Path, last: Path) -> None:
    (_, one), (_, same), (_, other) = make(image=first), make(image=first), make(image=last)
    assert one.latents[0].equal(same.latents[0])
    assert relative_error(other.latents[0], one.latents[0]) > 1e-3


def test_later_windows_are_conditioned_on_the_frames_they_take_over(first: Path, last: Path) -> None:
    _, watch = make("i2v+fixed-frames", image=first, end_image=last, frames=17)
    conditions = [window["condition"] for window in watch.windows]
    assert [marked(condition) for condition in conditions] == [[4, 0, 0], [4, 4, 0], [4, 4, 1]]
    for window, latents in zip(watch.windows, watch.latents, strict=True):
        given = window["given_latents"]
        held = slice(0, given.shape[2])
        torch.testing.assert_close(window["condition"][:, 4:, held], given, atol=1e-5, rtol=1e-5)
        assert latents[:, :, held].equal(given)


def test_without_a_picture_nothing_is_added(first: Path) -> None:
    """Zeros beside the latents: the network is then the one without those channels."""
    with_channels = randomized(WanDiT(**{**DIT, "in_dim": 36}))
    without = WanDiT(**{**DIT, "in_dim": 16})
    state = with_channels.state_dict()
    without.load_state_dict({**state, "patch_embedding.weight": state["patch_embedding.weight"][:, :16]})
    settings = {"image-to-video": {"sizes": [[48, 32]]}}
    result, mine = make(models=tiny_image_models(dit=with_channels), settings=settings)
    assert result.size == (48, 32)
    plan = build_plan("i2v-image-to-video" + FAST, discover().catalog(), SETTINGS)
    plain = Watch()
    engine = Engine(plan, tiny_image_models(dit=without), observers=[plain])
    engine.generate(Request(seconds=9 / 25, height=48, width=32))
    torch.testing.assert_close(mine.latents[0], plain.latents[0], atol=1e-5, rtol=1e-5)
    _, shown = make(models=tiny_image_models(dit=with_channels), settings=settings, image=first)
    assert relative_error(shown.latents[0], plain.latents[0]) > 1e-3


def test_frames_in_front_are_not_known(first: Path) -> None:
    class Lead(PipelineUnit):
        """One frame of its own."""

        name = "lead"

        @hookimpl
        def begin_job(self, job: Job) -> None:
            job.leading += 1

    _, watch = make(image=first, extra=[Lead()])
    assert marked(watch.windows[0]["condition"]) == [0, 4, 0, 0]
    assert watch.windows[0]["condition"][:, :, 0].count_nonzero() == 0


# The image tokens


def test_the_blocks_see_the_tokens_of_the_first_picture(first: Path, last: Path) -> None:
    models = random_models()
    _, watch = make(models=models, image=first, end_image=last)
    encoder: Any = models.networks["image_encoder"]
    dit: Any = models.networks["dit"]
    assert watch["image_features"].shape == (1, CLIP["tokens"], CLIP["dim"])
    torch.testing.assert_close(watch["image_features"], encoder(fit_image(load_image(first), (32, 32))))
    assert len(watch.conditions) == 4, "two steps, two branches"
    for conditions in watch.conditions:
        assert conditions["text"].shape == (1, 16, 96)
        assert conditions["image"].equal(dit.embed_image(watch["image_features"]))


def test_image_tokens_change_the_video(first: Path) -> None:
    class Other(PipelineUnit):
        """Tokens of something else."""

        name = "other"
        needs = ("image_features",)
        provides = ("image_features",)

        @hookimpl
        def begin_job(self, job: Job) -> None:
            job["image_features"] = noise(*job["image_features"].shape)

    (_, one), (_, other) = make(image=first), make(image=first, extra=[Other()])
    assert relative_error(other.latents[0], one.latents[0]) > 1e-4


def test_first_and_last_picture_stand_side_by_side(first: Path, last: Path) -> None:
    _, watch = make(models=random_models(FLF2V_DIT), image=first, end_image=last)
    _, single = make(image=first)
    assert watch["image_features"].shape == (1, 10, 80)
    torch.testing.assert_close(watch["image_features"][:, :5], single["image_features"])
    assert watch.conditions[0]["image"].shape == (1, 10, 96)


@pytest.mark.parametrize(("config", "tokens"), [(IMAGE_DIT, 5), (FLF2V_DIT, 10)])
def test_without_a_picture_the_tokens_are_zeros(config: dict[str, Any], tokens: int) -> None:
    _, watch = make(models=random_models(config))
    assert watch["image_features"].equal(torch.zeros(1, tokens, 80))
    assert watch.windows[0]["condition"].count_nonzero() == 0


def test_a_network_without_image_tokens_needs_no_encoder(first: Path) -> None:
    models = tiny_image_models(dit=randomized(WanDiT(**{**DIT, "in_dim": 36})))
    del models.networks["image_encoder"]
    _, watch = make(models=models, image=first)
    assert watch["image_features"] is None
    assert list(watch.conditions[0]) == ["text"]


def test_the_hooks_compose_to_the_networks_own_forward(first: Path) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Compare:
        @hookimpl(trylast=True)
        def unembed(self, forward: Forward) -> None:
            text = "prompt_embedding" if not forward.branches[0].drops("text") else "negative_embedding"
            latents = torch.cat([forward.latents, forward["condition"]], dim=1)
            timestep = torch.tensor([forward.step.timestep], dtype=torch.float64)
            expected = forward.network(latents, timestep, forward[text], forward["image_features"])
            seen.append((forward.output, expected))

    plan = build_plan("i2v" + FAST, discover().catalog(), SETTINGS)
    Engine(plan, random_models(), observers=[Compare()]).generate(Request({"image": first}, seconds=9 / 25))
    assert len(seen) == 4
    for actual, expected in seen:
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


# Beside other units


class Merged(PipelineUnit):
    """All branches in one transformer call."""

    name = "merged"

    @hookimpl
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor]:
        return step.forward(branches).chunk(len(branches))


def test_branches_may_share_a_call(first: Path) -> None:
    (_, apart), (_, joined) = make(image=first), make(image=first, extra=[Merged()])
    assert len(joined.conditions) == 2
    assert joined.conditions[0]["image"].shape[0] == 2
    torch.testing.assert_close(joined.latents[0], apart.latents[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("others", ["+sequence-parallel", "+teacache(threshold=1e-9)", "+vae-parallel+fsdp"])
def test_units_that_only_spread_or_save_work_change_nothing(first: Path, others: str) -> None:
    models = random_models()
    (_, plain), (_, more) = make(models=models, image=first), make("i2v" + others, models, image=first)
    torch.testing.assert_close(more.latents[0], plain.latents[0], atol=1e-6, rtol=1e-6)


def test_skipped_steps_of_every_window_need_no_blocks(first: Path) -> None:
    settings = {"schedule": {"steps": 6}}
    _, plain = make("i2v+fixed-frames", image=first, frames=13, settings=settings)
    _, cached = make("i2v+fixed-frames+teacache(threshold=10)", image=first, frames=13, settings=settings)
    assert cached.blocks == plain.blocks * 2 // 6
    assert all(latents.isfinite().all() for latents in cached.latents)


class Rank(Group):
    """One of two ranks; the part of the other is unknown."""

    def gather(self, tensor: Tensor) -> list[Tensor]:
        other = torch.full_like(tensor, torch.nan)
        return [tensor, other] if self.rank == 0 else [other, tensor]


class Half(PipelineUnit):
    """Half of the tokens of a call, as sequence-parallel leaves a rank."""

    name = "half"

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    @hookimpl(wrapper=True, tryfirst=True)
    def embed(self, forward: Forward) -> Iterator[None]:
        yield
        forward.shard_tokens(Sharding(Rank(self.rank, 2), forward.x.shape[1]))


def test_each_rank_has_its_part_of_the_tokens_and_all_image_tokens(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without exchange between tokens, each rank's part is that of one rank alone; the other tokens are no numbers."""
    monkeypatch.setattr(finite.Watch, "check", lambda *_: None)
    dit = randomized(ImageDiT(**IMAGE_DIT, attention=lambda q, k, v: v))
    settings = {"schedule": {"steps": 1}}
    whole, *halves = (
        make(models=tiny_image_models(dit=dit), image=first, extra=units, settings=settings, frames=9)[1].latents[0]
        for units in ([], [Half(0)], [Half(1)])
    )
    known = [half.isfinite() for half in halves]
    assert (known[0] ^ known[1]).all()
    torch.testing.assert_close(torch.where(known[0], *halves), whole, atol=1e-5, rtol=1e-5)


def test_sound_drives_an_image_to_video_transformer(first: Path) -> None:
    models, speech = random_models(), asset("demo", "speech.flac")
    inputs: dict[str, Any] = {"image": first, "frames": 13, "settings": {"audio": {"silence": 0}}}
    _, silent = make("i2v-avatar", models, **inputs)
    _, talking = make("i2v-avatar", models, **inputs, audio=speech)
    assert [marked(window["condition"]) for window in talking.windows] == [[4, 0, 0], [4, 4, 0]]
    for window, latents in zip(talking.windows, talking.latents, strict=True):
        given = window["given_latents"]
        assert latents[:, :, : given.shape[2]].equal(given)
    assert talking.latents[0][:, :, :1].equal(silent.latents[0][:, :, :1]), "frame 0 is the picture"
    assert not talking.latents[0][:, :, 1:].equal(silent.latents[0][:, :, 1:])


def test_sound_and_an_end_picture(first: Path, last: Path) -> None:
    """13 frames are two windows, of which the second one ends with the picture."""
    models, speech = random_models(), asset("demo", "speech.flac")
    inputs: dict[str, Any] = {"image": first, "frames": 13, "settings": {"audio": {"silence": 0}}}
    _, open_end = make("i2v-avatar", models, **inputs, audio=speech)
    _, ended = make("i2v-avatar", models, **inputs, audio=speech, end_image=last)
    _, silent = make("i2v-avatar", models, **inputs, end_image=last)
    assert [marked(window["condition"]) for window in ended.windows] == [[4, 0, 0], [4, 4, 1]]
    assert ended.latents[0].equal(open_end.latents[0])
    for other in (open_end, silent):
        assert relative_error(other.latents[1], ended.latents[1]) > 1e-4


def test_tokens_of_a_part_attend_as_those_of_the_whole() -> None:
    layer = randomized(ImageCrossAttention(24, 2, 1e-6))
    x, inputs = noise(1, 6, 24), given(text=noise(1, 3, 24, seed=1), image=noise(1, 4, 24, seed=2))
    parts = torch.cat([layer(part, inputs) for part in x.chunk(2, dim=1)], dim=1)
    torch.testing.assert_close(parts, layer(x, inputs))


class TalkBlock(ImageBlock):
    """A block of another package: it also attends to a sound, between its cross-attention and its feed-forward."""

    def __init__(self, **numbers: Any) -> None:
        super().__init__(**numbers)
        self.listen = CrossAttention(numbers["dim"], numbers["num_heads"], numbers["eps"])

    def attend_to_conditions(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        x = super().attend_to_conditions(x, inputs)
        if "sound" not in inputs.conditions:
            return x
        return x + self.listen.output(sdpa(*self.listen.project(x, inputs.conditions["sound"])))


class TalkDiT(ImageDiT):
    block_class = TalkBlock


class Talk(PipelineUnit):
    """The unit of that package."""

    name = "talk"

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    @hookimpl
    def embed(self, forward: Forward) -> None:
        forward.conditions["sound"] = forward.repeated(noise(1, 3, 96, seed=self.seed))


def test_another_package_may_condition_the_same_block(first: Path, last: Path) -> None:
    """Both conditions are seen, whoever comes first, and neither package knows the other's."""
    models = random_models(dit=randomized(TalkDiT(**IMAGE_DIT)))
    alone = make(models=models, image=first)[1].latents[0]
    heard = make(models=models, image=first, extra=[Talk(1)])[1]
    assert set(heard.conditions[0]) == {"text", "image", "sound"}
    others = [
        make(models=models, image=first, extra=[Talk(2)])[1].latents[0],
        make(models=models, image=last, extra=[Talk(1)])[1].latents[0],
        alone,
    ]
    for other in others:
        assert relative_error(other, heard.latents[0]) > 1e-4
    plan = build_plan("i2v-write-video", discover().catalog(), SETTINGS)
    watch = Watch()
    engine = Engine(Plan((Talk(1), *plan.units)), models, observers=[watch])
    engine.generate(Request({"image": first}, seconds=9 / 25))
    assert watch.latents[0].equal(heard.latents[0])


# What is refused


@pytest.mark.usefixtures("only_headers")
def test_an_end_without_a_beginning(last: Path) -> None:
    with pytest.raises(InputError, match="an end image needs a picture to start from; give one with --image"):
        make(end_image=last)


@pytest.mark.usefixtures("only_headers")
def test_a_first_last_frame_network_wants_both(first: Path) -> None:
    with pytest.raises(InputError, match="give the last one with --end-image"):
        make(models=random_models(FLF2V_DIT), image=first)


@pytest.mark.usefixtures("only_headers")
def test_image_tokens_need_an_encoder(first: Path) -> None:
    models = random_models()
    del models.networks["image_encoder"]
    with pytest.raises(CheckpointError, match=r"add models_clip_open-clip-xlm-roberta-large-vit-huge-14\.pth"):
        make(models=models, image=first)


@pytest.mark.usefixtures("only_headers")
def test_the_encoder_must_be_of_the_networks_width(first: Path) -> None:
    models = random_models(image_encoder=ClipImageEncoder(**{**CLIP, "dim": 160}))
    with pytest.raises(CheckpointError, match="makes tokens of width 160 and the transformer takes 80"):
        make(models=models, image=first)


@pytest.mark.usefixtures("only_headers")
def test_a_text_to_video_network_has_no_place_for_the_condition(first: Path) -> None:
    models = tiny_image_models(dit=WanDiT(**{**DIT, "in_dim": 16}))
    with pytest.raises(PlanError, match="the transformer takes 16 channels and the plan makes 36"):
        make(models=models, image=first)


def test_it_takes_the_place_of_the_reference_image() -> None:
    with pytest.raises(PlanError, match=r"'reference-image' and 'image-to-video' both provide .*; leave one out"):
        build_plan("default+image-to-video", discover().catalog())


@pytest.mark.usefixtures("only_headers")
def test_a_missing_file_is_named(tmp_path: Path, first: Path) -> None:
    with pytest.raises(InputError, match=r"image .*nowhere\.png.* does not exist"):
        make(image=first, end_image=tmp_path / "nowhere.png")


@pytest.mark.parametrize("sizes", [[], [[0, 32]]])
def test_sizes_are_checked(sizes: list[list[int]]) -> None:
    with pytest.raises(PlanError, match="unit 'image-to-video': sizes"):
        build_plan("image-to-video", discover().catalog(), {"image-to-video": {"sizes": sizes}})
