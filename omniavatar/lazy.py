"""Modules that are imported when something of them is first used: `from omniavatar.lazy import torch`.

The module of a unit says what the unit is, and the command line lists units without running any; importing torch alone
takes two seconds. Modules of networks import torch themselves, since its compiler does not see through what stands for
it here.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any


class Lazy:
    """Stands for a module. Every attribute is looked up in the module at each use, so that the two cannot differ."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._module: ModuleType | None = None

    def __getattr__(self, attribute: str) -> Any:
        if self._module is None:
            self._module = import_module(self._name)
        return getattr(self._module, attribute)

    def __repr__(self) -> str:
        return f"<lazy module '{self._name}'>"


if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch.nn import functional
else:
    np = Lazy("numpy")
    torch = Lazy("torch")
    functional = Lazy("torch.nn.functional")
