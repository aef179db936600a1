"""The media files among the inputs of a video, looked into before any work is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from omniavatar.errors import InputError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from omniavatar.engine.plan import Plan


def check_media(plan: Plan, inputs: Mapping[str, BaseModel], seconds: float | None = None) -> None:
    """Look into the media files among the inputs. Raises InputError for one that cannot be used.

    seconds: the longest length of the video, None if the sound decides.
    """
    from omniavatar.media.audio import check_audio
    from omniavatar.media.image import load_image
    from omniavatar.media.video import probe_video

    checks: dict[str, Callable[[Path], Any]] = {
        "image": load_image,
        "audio": partial(check_audio, seconds=seconds),
        "video": probe_video,
    }
    looked_at = set()
    for unit in plan.units:
        for name, info in unit.Inputs.model_fields.items():
            kinds = {getattr(mark, "kind", "") for mark in (*info.metadata, *inner_marks(info.annotation))}
            for look in product(kinds & checks.keys(), paths(getattr(inputs[unit.name], name))):
                if look not in looked_at:
                    looked_at.add(look)
                    kind, path = look
                    checks[kind](path)
    for output in [values.output for values in inputs.values() if hasattr(values, "output")]:
        for kind, path in looked_at:
            if output.exists() and output.samefile(path):
                raise InputError(f"the output {output} is also the {kind} that is read; give it another name")


def paths(value: Any) -> Iterator[Path]:
    """The paths in an input, which may be one, a list of them, or none."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from paths(item)


def inner_marks(annotation: Any) -> Iterator[Any]:
    """What annotations say about the types in a union, and about those of the items of lists."""
    yield from getattr(annotation, "__metadata__", ())
    for part in get_args(annotation):
        yield from inner_marks(part)
