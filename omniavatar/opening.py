"""An engine from a configuration, as `omni run` makes one.

engine = open_engine("omniavatar-1.3b", units="default+teacache", settings={"euler": {"steps": 20}})
job = engine.generate(Request({"image": "face.png", "audio": "voice.wav", "output": "talk.mp4"}))
print(job.results["video"])
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniavatar.config import DEFAULT_CONFIG, RunConfig, find_config, merge_settings, parse_config, read_yaml
from omniavatar.distributed.world import ALONE, World
from omniavatar.errors import InputError

if TYPE_CHECKING:
    import torch

    from omniavatar.checkpoints import Registry
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.plan import Catalog

log = logging.getLogger(__name__)


def open_engine(
    config: str | Path = DEFAULT_CONFIG,
    *,
    units: str | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    observers: Sequence[Any] = (),
) -> Engine:
    """The engine of a packaged configuration or a YAML file; the other arguments take the place of what it says.

    units: a plan expression. settings: by unit, over those of the configuration. observers: objects with hooks, which
    are called beside the units'. Headers of model files are read at once, weights with the first video. Broken plugins
    are left out with a warning. Raises OmniError if something is missing or does not go together.
    """
    from omniavatar.plugins import discover

    path = find_config(str(config))
    given = {"units": units, "device": device, "dtype": dtype}
    found = parse_config(read_yaml(path), path)
    changes = {name: value for name, value in given.items() if value is not None}
    merged = merge_settings(found.settings, settings or {})
    chosen = parse_config({**dict(found), **changes, "settings": merged}, "open_engine")
    plugins = discover()
    engine = engine_of(
        chosen,
        plugins.catalog(),
        plugins.registry(map(Path, chosen.tables)),
        device=torch_device(chosen.device),
        observers=observers,
    )
    for failure in plugins.failures:
        log.warning("plugin '%s': %s", failure.plugin, failure.reason)
    return engine


def engine_of(
    config: RunConfig,
    catalog: Catalog,
    registry: Registry,
    *,
    device: torch.device,
    world: World = ALONE,
    observers: Sequence[Any] = (),
) -> Engine:
    """The engine of a configuration; headers are read, weights are not. Raises OmniError."""
    from omniavatar.checkpoints import Bundle
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.plan import build_plan

    bundle = Bundle.open(config.model_files(), registry, [entry.role for entry in config.models])
    plan = build_plan(config.units, catalog, bundle.settings(), config.settings)
    plan.check_complete()
    unused = bundle.roles - {role for unit in plan.units for role in (*unit.roles, *unit.optional_roles)}
    if unused and world.is_main:
        log.warning("no unit of the plan uses what the model files have for: %s", ", ".join(sorted(unused)))
    dtype = torch_dtype(config.dtype, device)
    return Engine(plan, bundle, device=device, dtype=dtype, observers=observers, world=world)


def torch_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of this name, after a try; "auto" is the rank's GPU if there is one."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"there is no device '{name}' here; choices: {', '.join(devices())}") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)  # kernels that are not torch's run on the current one
    return device


def devices() -> list[str]:
    """The names that can be given for a device on this machine."""
    import torch

    return ["auto", "cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def torch_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of this name; "auto" is bf16 on a GPU and fp32 on the CPU."""
    import torch

    if name == "auto":
        name = "fp32" if device.type == "cpu" else "bf16"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
