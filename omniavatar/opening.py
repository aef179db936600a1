"""An engine from a configuration, as `omni run` makes one.

engine = open_engine("omniavatar-1.3b", units="default+teacache", settings={"schedule": {"steps": 20}})
result = engine.generate(Request({"image": "face.png", "audio": "voice.wav", "output": "talk.mp4"}))
print(result.video)
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict

from omniavatar import original
from omniavatar.config import (
    ARGUMENTS,
    DEFAULT_CONFIG,
    RunConfig,
    changed_plan,
    find_config,
    lora_entry,
    model_entry,
    parse_config,
    read_yaml,
)
from omniavatar.config_base import over_base
from omniavatar.distributed.world import ALONE, World
from omniavatar.engine.settings import Chosen, Layer, Setting, Strength, explicit_layer, file_layer
from omniavatar.errors import CheckpointError, InputError
from omniavatar.locating import located

if TYPE_CHECKING:
    import torch

    from omniavatar.checkpoints import Bundle, Registry
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.plan import Catalog
    from omniavatar.engine.unit import PipelineUnit

log = logging.getLogger(__name__)

ConfigSource = str | Path | Mapping[str, Any]
"""A configuration: the name of a packaged one, a YAML file in our schema or the original's, or what one would hold."""
ModelSource = str | Path | Sequence[str | Path] | Mapping[str, Any]
"""A model: a path, ROLE=PATH, the shards of one checkpoint, or the fields of an entry in a configuration."""
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
OF_REQUESTS = ("inputs", "seed", "fps")
"""Fields of a configuration that are about single videos."""


