"""The layers beside the transformer: what of a face a frame sees, and published files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from omniavatar_animate.adapter import MOTION_CHANNELS, AnimateAdapter, Blur, MotionDirections
from omniavatar_animate.motion import own_face
from omniavatar_animate.testing import ADAPTER, random_adapter, write_tiny
from omniavatar_i2v.image_dit import ImageDiT
from omniavatar_i2v.testing import IMAGE_DIT
from torch import nn

from omniavatar.checkpoints import Bundle, Registry, Row, fingerprint
from omniavatar.checkpoints.nearest import expected_shapes
from omniavatar.checkpoints.tables import read_table
from omniavatar.engine.plan import make_unit
from omniavatar.plugins import discover
from omniavatar.resources import registry_tables
from tests.models.networks import noise, randomized

TABLE = files("omniavatar_animate") / "animate.toml"
I2V_TABLE = files("omniavatar_i2v") / "i2v.toml"
ROWS = {row.name: row for row in read_table(TABLE)}
DIM, SIZE = ADAPTER["dim"], 16


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def adapter() -> AnimateAdapter:
    return random_adapter()


# The face


def test_a_latent_frame_knows_its_four_pictures_and_those_before(adapter: AnimateAdapter) -> None:
    pictures = noise(1, 3, 13, SIZE, SIZE)
    before = adapter.face(pictures)
    assert before.shape == (1, 1 + 4, 5, DIM)
    for picture, first in ((0, 1), (1, 2), (4, 2), (5, 3), (8, 3)):
        changed = pictures.clone()
        changed[:, :, picture] += 1
        difference = (adapter.face(changed) - before).abs().amax(dim=(0, 2, 3))
        assert (difference[:first] == 0).all()
        assert difference[first] > 1e-3


def test_the_reference_picture_has_a_face_of_zeros_and_one_token_is_always_the_same(adapter: AnimateAdapter) -> None:
    faces = adapter.face(noise(1, 3, 13, SIZE, SIZE))[0]
    assert not faces[0].any()
    assert (faces[1:].std(dim=0).amax(dim=-1) > 1e-3).tolist() == [True, True, True, True, False]


def test_pictures_are_encoded_one_by_one(adapter: AnimateAdapter) -> None:
    pictures = noise(2, 3, 9, SIZE, SIZE)
    codes = adapter.codes(pictures)
    assert codes.shape == (2, 9, 16)
    for row in range(2):
        for picture in (0, 8):
            alone = adapter.codes(pictures[row : row + 1, :, picture : picture + 1])
            torch.testing.assert_close(alone[0, 0], codes[row, picture])


def test_codes_lie_in_few_directions(adapter: AnimateAdapter) -> None:
    codes = adapter.codes(noise(1, 3, 12, SIZE, SIZE))[0]
    assert torch.linalg.matrix_rank(codes, rtol=1e-4) == ADAPTER["motion_dim"]


def test_directions_have_the_signs_of_householder_reflections() -> None:
    """The first one turns its column around where that begins with a positive number."""
    for sign in (1, -1):
        directions = MotionDirections(8, 3).requires_grad_(False)
        directions.direction.weight.copy_(noise(8, 3))
        directions.direction.weight[0, 0] = sign * 2.0
        column = directions.direction.weight[:, 0]
        first = directions(torch.tensor([[1.0, 0.0, 0.0]]))[0]
        torch.testing.assert_close(first, -sign * column / column.norm())


def test_blur_keeps_a_flat_map() -> None:
    flat = torch.full((1, 2, 8, 8), 0.7)
    with torch.no_grad():
        blurred = Blur(padding=2)(flat)
    assert blurred.shape == (1, 2, 9, 9)
    torch.testing.assert_close(blurred[:, :, 2:-2, 2:-2], torch.full((1, 2, 5, 5), 0.7))


def test_half_precision_is_close(adapter: AnimateAdapter) -> None:
    half = random_adapter().bfloat16()
    pictures = noise(1, 3, 5, SIZE, SIZE)
    exact, rounded = adapter.face(pictures), half.face(pictures)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() / exact.norm() < 0.05


# Attention to it


def test_tokens_see_the_face_of_their_own_frame(adapter: AnimateAdapter) -> None:
    x, faces = noise(2, 8, DIM), noise(2, 3, 5, DIM, seed=1)
    sees = own_face(torch.tensor([-1, -1, 0, 0, 0, 1, 1, -1]), faces)
    before = adapter.expression(1, x, faces, sees)
    for frame, seen in ((0, [0, 1, 7]), (1, [2, 3, 4]), (2, [5, 6])):
        changed = faces.clone()
        changed[:, frame] *= -1
        difference = (adapter.expression(1, x, changed, sees) - before).abs().amax(dim=(0, 2))
        assert (difference > 1e-3).nonzero().flatten().tolist() == seen
    assert not torch.allclose(adapter.expression(0, x, faces, sees), before, atol=1e-2)


def test_there_is_attention_behind_every_fifth_block(adapter: AnimateAdapter) -> None:
    assert [adapter.layer(block) for block in range(12)] == [0, None, None, None, None, 1] + [None] * 6
    assert adapter.last_block == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"face_heads": 5}, "dim 96 does not divide into face_heads 5"),
        ({"motion_dim": 17}, "motion_dim 17 is more than motion_style_dim 16"),
        ({"patch_size": (1, 2)}, "three positive numbers"),
    ],
)
def test_numbers_that_do_not_fit_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnimateAdapter(**{**ADAPTER, **change})


# Files


def test_the_networks_have_the_published_hash() -> None:
    row = ROWS["Wan2.2-Animate-14B"]
    shapes = expected_shapes(row)
    assert fingerprint(shapes) == row.hash == "31fa352acb8a1b1d33cd8764273d80a2"
    numbers = sum(math.prod(shape) for shape in shapes.values())
    assert (len(shapes), numbers) == (row.num_keys, row.num_params) == (1441, 17274817108)
    assert not row.unclaimed(shapes)
    config = row.components["animate_adapter"].config
    assert tuple(config["motion_channels"]) == MOTION_CHANNELS
    with torch.device("meta"):
        assert AnimateAdapter(**config).face_size == 512


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_the_units_accept_what_a_row_recommends(row: Row) -> None:
    units = discover().catalog().units
    for name, settings in row.settings.items():
        assert make_unit(units[name], settings)


def test_a_file_of_another_size_is_both_networks(tmp_path: Path, adapter: AnimateAdapter) -> None:
    dit = randomized(ImageDiT(**IMAGE_DIT))
    file = write_tiny(tmp_path, dit, adapter)
    bundle = Bundle.open([file], Registry([*registry_tables(), I2V_TABLE, TABLE]))
    (detection,) = bundle.detections
    assert detection.row.name == "Wan-Animate"
    assert bundle.config("animate_adapter") == {key: listed(value) for key, value in ADAPTER.items()}
    assert bundle.config("dit") == {key: listed(value) for key, value in IMAGE_DIT.items()}
    pairs: dict[str, nn.Module] = {"dit": dit, "animate_adapter": adapter}
    for role, network in pairs.items():
        loaded = bundle.load(role, dtype=torch.float32).state_dict()
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(loaded[name], tensor, atol=2e-3, rtol=2e-3)


def listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def test_without_config_the_motion_encoder_is_the_published_one(tmp_path: Path, adapter: AnimateAdapter) -> None:
    file = write_tiny(tmp_path, ImageDiT(**IMAGE_DIT), adapter)
    (tmp_path / "config.json").write_text(json.dumps({}))
    bundle = Bundle.open([file], Registry([TABLE]))
    assert "motion_channels" not in bundle.config("animate_adapter"), "the published ones are the default"
    assert AnimateAdapter(**{**ADAPTER, "motion_channels": None}).face_size == 512
