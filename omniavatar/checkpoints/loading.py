"""Weights from files into networks: built on the meta device, filled tensor by tensor on the device where they stay.

Everything is checked against headers before any data is read. Nothing holds a second copy of a network: each tensor is
mapped from its file, brought to its device and dtype, and assigned. Files are mapped portion by portion, so that what
has been read does not stay in the process's memory; what goes to the CPU unchanged stays mapped and is read when it is
used.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from omniavatar.checkpoints.derived import Derived, parts_of
from omniavatar.checkpoints.formats import PackedTensor, TensorInfo
from omniavatar.checkpoints.formulas import read_settings
from omniavatar.checkpoints.headers import BUILTIN_FORMATS, check_numbers
from omniavatar.checkpoints.names import matches
from omniavatar.errors import CheckpointError, few
from omniavatar.models.conversion import Conversions
from omniavatar.models.packed import is_linear

if TYPE_CHECKING:
    from omniavatar.checkpoints.registry import Component

log = logging.getLogger(__name__)
Device = torch.device | str
Shape = tuple[int, ...]
PORTION = 2**29
"""Bytes of a file that are mapped at a time."""


def import_network(path: str) -> Callable[..., nn.Module]:
    """The network class that a table names as `module:Class`. Raises CheckpointError if it is no `nn.Module`."""
    module_name, _, name = path.partition(":")
    try:
        network = getattr(importlib.import_module(module_name), name)
    except Exception as error:
        raise CheckpointError(
            f"the network {path} cannot be imported ({error}); install the plugin that brings it"
        ) from error
    if not (isinstance(network, type) and issubclass(network, nn.Module)):
        raise CheckpointError(f"the network {path} is no class derived from torch.nn.Module; mend the checkpoint table")
    return network


def accepted(path: str, offered: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that the network's constructor has parameters for."""
    parameters = parameter_names(import_network(path))
    return {name: value for name, value in offered.items() if name in parameters}


def parameter_names(make: Callable[..., Any]) -> set[str]:
    """The names of arguments that a function or class takes; **kwargs of a class are those of its base."""
    chain: list[Callable[..., Any]] = [make]
    if isinstance(make, type):
        chain = [vars(kind)["__init__"] for kind in make.__mro__ if "__init__" in vars(kind)]
    names: set[str] = set()
    for part in chain:
        parameters = inspect.signature(part).parameters.values()
        names |= {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names


def build_on_meta(path: str, config: Mapping[str, Any]) -> nn.Module:
    """A network without memory for its weights; a configuration that its constructor does not take is an error."""
    network = import_network(path)
    try:
        inspect.signature(network).bind(**config)
    except TypeError as error:
        raise CheckpointError(f"the network {path} cannot be built from its checkpoint table: {error}") from error
    try:
        with torch.device("meta"):
            return network(**config)
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"the network {path} cannot be built with the numbers found for it ({reason}); "
            "put the config.json that came with the file beside it"
        ) from error


def load_network(
    components: Sequence[Component],
    *,
    device: Device = "cpu",
    dtype: torch.dtype | None = None,
    overrides: Mapping[str, Any] | None = None,
    blocks: bool = True,
    conversions: Conversions | None = None,
    **offered: Any,
) -> nn.Module:
    """Build and fill the network of a base component (first) and the overlays on it.

    Without `blocks` the weights of the network's `blocks`, if it has some, stay on the meta device; see `read_into`.
    `overrides` change the configuration of the tables; `offered` are further constructor arguments (an attention
    function), which a network without a parameter of that name does not get.
    `conversions` are what units make of the weights; packed weights of linear layers stay packed if they allow it.
    The network comes in evaluation mode, without gradients. `dtype` None keeps each tensor's dtype; the table's wins.
    """
    base = components[0]
    if base.spec.dtype is not None:
        dtype = getattr(torch, base.spec.dtype)
    network = skeleton(components, overrides, **offered).requires_grad_(False)
    left = set() if blocks else names_of_blocks(network)
    convert_into(network, components, conversions or Conversions(), device=device, dtype=dtype, left=left)
    return network.eval().requires_grad_(False)