class FinalConfig(RunConfig):
    """A configuration with all that was asked for laid over it, except for settings, which are in layers.

    chosen: the units, with what the plan expression says about them. layers: settings stronger than a checkpoint's.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    chosen: Chosen
    layers: tuple[Layer, ...]


def open_engine(  # noqa: PLR0913 (what the command line has options for)
    config: ConfigSource | None = None,
    *,
    units: str | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    models: Sequence[ModelSource] | None = None,
    loras: Sequence[ModelSource] | None = None,
    models_dir: str | Path | Sequence[str | Path] | None = None,
    tables: Sequence[str | Path] | None = None,
    extra_units: Iterable[type[PipelineUnit]] = (),
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    observers: Sequence[Any] = (),
    world: World | None = None,
) -> Engine:
    """The engine of a configuration; the other arguments say what `omni run` says with options.

    config: a packaged name, a YAML file or a mapping like one; None is the built-in avatar, "tiny".
    units: a plan expression; one that begins with + or - changes the configuration's. settings: by unit, stronger than
    the plan's and the configuration's.
    models: further model files, LoRA too, beside those of a configuration that is named; relative paths start here.
    loras: LoRA files beside all models, `["style.safetensors=0.7", "dit2=low.safetensors"]`, or entries of a
    configuration, `{"path": "style.safetensors", "strength": [[0, 0.5, 1.0], [0.5, 1.0, 0.3]]}`.
    models_dir: where relative paths of the configuration start; of several folders, the others are searched for models
    too, as those of the variable OMNI_MODELS and the cache of Hugging Face are. tables: further checkpoint tables.
    extra_units: classes that a plan expression can name besides those of installed packages.
    observers: objects with hooks, which are called beside the units'. world: the ranks that work together.
    Headers of model files are read at once, weights with the first video. Broken plugins are left out with a warning.
    Raises OmniError if something is missing or does not go together.
    """
    from omniavatar.engine.plan import check_names, check_present, choose, resolve
    from omniavatar.plugins import discover

    door, world = "open_engine", world or ALONE
    found, _ = configured(
        config, units=units, models=models, loras=loras, models_dir=models_dir, tables=tables, source=door
    )
    names = {"device": None if device is None else str(device), "dtype": None if dtype is None else dtype_name(dtype)}
    given = {name: value for name, value in names.items() if value is not None}
    found = parse_config({**dict(found), **given}, door)
    explicit = explicit_layer(parse_config({"settings": settings or {}}, door).settings)
    file = file_layer(name_of(config), found.settings)
    found = located(found, ARGUMENTS)  # before torch is imported: this answer should not take seconds
    plugins = discover()
    catalog = plugins.catalog(extra_units)
    chosen: Chosen = choose(found.units, catalog)
    for layer in (file, explicit):
        check_names(layer, catalog)
    check_present(explicit.settings, chosen, catalog)
    chosen = spread(chosen, world.size, resolve(chosen, catalog, file, explicit))
    tell_of_ignored(found, world)
    engine = engine_of(
        FinalConfig(**dict(found), chosen=chosen, layers=(file, explicit)),
        catalog,
        plugins.registry(map(Path, found.tables)),
        device=torch_device(found.device, world.local_rank),
        world=world,
        observers=observers,
    )
    for failure in plugins.failures:
        log.warning("plugin '%s': %s", failure.plugin, failure.reason)
    return engine


def configured(  # noqa: PLR0913 (what the command line has options for)
    config: ConfigSource | None,
    *,
    units: str | None = None,
    models: Iterable[ModelSource] | None = None,
    loras: Iterable[ModelSource] | None = None,
    models_dir: str | Path | Sequence[str | Path] | None = None,
    search: Iterable[str | Path] | None = None,
    tables: Iterable[str | Path] | None = None,
    hparams: Mapping[str, Any] | None = None,
    source: str,
) -> tuple[RunConfig, original.Overrides]:
    """A configuration with other units and models laid over it, and what `--hp` will lay over everything.

    The models of a configuration that is not named are left out if there are others. source: for messages.
    """
    hparams = hparams or {}
    path = Path("config") if isinstance(config, Mapping) else find_config(str(config or DEFAULT_CONFIG))
    content = dict(config) if isinstance(config, Mapping) else read_yaml(path)
    is_original = original.is_original(content)
    found = original.translate(content, hparams, path) if is_original else parse_config(over_base(content, path), path)
    changes: dict[str, Any] = {}
    if units is not None:
        changes["units"] = changed_plan(found.units, units)
    folders = [models_dir] if isinstance(models_dir, str | Path) else list(models_dir or ())
    if folders:
        changes["models_dir"] = str(folders[0])
    if folders[1:] or search:
        changes["search"] = (*map(absolute, (*folders[1:], *(search or ()))), *found.search)
    if tables:
        changes["tables"] = (*found.tables, *map(absolute, tables))
    if models:
        if isinstance(models, str | Path):
            raise InputError(f"{source}: models = {str(models)!r}: give a list of them")
        given = [entry_from_here(model) for model in models]
        changes["models"] = (*found.models, *({"instead": True, **entry} for entry in given)) if config else given
    if loras:
        if isinstance(loras, str | Path):
            raise InputError(f"{source}: loras = {str(loras)!r}: give a list of them")
        changes["models"] = (*changes.get("models", found.models), *map(lora_from_here, loras))
    found = parse_config({**dict(found), **changes}, source) if changes else found
    return found, original.overrides(content if is_original else {}, hparams)


def entry_from_here(model: ModelSource) -> dict[str, Any]:
    """The entry of a model file whose relative path starts where the user is."""
    if isinstance(model, Mapping):
        entry = dict(model)
    else:
        entry = model_entry(str(model) if isinstance(model, str | Path) else [str(shard) for shard in model])
    path = entry.get("path")
    if isinstance(path, str | Path):
        entry["path"] = absolute(path)
    elif isinstance(path, list | tuple):
        entry["path"] = [absolute(shard) for shard in path]
    return entry


def lora_from_here(lora: ModelSource) -> dict[str, Any]:
    """The entry of a LoRA whose relative path starts where the user is; its strength is 1 if it is not said."""
    entry = lora_entry(str(lora)) if isinstance(lora, str | Path) else lora
    return {"strength": 1.0, **entry_from_here(entry)}


def absolute(path: str | Path) -> str:
    """A path that the user has given, from wherever it is read."""
    return str(Path(path).expanduser().absolute())


def name_of(config: ConfigSource | None) -> str:
    """What records call a configuration."""
    return "config" if isinstance(config, Mapping) else str(config or DEFAULT_CONFIG)


def tell_of_ignored(config: RunConfig, world: World) -> None:
    """Warn about fields that only `omni run` heeds: videos are asked for by requests, and ranks are the caller's."""
    defaults = RunConfig()
    ignored = [name for name in OF_REQUESTS if getattr(config, name) != getattr(defaults, name)]
    if ignored:
        log.warning("the configuration's %s: give them to Request, an engine has none", ", ".join(ignored))
    if config.gpus not in (1, world.size):
        log.warning("the configuration's gpus = %d: start that many ranks and give world=", config.gpus)


