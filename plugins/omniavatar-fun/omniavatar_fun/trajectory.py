"""Where a camera stands and looks in every frame, and the ray of every pixel.

    entries = directed("Left", torch.arange(81))                     # (81 19)
    embedding = plucker(entries, (480, 832))                         # (81 480 832 6)

An entry is a line of a RealEstate10K file: time, fx, fy, cx, cy, two numbers without meaning, and the matrix (3 4) from
the world to the camera, row by row. Focal lengths and centre are fractions of the sides of a picture of 1280x720.
Letters in shapes: t frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from einops import rearrange
from omniavatar_i2v.condition import TEMPORAL_FACTOR

from omniavatar.sdk import InputError, functional, shown_path, torch

if TYPE_CHECKING:
    from torch import Tensor

Direction = Literal["Left", "Right", "Up", "Down", "LeftUp", "LeftDown", "RightUp", "RightDown", "In", "Out"]
Size = tuple[int, int]

ENTRY = 19
MATRIX = 7
"""Where the matrix of an entry begins."""
STRAIGHT = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
ORIGIN = (0.0, 0.532139961, 0.946026558, 0.5, 0.5, 0.0, 0.0, *STRAIGHT)
SPEED = 1 / 54
SHAPE = 1280 / 720
"""Width by height of the pictures that intrinsics are told for."""
CHANGES = {
    "Left": (MATRIX + 2, 1),
    "Right": (MATRIX + 2, -1),
    "Up": (MATRIX + 6, 1),
    "Down": (MATRIX + 6, -1),
    "Out": (MATRIX + 11, 1),
    "In": (MATRIX + 11, -1),
}
"""The number of an entry that a direction changes, and which way.

In and Out move the camera. The others shear its third axis, which for small angles is a turn: so the models were
trained.
"""


def directed(direction: str, frames: Tensor, speed: float = SPEED, origin: tuple[float, ...] = ORIGIN) -> Tensor:
    """The entries (t 19) of frames (t) of a camera that moves from `origin` by `speed` a frame."""
    entries = torch.tensor(origin, dtype=torch.float64).repeat(len(frames), 1)
    for name, (number, sign) in CHANGES.items():
        if name in direction:
            entries[:, number] += sign * speed * frames
    return entries


def read_trajectory(path: Path) -> Tensor:
    """The entries (t 19) of a text file, a line a frame; the first line may be a title, and times may be missing.

    Raises InputError that names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"trajectory {shown_path(path)} is not a readable text file: {error}") from None
    entries = [
        entry(line, f"trajectory {shown_path(path)}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip() and not (number == 1 and is_title(line))
    ]
    if not entries:
        raise InputError(
            f"trajectory {shown_path(path)} holds no camera poses; it needs a line of {ENTRY} numbers a frame"
        )
    return torch.tensor(entries, dtype=torch.float64)


def is_title(line: str) -> bool:
    """Whether a line is one word, as the address of a video, instead of numbers."""
    return len(line.split()) == 1


def entry(line: str, place: str) -> list[float]:
    """The numbers of a line, checked."""
    try:
        numbers = [float(word) for word in line.split()]
    except ValueError as error:
        raise InputError(f"{place}: {error}") from None
    if len(numbers) == ENTRY - 1:
        numbers = [0.0, *numbers]
    if len(numbers) != ENTRY:
        raise InputError(
            f"{place} has {len(numbers)} numbers; it needs {ENTRY}: time, fx, fy, cx, cy, 0, 0, 3x4 matrix"
        )
    try:
        check_entry(numbers)
    except ValueError as error:
        raise InputError(f"{place}: {error}") from None
    return numbers


def check_entry(numbers: Sequence[float]) -> None:
    """Raise ValueError if the numbers of an entry (19) are of no camera."""
    if not all(map(math.isfinite, numbers)) or min(numbers[1:3]) <= 0:
        raise ValueError("focal lengths must be above 0, and all numbers finite")
    if abs(torch.tensor(numbers[MATRIX:]).view(3, 4)[:, :3].det()) < 1e-6:
        raise ValueError("the matrix does not turn, it flattens; it must be one from world to camera")


def relative_poses(entries: Tensor) -> Tensor:
    """The matrices (t 3 4) from every camera of entries (t 19) to the first one."""
    world_to_camera = torch.eye(4, dtype=entries.dtype).repeat(len(entries), 1, 1)
    world_to_camera[:, :3] = rearrange(entries[:, MATRIX:], "t (row column) -> t row column", row=3)
    return (world_to_camera[0] @ world_to_camera.inverse())[:, :3]


def intrinsics(entries: Tensor, size: Size) -> Tensor:
    """Focal lengths and centre (t 4) in pixels, for pictures of this size cut out of the middle of larger ones."""
    height, width = size
    scales = (height * SHAPE, height) if width / height < SHAPE else (width, width / SHAPE)
    return entries[:, 1:5] * entries.new_tensor([*scales, width, height])


def rays(poses: Tensor, cameras: Tensor, size: Size) -> Tensor:
    """Pluecker coordinates (t H W 6) of the ray through every pixel's middle: moment o x d, direction d.

    poses (t 3 4), cameras (t 4) in pixels; the directions have length 1 before they are turned.
    """
    height, width = size
    fx, fy, cx, cy = cameras[:, :, None, None].unbind(1)
    columns = torch.arange(width, device=poses.device) + 0.5
    rows = torch.arange(height, device=poses.device)[:, None] + 0.5
    x, y = torch.broadcast_tensors((columns - cx) / fx, (rows - cy) / fy)
    directions = functional.normalize(torch.stack([x, y, torch.ones_like(x)], dim=-1), dim=-1)
    turned = torch.einsum("tij,thwj->thwi", poses[:, :, :3], directions)
    origins = poses[:, None, None, :, 3].expand_as(turned)
    return torch.cat([torch.linalg.cross(origins, turned), turned], dim=-1)


def plucker(entries: Tensor, size: Size) -> Tensor:
    """The rays (t H W 6), float32, of all frames of entries (t 19), seen from the first camera."""
    return rays(relative_poses(entries).float(), intrinsics(entries, size).float(), size)


def folded_rays(entries: Tensor, size: Size, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """For every latent frame of entries (4k+1 19), the rays of its four frames as channels: (1 24 1 H W) float32.

    The first latent frame has its one frame four times. One at a time, since a window of all is large.
    """
    poses, cameras = relative_poses(entries), intrinsics(entries, size)
    for frame in range(0, len(entries), TEMPORAL_FACTOR):
        four = [max(0, frame - back) for back in reversed(range(TEMPORAL_FACTOR))]
        chunk = rays(poses[four].to(device, torch.float32), cameras[four].to(device, torch.float32), size)
        yield rearrange(chunk, "four h w c -> 1 (c four) 1 h w")
