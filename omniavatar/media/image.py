"""Pictures in: any file Pillow reads, or what is in memory, as 8-bit sRGB; its fit to a checkpoint's video sizes."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps, features

from omniavatar.errors import InputError
from omniavatar.lazy import functional, np, torch
from omniavatar.media.memory import as_array, content_of, described
from omniavatar.media.paths import input_file, shown

if TYPE_CHECKING:
    from torch import Tensor

MIN_SIDE = 16
MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
"""Of a picture; Pillow's own limit."""
MOST_ELONGATED = 100
"""How many times the longer side may be as long as the shorter one."""
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "HEIF", "TIFF", "BMP", "DIB", "GIF", "JPEG2000", "PPM", "TGA", "ICO")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_ORIENTATION, _LYING = 0x0112, range(5, 9)
"""The EXIF tag, and those of its values that exchange height and width."""
_SPARE = 4
_ROUNDING = 0.01
_FULL_SCALES = (1.0, 255.0, 65535.0, float(2**31 - 1))
_COLOUR_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}
_KINDS = "a path, bytes, a PIL image, or an array or tensor (h w 3)"


def load_image(source: Any) -> np.ndarray:
    """A picture: (height, width, 3) uint8, RGB, upright as its EXIF orientation says.

    source: a path, the bytes of a file, a file object, a PIL image, or an array or tensor (h w c) or (c h w) with 3, 4
    or 1 channels, or (h w), of uint8 or of numbers from 0 to 1.

    Colour profiles are applied: the values are those of sRGB. Transparent pictures are laid on white, as a viewer shows
    them (dropping the alpha channel alone would uncover whatever colours the editor left beneath it). 16-bit, 32-bit
    and float greys are scaled, not clipped. Of an animation the first frame counts. Raises InputError for what is no
    picture, too large, or of an extreme shape.
    """
    picture = image_input(source)
    return picture if isinstance(picture, np.ndarray) else _decoded(picture, f"image {shown(picture)}")


def picture_size(source: Any) -> tuple[int, int]:
    """Height and width of what `load_image` gives, from the header of a file. Raises InputError as that does."""
    picture = image_input(source)
    if isinstance(picture, np.ndarray):
        return picture.shape[0], picture.shape[1]
    name = f"image {shown(picture)}"
    with _decoding(picture, name), Image.open(picture, formats=_formats()) as image:
        _check_size(*image.size, name)
        width, height = image.size
        return (width, height) if image.getexif().get(_ORIENTATION) in _LYING else (height, width)


def image_input(value: Any, name: str = "image") -> Path | np.ndarray:
    """What a user gives as a picture, as a file that can be read, or as its pixels (h w 3) uint8; see `load_image`.

    name: of the input, for errors. Raises InputError for anything else.
    """
    if isinstance(value, str | os.PathLike):
        return input_file(value, name)
    content = content_of(value, name)
    if content is not None:
        return _decoded(BytesIO(content), f"{name} of {len(content)} bytes in memory")
    if isinstance(value, Image.Image):
        return _decoded(value, f"{name} in memory")
    array = as_array(value)
    pixels = None if array is None else _rows_first(array)
    if pixels is None:
        raise InputError(f"{name}: {_KINDS}, not {described(value)}")
    _check_size(pixels.shape[1], pixels.shape[0], f"{name} in memory")
    return pixels_of(pixels, name)


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
    short, which is filled with black. The resize is bilinear and anti-aliased, in float32. Far more picture than is
    seen is cropped first.
    """
    image = _without_ends(image, size)
    height, width = image.shape[:2]
    scaled = (_truncated_cover if original_rounding else cover)(height, width, size)
    return _pad_or_crop(resized(image, scaled), size) * 2 - 1


def resized(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """A (h, w, 3) uint8 picture at `size` = (H, W): (1, 3, H, W) in [0, 1], bilinear and anti-aliased."""
    pixels = torch.from_numpy(image if image.flags.writeable else image.copy())
    channels = [  # one at a time: a large photograph in float32 takes a gigabyte
        functional.interpolate(channel.float().div_(255)[None, None], size=size, mode="bilinear", antialias=True)
        for channel in pixels.unbind(-1)
    ]
    return torch.cat(channels, dim=1)


def placement(height: int, width: int, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where `fit_image` puts a picture: the (h, w) it is scaled to, and the (row, column) where `size` is cut out."""
    scaled = cover(height, width, size)
    return scaled, (math.ceil((scaled[0] - size[0]) / 2), math.ceil((scaled[1] - size[1]) / 2))


# Reading ------------------------------------------------------------------------------------------------------------


def _decoded(source: Path | BytesIO | Image.Image, name: str) -> np.ndarray:
    """The pixels (h w 3) uint8 of a file or of a PIL image; `name` for errors."""
    with _decoding(source, name):
        if isinstance(source, Image.Image):
            return _pixels(source, name)
        with Image.open(source, formats=_formats()) as image:
            return _pixels(image, name)


