"""Videos that a program has in memory: pictures and their rate."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from omniavatar.errors import InputError
from omniavatar.lazy import np
from omniavatar.media.image import image_input, load_image, pixels_of
from omniavatar.media.memory import as_array, content_of, described
from omniavatar.media.paths import HeldFile, input_file

MOST_FPS = 1000
_KINDS = "a path, bytes, or (frames, fps) with frames (t h w 3)"


@dataclass(frozen=True, eq=False)
class Clip:
    """A video in memory: `frames` (t h w 3) uint8, RGB, at `fps` frames a second. One frame is a picture."""

    frames: np.ndarray
    fps: Fraction

    @property
    def duration(self) -> Fraction:
        """Seconds."""
        return len(self.frames) / self.fps


def video_input(value: Any, name: str = "video") -> Path | Clip:
    """What a user gives as a video, as a file that can be read or as a `Clip`.

    value: a path; the bytes of a file, or a file object; `(frames, fps)`, with frames (t h w 3), an array or tensor of
    uint8 or of numbers from 0 to 1, or a list of PIL images or of arrays (h w 3); a `Clip`; one picture in memory, for
    videos that may be a picture. name: of the input, for errors. Raises InputError for anything else.
    """
    if isinstance(value, str | os.PathLike):
        return input_file(value, name)
    content = content_of(value, name)
    if content is not None:
        return HeldFile.holding(content)
    if isinstance(value, Clip):
        return _clip(value.frames, value.fps, name)
    if isinstance(value, tuple | list) and len(value) == 2 and not _is_picture(value[1]):
        return _clip(value[0], value[1], name)
    array = as_array(value)
    if (array is not None and array.ndim == 4) or isinstance(value, list):
        raise InputError(f"{name}: which frame rate? give (frames, fps)")
    if isinstance(value, Image.Image) or (array is not None and array.ndim in (2, 3)):
        return Clip(_pictures([value], name), Fraction(1))
    raise InputError(f"{name}: {_KINDS}, not {described(value)}")


def _is_picture(value: Any) -> bool:
    array = as_array(value)
    return isinstance(value, Image.Image) or (array is not None and array.ndim > 0)


def _clip(frames: Any, fps: Any, name: str) -> Clip:
    return Clip(_pictures(frames, name), _rate(fps, name))


def _rate(fps: Any, name: str) -> Fraction:
    if isinstance(fps, Fraction) and 0 < fps <= MOST_FPS:
        return fps
    try:
        rate = float(fps)
    except (TypeError, ValueError):
        raise InputError(f"{name}: a frame rate is a number, not {described(fps)}") from None
    if not (math.isfinite(rate) and 0 < rate <= MOST_FPS):
        raise InputError(f"{name} has {rate:g} frames a second; more than 0 and up to {MOST_FPS} are possible")
    return Fraction(rate).limit_denominator(1001)


def _pictures(frames: Any, name: str) -> np.ndarray:
    """Frames as (t h w 3) uint8."""
    if isinstance(frames, list | tuple):
        if not frames:
            raise InputError(f"{name} holds no frames")
        pictures = [load_image(image_input(frame, f"{name}, frame {index}")) for index, frame in enumerate(frames)]
        sizes = {f"{picture.shape[1]}x{picture.shape[0]}" for picture in pictures}
        if len(sizes) > 1:
            raise InputError(f"{name}: all frames need the same size; these are {', '.join(sorted(sizes))}")
        return np.stack(pictures)
    array = as_array(frames)
    if array is None or array.ndim != 4 or array.shape[3] not in (1, 3, 4):
        raise InputError(f"{name}: {_KINDS}, not ({described(frames)}, fps)")
    if not array.size:
        raise InputError(f"{name} holds no frames")
    return pixels_of(array, name)