def convert_into(
    network: nn.Module,
    components: Sequence[Component],
    conversions: Conversions,
    *,
    device: Device,
    dtype: torch.dtype | None,
    left: Collection[str] = (),
) -> None:
    """Fill a network on the meta device with converted weights.

    left: those that stay on the meta device, where they are converted as well: so they have their final forms.
    """
    sources = merged_sources(components)
    growable = [pattern for component in components for pattern in component.spec.growable]
    optional = [pattern for component in components for pattern in component.spec.optional]
    check_names(network, sources, growable=growable, optional=optional)
    conversions.begin(network)
    wanted = {name: source for name, source in sources.items() if name not in left}
    log_files(wanted)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    linear = {name for name in shapes if is_linear_weight(network, name)}

    # A weight that stays mapped keeps in memory what has been read of its portion of the file.
    detached = str(device) == "cpu" and any(conversions.renews(name, source.packing) for name, source in wanted.items())

    def converted() -> Iterator[tuple[str, Tensor]]:
        for name, weight in chain(forms(sources, left), stored_tensors(wanted, device)):
            made = conversions.apply(name, fitted(weight, shapes[name]), dtype, linear=name in linear)
            if detached and not conversions.renews(name, sources[name].packing):
                made = copied(made)
            if isinstance(made, PackedTensor):
                conversions.keep(name, made)
            else:
                yield name, made

    fill(network, converted(), device=device, dtype=dtype, left=left, packed=conversions.layers)


def copied(weight: Tensor | PackedTensor) -> Tensor | PackedTensor:
    """A weight in memory of its own."""
    if isinstance(weight, Tensor):
        return weight.clone()
    return weight.with_parts({part: tensor.clone() for part, tensor in weight.parts.items()})


def forms(sources: Mapping[str, TensorInfo], names: Collection[str]) -> Iterator[tuple[str, Tensor | PackedTensor]]:
    """Weights on the meta device, packed as they are in their files; no data is read."""
    within = {name: source for name, source in sources.items() if name in names}
    packed = {name: source for name, source in within.items() if source.packing is not None}
    yield from stored_tensors(packed, "meta")
    for name, source in within.items():
        if name not in packed:
            yield name, torch.empty(source.shape, dtype=getattr(torch, source.dtype), device="meta")


def is_linear_weight(network: nn.Module, name: str) -> bool:
    """Whether a weight is that of a linear layer."""
    place, _, own = name.rpartition(".")
    return own == "weight" and is_linear(network.get_submodule(place))


def fitted(weight: Tensor | PackedTensor, shape: Shape) -> Tensor | PackedTensor:
    """A packed weight without its padding; one that grows is made dense."""
    if isinstance(weight, Tensor) or tuple(weight.shape) == shape:
        return weight
    try:
        return weight.cut(shape)
    except ValueError:
        return weight.dense()


def network_of(components: Sequence[Component]) -> str:
    """The path of the class that a base (first) and the overlays on it make together, that of the last to name one.

    Raises CheckpointError without a base, or if an overlay's class is not derived from that of what it lies over.
    """
    base = components[0]
    if not base.spec.is_base:
        lacks = f"; if it should be a whole one, download it again: it lacks {few(base.lacks)}" if base.lacks else ""
        raise CheckpointError(
            f"{base.files[0]} ({base.row.name}) holds only an overlay on the role '{base.role}'; "
            f"give the base model as well{lacks}"
        )
    path = str(base.spec.network)
    for overlay in components[1:]:
        own = overlay.spec.network
        if own is not None and own != path:
            kinds: Any = import_network(own), import_network(path)
            if not issubclass(*kinds):
                raise CheckpointError(
                    f"{overlay.files[0]} ({overlay.row.name}) makes a {kinds[0].__name__} of the network that it lies "
                    f"over, and {base.files[0]} is a {kinds[1].__name__}; give the base model that it was made for"
                )
            path = own
    return path


def merged_sources(components: Sequence[Component]) -> dict[str, TensorInfo]:
    """Where the tensors of a base with its overlays lie, by the network's names."""
    return {name: source for component in components for name, source in component.tensors.items()}


def names_of_blocks(network: nn.Module) -> set[str]:
    """The names of the weights within a network's `blocks`."""
    blocks = getattr(network, "blocks", None)
    within = set() if blocks is None else {id(weight) for weight in blocks.parameters()}
    return {name for name, weight in network.named_parameters() if id(weight) in within}