def spread(chosen: Chosen, ranks: int, settings: Chosen) -> Chosen:
    """The chosen units for this many ranks: what guidance leaves of them shares every call.

    settings: those of the units, for the degree of guidance-parallel.
    """
    degree = settings.get("guidance-parallel", {}).get("degree", Setting(2, Strength.PRESET, "")).value
    if ranks == 1 or ("guidance-parallel" in chosen and isinstance(degree, int) and ranks <= degree):
        return chosen
    return {**chosen, "sequence-parallel": chosen.get("sequence-parallel", {})}


def engine_of(
    config: FinalConfig,
    catalog: Catalog,
    registry: Registry,
    *,
    device: torch.device,
    world: World = ALONE,
    observers: Sequence[Any] = (),
) -> Engine:
    """The engine of a configuration; headers are read, weights are not. Raises OmniError."""
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.plan import build_plan

    bundle = bundle_of(config, registry)
    plan = build_plan(config.chosen, catalog, *checkpoint_layers(bundle), *config.layers)
    plan.check_complete()
    if not config.models and plan.required_roles:
        raise CheckpointError(
            "the configuration names no model files; add models: to it, or base: tiny for those of the built-in avatar"
        )
    unused = bundle.roles - {*plan.roles}
    if unused and world.is_main:
        log.warning("not used by this plan, though the model files have it: %s", ", ".join(sorted(unused)))
    dtype = torch_dtype(config.dtype, device)
    tell_of_slow(dtype, device, config.device, world)
    return Engine(plan, bundle, device=device, dtype=dtype, observers=observers, world=world)


def bundle_of(config: RunConfig, registry: Registry) -> Bundle:
    """The model files of a configuration; headers are read, weights are not. Raises CheckpointError."""
    from omniavatar.checkpoints import Bundle

    roles, instead, strengths = (
        [getattr(entry, name) for entry in config.models] for name in ("role", "instead", "strength")
    )
    return Bundle.open(config.model_files(), registry, roles, instead, strengths, config.folders_beside)


def checkpoint_layers(bundle: Bundle) -> list[Layer]:
    """The settings that the tables have for the model files, in the order in which these were given."""
    rows = [detection.row for detection in bundle.detections]
    return [Layer(Strength.CHECKPOINT, f"checkpoint {row.name}", row.settings) for row in rows]


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
    dtype: torch.dtype = getattr(torch, DTYPES[name])
    return dtype


def tell_of_slow(dtype: torch.dtype, device: torch.device, name: str, world: World = ALONE) -> None:
    """Warn of a precision that a CPU has few fast kernels for, unless it only stands for the GPU of this name."""
    import torch

    is_real = name == "cpu" or not torch.cuda.is_available()
    if device.type == "cpu" and is_real and dtype != torch.float32 and world.is_main:
        short = dtype_name(dtype)
        log.warning("%s on a CPU can take 100 times as long as fp32, the default there; leave the dtype out", short)


def dtype_name(dtype: str | torch.dtype) -> str:
    """The name of a precision that may be torch's."""
    name = str(dtype).removeprefix("torch.")
    return next((ours for ours, theirs in DTYPES.items() if theirs == name), name)
