"""What a video was made of, as JSON values: units with their settings, inputs, models, versions, figures."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniavatar import __version__

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.plan import Plan
    from omniavatar.engine.progress import Timings
    from omniavatar.engine.scopes import Job, Request

FORMAT = 1


class Recorded:
    """A unit of which the record of a video says more than its settings, such as how much of a LoRA file was used."""

    def record(self, engine: Engine) -> Mapping[str, Any]:
        """What the record says of it, as JSON values by name."""
        raise NotImplementedError


def manifest(engine: Engine, plan: Plan, job: Job, timings: Timings) -> dict[str, Any]:
    """The record of a finished video. Paths are written as they were given; what was in memory is described."""
    import torch

    height, width = job.size
    return {
        "format": FORMAT,
        **recipe(plan, job),
        "frames": job.length,
        "height": height,
        "width": width,
        "device": str(engine.device),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "ranks": engine.world.size,
        "threads": torch.get_num_threads(),
        "versions": {"omniavatar": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "timings": {name: value if value is None else round(value, 4) for name, value in asdict(timings).items()},
    }


def recipe(plan: Plan, job: Job) -> dict[str, Any]:
    """What is needed to make the video once more, besides the models; `command` if a command line has said it."""
    request: Request = job.request
    told = [unit for unit in plan.units if isinstance(unit, Recorded)]
    return {
        "plan": [repr(unit) for unit in plan.units],
        "settings": {unit.name: unit.settings.model_dump(mode="json") for unit in plan.units},
        "inputs": {name: described(value) for name, value in request.inputs.items()},
        **({"command": job["command"]} if "command" in job else {}),
        **{name: value for unit in told for name, value in unit.record(job.engine).items()},
        "seed": job.seed,
        "fps": job.fps,
        "seconds": request.seconds,
        "size": None if request.height is None else [request.height, request.width],
    }


def described(value: Any) -> Any:
    """An input as JSON: text, numbers and paths as they are, of anything else what kind of thing it is."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and len(value) <= 100:
        return [described(item) for item in value]
    shape = getattr(value, "shape", None)
    return f"<{type(value).__name__}{'' if shape is None else f' {tuple(shape)}'}>"
