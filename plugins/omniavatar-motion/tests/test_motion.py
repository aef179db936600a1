"""Speed control: what it adds, to what, and that without a bucket nothing changes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omniavatar_motion.network import MotionController
from omniavatar_motion.unit import Motion
from torch import Tensor, nn

from omniavatar import builtin
from omniavatar.checkpoints import Bundle, Registry, Row, fingerprint
from omniavatar.checkpoints.nearest import expected_shapes
from omniavatar.checkpoints.tables import read_table
from omniavatar.cli import run_cli
from omniavatar.distributed.groups import Group
from omniavatar.distributed.sharding import Sharding
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Catalog, Plan, build_plan
from omniavatar.engine.scopes import Branch, Forward, Request, Step
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import CheckpointError, InputError
from omniavatar.hookspecs import hookimpl
from omniavatar.media.video import read_video
from omniavatar.models.wan_dit import PerToken, TimeValue
from omniavatar.resources import asset
from omniavatar.testing.recorder import WindowRecorder, video_of
from omniavatar.testing.tiny import DIT, TinyModels, save, weights
from tests.models.networks import randomized, relative_error
from tests.scenes import TINY_SETTINGS

TABLE = resources("omniavatar_motion") / "motion.toml"
ROWS = read_table(TABLE)
NUMBERS = {"freq_dim": 32, "dim": DIT["dim"]}
DEFAULT = "default-write-video+motion"


class Look(WindowRecorder):
    """Keeps the modulations of all calls, the time of the head, and the windows."""

    def __init__(self) -> None:
        super().__init__()
        self.modulations: list[Tensor] = []
        self.times: list[Tensor] = []

    @hookimpl
    def run_blocks(self, forward: Forward) -> None:
        self.modulations.append(written_out(forward.t_mod))
        self.times.append(written_out(forward.time))

    @property
    def video(self) -> Tensor:
        return video_of(self.windows)


def written_out(value: TimeValue) -> Tensor:
    return value.values if isinstance(value, PerToken) else value


class Merged(PipelineUnit):
    """All branches of guidance in one transformer call."""

    name = "merged"

    @hookimpl
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor]:
        return step.forward(branches).chunk(len(branches))


class Ranks(Group):
    """A group of which this process plays one rank."""

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return [tensor] * self.size


class TokenTimes(PipelineUnit):
    """A time of its own for every token, of which this rank, the second of three, has a part."""

    name = "token-times"

    @hookimpl(tryfirst=True, wrapper=True)
    def embed(self, forward: Forward) -> Iterator[None]:
        yield
        forward.shard_tokens(Sharding(Ranks(1, 3), forward.x.shape[1]))

    @hookimpl(specname="embed")
    def times(self, forward: Forward) -> None:
        forward.time, forward.t_mod = forward.network.embed_token_times(forward.frame_index[None].double() * 100)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def controller() -> MotionController:
    return randomized(MotionController(**NUMBERS))


@pytest.fixture(scope="module")
def make(controller: MotionController) -> Any:
    """Make a video of two windows, 13 frames of 32x32 in all."""
    units: list[type[PipelineUnit]] = [*builtin.omni_units(), Motion, Merged]
    catalog = Catalog({unit.name: unit for unit in units}, builtin.omni_presets())

    def make(
        expression: str,
        *first: PipelineUnit,
        last: Sequence[PipelineUnit] = (),
        network: nn.Module = controller,
        **inputs: Any,
    ) -> Look:
        look = Look()
        plan = build_plan(expression, catalog, TINY_SETTINGS, {"prompt": {"length": 16}})
        engine = Engine(Plan((*first, *plan.units, *last)), TinyModels(motion_controller=network), observers=[look])
        inputs = {"image": asset("demo", "portrait.png"), "audio": asset("demo", "speech.flac"), **inputs}
        engine.generate(Request(inputs, height=32, width=32, seconds=0.52))
        return look

    return make


@pytest.mark.parametrize("row", [row for row in ROWS if row.hash], ids=lambda row: row.name)
def test_the_network_of_a_row_has_the_published_hash(row: Row) -> None:
    shapes = expected_shapes(row)
    assert fingerprint(shapes) == row.hash
    assert (len(shapes), sum(math.prod(shape) for shape in shapes.values())) == (row.num_keys, row.num_params)


def test_a_file_of_another_width_is_recognised(tmp_path: Path, controller: MotionController) -> None:
    save(tmp_path / "speed.safetensors", weights(controller))
    models = Bundle.open([tmp_path], Registry.builtin([TABLE]))
    assert models.config("motion_controller") == NUMBERS
    assert isinstance(models.load("motion_controller"), MotionController)


def test_without_a_bucket_nothing_changes(make: Any) -> None:
    assert make(DEFAULT).video.equal(make("default-write-video").video)


@pytest.mark.slow
def test_the_bucket_is_added_to_the_modulation_of_the_blocks_alone(make: Any, controller: MotionController) -> None:
    plain, slow, fast = make(DEFAULT), make(DEFAULT, motion_bucket_id=0), make(DEFAULT, motion_bucket_id=100)
    for look, bucket in ((slow, 0.0), (fast, 100.0)):
        change = controller(torch.tensor([bucket]))
        assert change.shape == (1, 6, 96)
        assert len(look.modulations) == len(plain.modulations) == 2 * 2 * 2
        for before, after in zip(plain.modulations, look.modulations, strict=True):
            torch.testing.assert_close(after, before + change)
        assert all(torch.equal(*times) for times in zip(plain.times, look.times, strict=True))
    assert relative_error(slow.video, plain.video) > 1e-3
    assert relative_error(slow.video, fast.video) > 1e-3


def test_the_scale_of_the_buckets_is_that_of_the_time_steps(controller: MotionController) -> None:
    from omniavatar.models.wan_dit import sinusoid

    expected = controller.linear(sinusoid(torch.tensor([375.0]), 32).float()).view(1, 6, 96)
    torch.testing.assert_close(controller(torch.tensor([37.5])), expected)


def test_with_a_cache_and_with_merged_branches(make: Any) -> None:
    separate = make(DEFAULT, motion_bucket_id=80).video
    assert relative_error(make(f"{DEFAULT}+merged", motion_bucket_id=80).video, separate) < 1e-4
    cached = make(f"{DEFAULT}+teacache(threshold=1e-9)", motion_bucket_id=80).video
    torch.testing.assert_close(cached, separate)


def test_a_time_for_every_token_and_a_part_of_the_tokens(make: Any, controller: MotionController) -> None:
    plain, fast = make(DEFAULT, TokenTimes()), make(DEFAULT, TokenTimes(), motion_bucket_id=100)
    assert plain.modulations[0].shape == (1, 4, 6, 96)
    change = controller(torch.tensor([100.0]))
    torch.testing.assert_close(fast.modulations[0] - plain.modulations[0], change.expand(1, 4, 6, 96))


def test_the_order_of_units_that_replace_the_modulation_does_not_matter(make: Any) -> None:
    before, behind = (
        make(DEFAULT, TokenTimes(), motion_bucket_id=100),
        make(DEFAULT, last=[TokenTimes()], motion_bucket_id=100),
    )
    torch.testing.assert_close(behind.modulations[0], before.modulations[0])


@pytest.mark.parametrize(("bucket", "reason"), [(-1, "motion_bucket_id = -1"), (101, "motion_bucket_id = 101")])
def test_a_bucket_has_bounds(make: Any, bucket: float, reason: str) -> None:
    with pytest.raises(InputError, match=f"unit 'motion': {reason}"):
        make(DEFAULT, motion_bucket_id=bucket)


def test_a_controller_for_another_model(make: Any) -> None:
    with pytest.raises(CheckpointError, match="for a transformer of width 48 and this one has 96; use it with"):
        make(DEFAULT, network=MotionController(freq_dim=32, dim=48), motion_bucket_id=50)


@pytest.mark.slow
def test_by_command(tmp_path: Path) -> None:
    """With the built-in avatar, LoRA and all."""
    width = 240  # of its transformer
    save(tmp_path / "speed.safetensors", weights(randomized(MotionController(**{**NUMBERS, "dim": width}))))
    small = ("--size", "32x32", "--seconds", "0.24", "--schedule.steps", "1", "--prompt", "hi", "--quiet")
    videos = []
    for bucket in ((), ("--motion-bucket-id", "5"), ("--motion-bucket-id", "95")):
        files = ("--config", "tiny", "--model", tmp_path / "speed.safetensors", "-o", tmp_path / "out.mp4")
        assert run_cli([str(part) for part in ("run", "--units", "default+motion", *files, *small, *bucket)]) == 0
        videos.append(read_video(tmp_path / "out.mp4"))
    assert not np.array_equal(videos[0], videos[1])
    assert not np.array_equal(videos[1], videos[2])
