"""What tests of a plugin package ask for most: a small video with its units, and what its tables make of files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from omniavatar.checkpoints import Bundle, Registry
from omniavatar.checkpoints.formats import BUILTIN, Format, Formats
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Catalog, build_plan, parse
from omniavatar.engine.scopes import Request
from omniavatar.engine.unit import PipelineUnit
from omniavatar.plugins import discover
from omniavatar.resources import registry_tables
from omniavatar.testing.recorder import SeenWindow, WindowRecorder
from omniavatar.testing.tiny import TinyModels

SETTINGS: dict[str, dict[str, Any]] = {"schedule": {"steps": 1}, "guidance": {"scale": 1.0}}
"""Those of `small_video` where nothing else is said."""


def small_video(
    units: str = "default",
    *extra_units: type[PipelineUnit],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    networks: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
    size: tuple[int, int] = (32, 32),
    seconds: float = 0.1,
    seed: int = 0,
) -> list[SeenWindow]:
    """The windows of a video by small networks with random weights; no file is written.

    units: a plan expression, from which write-video is taken out. extra_units: classes that it names, installed or
    not. settings: by unit; one step and no guidance where nothing is said. networks: modules by role, in place of those
    of `TinyModels` or beside them. size: height and width.
    """
    found = discover().catalog()
    catalog = Catalog({**found.units, **{unit.name: unit for unit in extra_units}}, found.presets)
    writer = "-write-video" if "write-video" in parse(units, catalog) else ""
    plan = build_plan(units + writer, catalog, SETTINGS, settings or {})
    recorder = WindowRecorder()
    with Engine(plan, TinyModels(**(networks or {}))) as engine:
        height, width = size
        request = Request(inputs or {}, seed=seed, height=height, width=width, seconds=seconds)
        engine.generate(request, observers=[recorder])
    return recorder.windows


def models_in(
    files: Iterable[Path], *, tables: Iterable[Path | Traversable] = (), formats: Iterable[Format] = ()
) -> Bundle:
    """The models in files, as they are recognised with further checkpoint tables and weight formats.

    Raises CheckpointError for a file that is not recognised.
    """
    registry = Registry([*registry_tables(), *tables], formats=Formats([*BUILTIN, *formats]))
    return Bundle.open(map(str, files), registry)
