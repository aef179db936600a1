"""Camera paths: what a direction and a file mean, and the ray of every pixel."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from omniavatar_fun.networks import CELL, CameraAdapter
from omniavatar_fun.testing import CAMERA
from omniavatar_fun.trajectory import (
    ORIGIN,
    directed,
    folded_rays,
    intrinsics,
    plucker,
    read_trajectory,
    relative_poses,
)
from omniavatar_i2v.condition import fold_frames
from torch import Tensor

from omniavatar.errors import InputError
from tests.models.networks import noise, randomized

WIDE = (9, 16)
MOMENT, DIRECTION = slice(0, 3), slice(3, 6)


def cameras(*matrices: tuple[float, ...]) -> Tensor:
    """Entries with these matrices from world to camera, row by row."""
    return torch.tensor([[*ORIGIN[:7], *matrix] for matrix in matrices], dtype=torch.float64)


def turned(degrees: float) -> tuple[float, ...]:
    """The matrix of a camera that looks to the right by an angle."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (cos, 0, -sin, 0, 0, 1, 0, 0, sin, 0, cos, 0)


def test_the_first_camera_is_the_origin() -> None:
    poses = relative_poses(directed("LeftUp", torch.arange(5, 8)))
    assert poses.shape == (3, 3, 4)
    torch.testing.assert_close(poses[0], torch.eye(4, dtype=torch.float64)[:3])
    assert not poses[1].equal(poses[0])


def test_rays_go_through_the_middles_of_pixels() -> None:
    rays = plucker(directed("In", torch.arange(1)), WIDE)[0]
    assert rays.shape == (9, 16, 6)
    assert rays[..., MOMENT].count_nonzero() == 0, "all rays start at the origin"
    torch.testing.assert_close(rays[..., DIRECTION].norm(dim=-1), torch.ones(WIDE))
    fx, fy, cx, cy = intrinsics(directed("In", torch.arange(1)), WIDE)[0].tolist()
    assert (cx, cy) == (8, 4.5)
    assert (fx, fy) == pytest.approx((ORIGIN[1] * 16, ORIGIN[2] * 9))
    x, y, z = rays[2, 12, DIRECTION].tolist()
    assert (x / z, y / z) == pytest.approx(((12.5 - cx) / fx, (2.5 - cy) / fy))


@pytest.mark.parametrize("size", [(9, 16), (8, 8), (16, 8), (8, 24)])
def test_pixels_are_square_whatever_the_shape(size: tuple[int, int]) -> None:
    """The published camera has square pixels at 1280x720; another shape shows a part of that picture."""
    fx, fy, *_ = intrinsics(directed("In", torch.arange(1)), size)[0].tolist()
    assert fx == pytest.approx(fy, rel=1e-4)


def test_a_camera_that_turns_turns_its_rays() -> None:
    rays = plucker(cameras(turned(0), turned(90)), (1, 1))
    torch.testing.assert_close(rays[0, 0, 0], torch.tensor([0.0, 0, 0, 0, 0, 1]))
    torch.testing.assert_close(rays[1, 0, 0], torch.tensor([0.0, 0, 0, 1, 0, 0]))


def test_a_camera_that_moves_has_moments() -> None:
    """One unit to the right and looking on: o x d = (1 0 0) x (0 0 1) = (0 -1 0)."""
    step = (1.0, 0, 0, -1, 0, 1, 0, 0, 0, 0, 1, 0)
    torch.testing.assert_close(plucker(cameras(turned(0), step), (1, 1))[1, 0, 0], torch.tensor([0.0, -1, 0, 0, 0, 1]))


@pytest.mark.parametrize(("direction", "opposite"), [("Left", "Right"), ("Up", "Down"), ("In", "Out")])
def test_opposite_directions_cancel(direction: str, opposite: str) -> None:
    frames = torch.arange(4)
    both = directed(direction, frames) + directed(opposite, frames)
    torch.testing.assert_close(both, 2 * torch.tensor([ORIGIN] * 4, dtype=torch.float64))
    assert directed(direction, frames)[3].ne(torch.tensor(ORIGIN, dtype=torch.float64)).sum() == 1


def test_four_frames_are_the_channels_of_a_latent_frame() -> None:
    entries = directed("LeftDown", torch.arange(9))
    folded = torch.cat(list(folded_rays(entries, WIDE)), dim=2)
    whole = plucker(entries, WIDE).permute(3, 0, 1, 2)[None]
    torch.testing.assert_close(folded, fold_frames(whole))


def test_the_adapter_works_frame_by_frame() -> None:
    adapter, rays = randomized(CameraAdapter(**CAMERA)), noise(2, 24, 3, 4 * CELL, 2 * CELL)
    whole = adapter(rays)
    assert whole.shape == (2, 3 * 2 * 1, CAMERA["dim"])
    torch.testing.assert_close(whole, torch.cat([adapter(frame) for frame in rays.split(1, dim=2)], dim=1))


# Files


def written(folder: Path, *lines: str) -> Path:
    path = folder / "poses.txt"
    path.write_text("\n".join(lines))
    return path


def line(entry: Tensor | tuple[float, ...], first: int = 0) -> str:
    """An entry, or what is left of it, as text."""
    return " ".join(str(float(number)) for number in entry[first:])


@pytest.mark.parametrize("title", ["https://example.org/watch", "", None])
@pytest.mark.parametrize("first", [0, 1])
def test_a_file_has_a_line_for_every_camera(tmp_path: Path, title: str | None, first: int) -> None:
    entries = directed("Left", torch.arange(3))
    lines = [] if title is None else [title]
    path = written(tmp_path, *lines, *(line(entry, first) for entry in entries), "")
    torch.testing.assert_close(read_trajectory(path), entries)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("title", "holds no camera poses; it needs a line of 19 numbers a frame"),
        ("1 2 3", "line 1 has 3 numbers; it needs 19"),
        (line(ORIGIN) + "\nno pose", "line 2: could not convert string to float: 'no'"),
        (line(ORIGIN).replace("0.53", "-0.53"), "line 1: focal lengths must be above 0"),
        (line(ORIGIN).replace("0.53", "nan 0.53", 1).replace("0.0 ", "", 1), "line 1: focal lengths must be above 0"),
        (line((*ORIGIN[:7], *[0.0] * 12)), "line 1: the matrix does not turn, it flattens"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        read_trajectory(written(tmp_path, text))
    assert "poses.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "poses.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not a readable text file"):
        read_trajectory(tmp_path / "poses.txt")
