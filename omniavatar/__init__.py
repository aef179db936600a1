"""omniavatar: a plugin engine for audio-driven avatar video.

    from omniavatar import Request, open_engine

    with open_engine("omniavatar-1.3b") as engine:
        result = engine.generate(Request({"image": "me.png", "audio": "me.wav", "output": "talk.mp4"}))

This is the whole public API for programs; names are imported when they are used. Plugins are written against
`omniavatar.sdk`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.progress import Progress, Status
    from omniavatar.engine.run import Chunk, Result, Run
    from omniavatar.engine.scopes import Request
    from omniavatar.errors import (
        Cancelled,
        CheckpointError,
        EngineBusy,
        InputError,
        NotFinite,
        OmniError,
        OutputError,
        PlanError,
        PluginError,
    )
    from omniavatar.opening import open_engine

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "CheckpointError",
    "Chunk",
    "Engine",
    "EngineBusy",
    "InputError",
    "NotFinite",
    "OmniError",
    "OutputError",
    "PlanError",
    "PluginError",
    "Progress",
    "Request",
    "Result",
    "Run",
    "Status",
    "__version__",
    "open_engine",
]

_MODULES = {
    "open_engine": "omniavatar.opening",
    "Engine": "omniavatar.engine.engine",
    "Run": "omniavatar.engine.run",
    "Chunk": "omniavatar.engine.run",
    "Result": "omniavatar.engine.run",
    "Request": "omniavatar.engine.scopes",
    "Progress": "omniavatar.engine.progress",
    "Status": "omniavatar.engine.progress",
}


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it."""
    if name not in __all__:
        raise AttributeError(f"module 'omniavatar' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "omniavatar.errors")), name)


def __dir__() -> list[str]:
    return __all__