@contextlib.contextmanager
def _decoding(source: Path | BytesIO | Image.Image, name: str) -> Iterator[None]:
    """Make an InputError of whatever Pillow raises about a picture; `name` for errors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except InputError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_large(name) from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{name} is not a picture that Pillow can read; {_advice(source)}") from None
    except Exception as error:  # a decoder raises whatever its parser stumbles over in a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name} is damaged: {reason}") from None


def _formats() -> list[str]:
    """Of `_FORMATS` those that this Pillow reads: only formats of pixels, and none that a further program decodes."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _advice(source: Path | BytesIO | Image.Image) -> str:
    head = b""
    if isinstance(source, Path):
        with open(source, "rb") as file:
            head = file.read(12)
    elif isinstance(source, BytesIO):
        head = source.getvalue()[:12]
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return "it is HEIC, as phones store photographs; export it as JPEG"
    return "try PNG or JPEG"


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    _check_size(*image.size, name)
    return np.array(_to_rgb(ImageOps.exif_transpose(image)))


def _check_size(width: int, height: int, name: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise InputError(f"{name} is {width}x{height}; both sides need {MIN_SIDE} pixels or more")
    if width * height > MOST_PIXELS:
        raise _too_large(name)
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise InputError(
            f"{name} is {width}x{height}; one side may be {MOST_ELONGATED} times as long as the other at most; crop it"
        )


def _too_large(name: str) -> InputError:
    return InputError(f"{name} has more than {MOST_PIXELS / 1e6:.0f} million pixels; scale it down")


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB in sRGB, transparent parts on white."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_rgb(image)
    if not image.has_transparency_data:
        return _to_srgb(image if image.mode in _COLOUR_SPACES else image.convert("RGB"), image)
    clear = image.convert("RGBA")
    opaque = clear.getchannel("R") if image.mode in ("LA", "La") else clear.convert("RGB")
    return Image.composite(_to_srgb(opaque, image), Image.new("RGB", image.size, "white"), clear.getchannel("A"))


def _to_srgb(image: Image.Image, original: Image.Image) -> Image.Image:
    """A picture in one of the modes of `_COLOUR_SPACES` as sRGB, by the original's profile; a bad one is ignored."""
    content = original.info.get("icc_profile")
    if content and features.check("littlecms2"):
        from PIL import ImageCms

        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            profile = ImageCms.ImageCmsProfile(BytesIO(content))
            if profile.profile.xcolor_space == _COLOUR_SPACES[image.mode]:
                srgb = ImageCms.createProfile("sRGB")
                return ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB") or image
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


# From memory --------------------------------------------------------------------------------------------------------


def _rows_first(array: np.ndarray) -> np.ndarray | None:
    """An array as (h w c) with 1, 3 or 4 channels; None if it does not look like a picture."""
    if array.ndim == 2 and min(array.shape) >= MIN_SIDE:
        return array[..., None]
    if array.ndim != 3:
        return None
    if array.shape[2] in (1, 3, 4):
        return array
    return array.transpose(1, 2, 0) if array.shape[0] in (1, 3, 4) else None


def pixels_of(pixels: np.ndarray, name: str) -> np.ndarray:
    """Pixels (... c) as (... 3) uint8 that torch can share; transparent ones are laid on white."""
    values = as_bytes(pixels, name)
    if values.shape[-1] == 4:
        alpha = values[..., 3:].astype(np.float32) / 255
        return np.rint(values[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.repeat(values, 3, axis=-1) if values.shape[-1] == 1 else np.require(values, requirements=["C", "W"])


def as_bytes(pixels: np.ndarray, name: str) -> np.ndarray:
    """Values of any shape as uint8: those that are, and numbers from 0 to 1. Raises InputError for others."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "f":
        raise InputError(f"{name}: pixels are uint8, or float from 0 to 1, not {pixels.dtype}")
    least, most = float(pixels.min()), float(pixels.max())
    if not (least >= -_ROUNDING and most <= 1 + _ROUNDING):  # also if they are not numbers
        raise InputError(f"{name}: pixels of {pixels.dtype} go from 0 to 1, these from {least:.3g} to {most:.3g}")
    values: np.ndarray = np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)
    return values


# Fitting ------------------------------------------------------------------------------------------------------------


def _without_ends(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Crop the centre (h w 3) of a picture that is more than `_SPARE` times as long or wide as is seen at `size`.

    Scaled first, and cropped then, its ends would take memory without limit.
    """
    height, width = image.shape[:2]
    rows = math.ceil(_SPARE * width * size[0] / size[1])
    columns = math.ceil(_SPARE * height * size[1] / size[0])
    top, left = max(0, (height - rows) // 2), max(0, (width - columns) // 2)
    return image[top : height - top, left : width - left]


def cover(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
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
    return functional.pad(x, (before[1], columns - before[1], before[0], rows - before[0]))