def read_into(
    components: Sequence[Component], targets: Mapping[str, Tensor], conversions: Conversions | None = None
) -> None:
    """Read weights of a network, converted as when it was loaded, into memory of their shapes.

    targets: by the names of the network's parameters; all parts of a packed weight together. What the files lack
    becomes zero. conversions: those that the network was loaded with.
    """
    sources, conversions = merged_sources(components), conversions or Conversions(keeps_packed=False)
    wanted: dict[str, TensorInfo] = {}
    for name, target in targets.items():
        owner = conversions.owner(name)
        if owner in sources:
            wanted[owner] = sources[owner]
        else:
            target.zero_()
    for name, weight in stored_tensors(wanted, "cpu"):  # mapped: what is moved to a device is not copied before
        layer = conversions.layers.get(name)
        shape = tuple(targets[name].shape) if layer is None else (layer.out_features, layer.in_features)
        dtype = targets[name].dtype if layer is None else None
        made = conversions.apply(name, fitted(weight, shape), dtype, linear=layer is not None)
        for piece, tensor in conversions.pieces(name, made):
            targets[piece].copy_(tensor)


def merged_config(components: Sequence[Component]) -> dict[str, Any]:
    """The configuration of a base with what its overlays change."""
    return {key: value for component in components for key, value in component.config.items()}


def skeleton(components: Sequence[Component], overrides: Mapping[str, Any] | None = None, **offered: Any) -> nn.Module:
    """The network of a base component and the overlays on it, without weights, on the meta device."""
    base, path = components[0], network_of(components)
    if base.spec.loader == "folder":
        kind: Any = import_network(path)
        settings = read_settings(base.folder / "config.json")
        try:
            network: nn.Module = kind.from_checkpoint(
                settings, {name: info.shape for name, info in base.tensors.items()}
            )
        except CheckpointError as error:
            raise CheckpointError(f"{base.files[0]}: {error}") from error
        return network
    config = merged_config(components) | dict(overrides or {})
    return build_on_meta(path, config | accepted(path, offered))


