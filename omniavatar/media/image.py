"""Pictures in: any file Pillow reads as 8-bit RGB, and its fit to one of a checkpoint's video sizes."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

from omniavatar.errors import InputError
from omniavatar.media.paths import input_file, shown

MIN_SIDE = 16
_FULL_SCALES = (1.0, 255.0, 65535.0, float(2**31 - 1))


def load_image(path: str | os.PathLike[str] | np.ndarray) -> np.ndarray:
    """Read a picture: (height, width, 3) uint8, RGB, upright as its EXIF orientation says. One in memory stays itself.

    Transparent pictures are laid on white, as a viewer shows them (dropping the alpha channel alone would uncover
    whatever colours the editor left beneath it). 16-bit, 32-bit and float greys are scaled, not clipped. Of an
    animation the first frame counts. Colour profiles are not applied.
    """
    if isinstance(path, np.ndarray):
        if path.ndim != 3 or path.shape[2] != 3 or path.dtype != np.uint8 or path.size == 0:
            raise InputError(f"a picture in memory is (h, w, 3) uint8, not {path.shape} {path.dtype}")
        return path
    input_file(path, "image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                _check_size(image, path)
                return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except InputError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise InputError(f"image {shown(path)} has more than {limit:.0f} million pixels; scale it down") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"image {shown(path)} is not a picture that Pillow can read; try PNG or JPEG") from None
    except Exception as error:  # a decoder raises whatever its parser stumbles over in a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"image {shown(path)} is damaged: {reason}") from None


def choose_size(height: int, width: int, sizes: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The (H, W) of the table whose aspect ratio H/W is nearest to that of the picture.

    On an exact tie the last entry wins whose longer side is exactly as far from the picture's as the first one's.
    """
    if not sizes:
        raise InputError("the table of video sizes is empty; give at least one [height, width]")

    def ratio_error(size: Sequence[int]) -> float:
        return abs(size[0] / size[1] - height / width)

    def length_error(size: Sequence[int]) -> int:
        return abs(max(size) - max(height, width))

    nearest = min(map(ratio_error, sizes))
    tied = [size for size in sizes if ratio_error(size) == nearest]
    chosen = [size for size in tied if length_error(size) == length_error(tied[0])][-1]
    return chosen[0], chosen[1]


def size_near(height: int, width: int, pixels: int, multiple: int) -> tuple[int, int]:
    """The (H, W) of about this shape and number of pixels whose sides are multiples of `multiple`."""
    scale = math.sqrt(pixels / (height * width)) / multiple
    return max(1, round(height * scale)) * multiple, max(1, round(width * scale)) * multiple


def fit_image(image: np.ndarray, size: tuple[int, int], *, original_rounding: bool = False) -> Tensor:
    """Scale a (h, w, 3) uint8 picture until it covers `size` = (H, W), crop the centre: (1, 3, H, W) in [-1, 1].

    `original_rounding` truncates the scaled size as the original OmniAvatar does; it can then be one row or column
    short, which is filled with black. The resize is bilinear and anti-aliased, in float32.
    """
    height, width = image.shape[:2]
    scaled = (_truncated_cover if original_rounding else _cover)(height, width, size)
    x = rearrange(torch.from_numpy(image), "h w c -> 1 c h w").float() / 255
    x = F.interpolate(x, size=scaled, mode="bilinear", align_corners=False, antialias=True)
    return _pad_or_crop(x, size) * 2 - 1


def placement(height: int, width: int, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where `fit_image` puts a picture: the (h, w) it is scaled to, and the (row, column) where `size` is cut out."""
    scaled = _cover(height, width, size)
    return scaled, (math.ceil((scaled[0] - size[0]) / 2), math.ceil((scaled[1] - size[1]) / 2))


def _check_size(image: Image.Image, path: str | os.PathLike[str]) -> None:
    if min(image.size) < MIN_SIDE:
        width, height = image.size
        raise InputError(f"image {shown(path)} is {width}x{height}; both sides need {MIN_SIDE} pixels or more")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_rgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    """16-bit files span 0..65535; for 32-bit and float ones the smallest usual full scale that holds every value."""
    values = np.array(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite numbers")
    scales = (65535.0,) if image.mode.startswith("I;16") else _FULL_SCALES
    scale = next((scale for scale in scales if values.max() <= scale), values.max())
    grey = np.rint(values.clip(min=0) * (255 / scale)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _cover(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """The smallest (h, w) of the picture's aspect ratio that covers `size`; one side matches exactly."""
    if size[0] * width >= size[1] * height:
        return size[0], max(size[1], round(width * size[0] / height))
    return max(size[0], round(height * size[1] / width)), size[1]


def _truncated_cover(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    ratio = max(size[0] / height, size[1] / width)
    return int(height * ratio), int(width * ratio)


def _pad_or_crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad (b, c, h, w) with zeros to `size`, or crop where it is larger; an odd crop takes the larger half in front."""
    rows, columns = size[0] - x.shape[-2], size[1] - x.shape[-1]
    before = (math.floor(rows / 2), math.floor(columns / 2))
    return F.pad(x, (before[1], columns - before[1], before[0], rows - before[0]))
