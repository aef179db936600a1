"""Clips that a package makes, for training without files: the door that `omni_clips` opens.

A configuration names a generator and gives its settings:

    data:
      generated: {faces: {clips: 2500, frames: 126, side: 128}}
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
from pydantic import BaseModel

from omniavatar.errors import InputError, nearest


class Filmed(Protocol):
    """A clip at 25 frames/s: of a file, or generated."""

    @property
    def frames(self) -> int: ...

    @property
    def prompt(self) -> str: ...

    @property
    def bucket(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        ...

    def pictures(self, start: int, count: int) -> np.ndarray:
        """(count h w 3) uint8."""
        ...

    def sound(self) -> np.ndarray:
        """(n,) float32 at 16 kHz; frame k goes with samples [640 k, 640 (k + 1))."""
        ...


class ClipGenerator(ABC):
    """Makes clips from numbers: the same number with the same settings is the same clip, on every machine.

    name: under `data.generated` of a training configuration. Settings: its fields there, a pydantic model that forbids
    others.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[BaseModel]]

    def __init__(self, settings: BaseModel) -> None:
        self.settings = settings

    @abstractmethod
    def __len__(self) -> int:
        """How many clips there are."""

    @abstractmethod
    def clip(self, number: int) -> Filmed:
        """Clip `number`, from 0 to below the length."""

    def check(self) -> None:  # noqa: B027 (most have nothing to look at)
        """Raise InputError if the clips cannot be made, before any network is loaded."""

    def identity(self) -> dict[str, Any]:
        """What the clips are, as JSON values: prepared samples of other clips are not mixed with theirs."""
        return self.settings.model_dump(mode="json")

    @classmethod
    def unseen(cls, seed: int) -> Filmed | None:
        """A clip for `omni bench --faces`, on which no network was trained: its frame 0 is the portrait.

        None, the default: the package has none.
        """
        return None


def generator_named(
    generated: Mapping[str, Mapping[str, Any]], known: Mapping[str, type[ClipGenerator]]
) -> ClipGenerator:
    """The generator of `data.generated`. Raises InputError if no package brings it, or its settings are wrong."""
    from omniavatar.config import validated

    ((name, settings),) = generated.items()
    if name not in known:
        raise InputError(
            f"data.generated names '{name}', which no installed package brings{nearest(name, known)}; "
            "omni plugins list shows what is installed"
        )
    found = known[name]
    return found(validated(found.Settings, settings, f"data.generated.{name}"))


def generator_fault(generator: Any) -> str:
    """Why a class is no clip generator, in one line; nothing if it is one."""
    if not (isinstance(generator, type) and issubclass(generator, ClipGenerator)):
        return f"{generator!r} is not a ClipGenerator"
    name, settings = getattr(generator, "name", None), getattr(generator, "Settings", None)
    if not isinstance(name, str) or not name:
        return f"clip generator {generator.__name__} has no name"
    if not (isinstance(settings, type) and issubclass(settings, BaseModel)):
        return f"clip generator '{name}' has no Settings, a pydantic model"
    missing = sorted(generator.__abstractmethods__)
    return f"clip generator '{name}' has no {' and no '.join(missing)}" if missing else ""