def check_names(
    network: nn.Module,
    sources: Mapping[str, TensorInfo],
    *,
    growable: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> None:
    """Strict: each tensor of the network has a source of its shape and the reverse, but for gaps allowed by name."""
    state = network.state_dict()
    targets = {name: tuple(tensor.shape) for name, tensor in state.items()}
    kind = type(network).__name__
    where = next((str(source.file) for source in sources.values()), "the checkpoint")
    missing = [name for name in targets if name not in sources and not matches(name, optional)]
    if missing:
        raise CheckpointError(f"{where} lacks {len(missing)} tensors of {kind}: {few(missing)}")
    unexpected = [f"{name} ({source.file.name})" for name, source in sources.items() if name not in targets]
    if unexpected:
        raise CheckpointError(f"{where} has {len(unexpected)} tensors that {kind} does not know: {few(unexpected)}")
    for name, source in sources.items():
        target = targets[name]
        if not source.could_be(target) and not (matches(name, growable) and fits_inside(source.shape, target)):
            shapes = f"the shape {list(source.shape)}, {kind} needs {list(target)}"
            raise CheckpointError(f"{source.file}: {name} has {shapes}; is it made for another base model?")
        if source.packing is None and state[name].is_floating_point():
            check_numbers(source, name)


def fits_inside(shape: Shape, target: Shape) -> bool:
    """Whether a tensor is the leading region of a larger one."""
    return len(shape) == len(target) and all(size <= limit for size, limit in zip(shape, target, strict=True))


def fill(
    network: nn.Module,
    tensors: Iterator[tuple[str, Tensor]],
    *,
    device: Device = "cpu",
    dtype: torch.dtype | None = None,
    left: Collection[str] = (),
    packed: Mapping[str, nn.Module] | None = None,
) -> None:
    """Assign checked tensors to a network on the meta device; what they leave open becomes zero, says the log.

    packed: layers, by the names of their weights, that take the places of others while the tensors come, and have their
    weights already.

    `left` are the names of those that stay on the meta device.
    """
    targets = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    state = {name: grown(name, tensor, targets[name]) for name, tensor in tensors}
    present = network.state_dict()
    of_layers = {
        f"{weight.removesuffix('weight')}{own}"
        for weight, layer in (packed or {}).items()
        for own, _ in layer.named_parameters()
        if own != "bias"
    }
    for name in present.keys() - state.keys():
        if name in of_layers:
            state[name] = present[name]
        elif name in left:
            state[name] = torch.empty(targets[name], device="meta", dtype=dtype)
    absent = [name for name in present if name not in state]
    if absent:
        log.warning("not in the checkpoint, set to zero: %s", few(absent))
        state |= {name: torch.zeros(targets[name], device=device, dtype=dtype) for name in absent}
    network.load_state_dict(state, strict=True, assign=True)


def grown(name: str, tensor: Tensor, target: Shape) -> Tensor:
    """The tensor as the leading region of one of the target shape, zero elsewhere."""
    if tuple(tensor.shape) == target:
        return tensor
    log.warning("%s grows from %s to %s; the new region is zero", name, list(tensor.shape), list(target))
    larger = tensor.new_zeros(target)
    larger[tuple(slice(size) for size in tensor.shape)] = tensor
    return larger


def read_tensors(
    sources: Mapping[str, TensorInfo], *, device: Device, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """Read tensors file by file, each brought to its device and, if it is floating point, its dtype before the next."""
    log_files(sources)
    for name, weight in stored_tensors(sources, device):
        tensor = weight.dense(dtype) if isinstance(weight, PackedTensor) else weight
        yield name, tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)


def log_files(sources: Mapping[str, TensorInfo]) -> None:
    """Say what is read."""
    for file, count in Counter(part.file for source in sources.values() for part in parts_of(source)).items():
        log.info("reading %d tensors from %s", count, file)


def stored_tensors(sources: Mapping[str, TensorInfo], device: Device) -> Iterator[tuple[str, Tensor | PackedTensor]]:
    """Read tensors, file by file and portion by portion, as they are stored: packed ones stay packed.

    A tensor of a file is read once, also where several weights are made of it.
    """
    stored: dict[str, TensorInfo] = {}
    waiting: dict[str, list[str]] = defaultdict(list)
    for name, source in sources.items():
        if not isinstance(source, Derived):
            stored[name] = source
        for part in source.parts if isinstance(source, Derived) else ():
            stored[part_key(part)] = part
            waiting[part_key(part)].append(name)
    there: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, weight in _file_tensors(stored, device):
        if key not in waiting:
            yield key, weight
        for name in waiting.get(key, ()):
            derived = sources[name]
            there[name][key] = weight.dense() if isinstance(weight, PackedTensor) else weight
            if isinstance(derived, Derived) and len(there[name]) == len({part_key(part) for part in derived.parts}):
                parts = there.pop(name)
                yield name, derived.make([parts[part_key(part)] for part in derived.parts])


def part_key(part: TensorInfo) -> str:
    """A name for a tensor of a file that no weight has."""
    return f"{part.file}\n{part.name}"


def _file_tensors(sources: Mapping[str, TensorInfo], device: Device) -> Iterator[tuple[str, Tensor | PackedTensor]]:
    by_file: dict[Path, dict[str, TensorInfo]] = defaultdict(dict)
    for name, source in sources.items():
        by_file[source.file][name] = source
    for file, within in by_file.items():
        known = next(iter(within.values())).format or BUILTIN_FORMATS.of(file)
        for names in portions(within, PORTION) if known.reads_in_parts(file) else [names_in_file(within)]:
            by_name = {name_in_file: name for name, name_in_file in names.items()}
            for name_in_file, weight in known.read(file, list(by_name), device):
                yield by_name[name_in_file], weight


def portions(sources: Mapping[str, TensorInfo], most: int) -> Iterator[dict[str, str]]:
    """The names in the file by the network's, in parts of at most so many bytes, or of one tensor."""
    part: dict[str, str] = {}
    nbytes = 0
    for name, source in sources.items():
        if part and nbytes + source.nbytes > most:
            yield part
            part, nbytes = {}, 0
        part[name] = source.name
        nbytes += source.nbytes
    if part:
        yield part


def names_in_file(sources: Mapping[str, TensorInfo]) -> dict[str, str]:
    return {name: source.name for name, source in sources.items()}
