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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from omniavatar.checkpoints.headers import TensorInfo, is_zip, unpickle
from omniavatar.checkpoints.names import matches
from omniavatar.checkpoints.nearest import few
from omniavatar.errors import CheckpointError

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
    parameters = inspect.signature(import_network(path)).parameters
    return {name: value for name, value in offered.items() if name in parameters}


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
    **offered: Any,
) -> nn.Module:
    """Build and fill the network of a base component (first) and the overlays on it.

    Without `blocks` the weights of the network's `blocks`, if it has some, stay on the meta device; see `read_into`.
    `overrides` change the configuration of the tables; `offered` are further constructor arguments (an attention
    function), which a network without a parameter of that name does not get.
    The network comes in evaluation mode, without gradients. `dtype` None keeps each tensor's dtype; the table's wins.
    """
    base = components[0]
    if base.spec.network is None:
        raise CheckpointError(
            f"{base.files[0]} holds only an overlay on the role '{base.role}'; give the base model as well"
        )
    if base.spec.dtype is not None:
        dtype = getattr(torch, base.spec.dtype)
    if base.spec.loader == "folder":
        return _from_folder(base, device, dtype or torch.float32)
    config = merged_config(components) | dict(overrides or {})
    network = build_on_meta(base.spec.network, config | accepted(base.spec.network, offered))
    sources = merged_sources(components)
    check_names(network, sources, growable=base.spec.growable, optional=base.spec.optional)
    left = set() if blocks else names_of_blocks(network)
    wanted = {name: source for name, source in sources.items() if name not in left}
    fill(network, read_tensors(wanted, device=device, dtype=dtype), device=device, dtype=dtype, left=left)
    return network.eval().requires_grad_(False)


def merged_sources(components: Sequence[Component]) -> dict[str, TensorInfo]:
    """Where the tensors of a base with its overlays lie, by the network's names."""
    return {name: source for component in components for name, source in component.tensors.items()}


def names_of_blocks(network: nn.Module) -> set[str]:
    """The names of the weights within a network's `blocks`."""
    blocks = getattr(network, "blocks", None)
    within = set() if blocks is None else {id(weight) for weight in blocks.parameters()}
    return {name for name, weight in network.named_parameters() if id(weight) in within}


def read_into(components: Sequence[Component], targets: Mapping[str, Tensor]) -> None:
    """Read tensors of a network, by its names, into memory of their shape; what the files lack becomes zero."""
    sources = merged_sources(components)
    for name in targets.keys() - sources.keys():
        targets[name].zero_()
    wanted = {name: sources[name] for name in targets if name in sources}
    for name, tensor in _tensors(wanted, "cpu", None):
        targets[name].copy_(tensor)


def merged_config(components: Sequence[Component]) -> dict[str, Any]:
    """The configuration of a base with what its overlays change."""
    return {key: value for component in components for key, value in component.config.items()}


def _from_folder(component: Component, device: Device, dtype: torch.dtype) -> nn.Module:
    network: Any = import_network(str(component.spec.network))
    loaded: nn.Module = network.from_folder(component.folder, device=device, dtype=dtype)
    return loaded.eval().requires_grad_(False)


def check_names(
    network: nn.Module,
    sources: Mapping[str, TensorInfo],
    *,
    growable: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> None:
    """Strict: each tensor of the network has a source of its shape and the reverse, but for gaps allowed by name."""
    targets = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
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
        if source.shape != target and not (matches(name, growable) and fits_inside(source.shape, target)):
            shapes = f"the shape {list(source.shape)}, {kind} needs {list(target)}"
            raise CheckpointError(f"{source.file}: {name} has {shapes}; is it made for another base model?")


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
) -> None:
    """Assign checked tensors to a network on the meta device; what they leave open becomes zero, says the log.

    `left` are the names of those that stay on the meta device.
    """
    targets = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    state = {name: grown(name, tensor, targets[name]) for name, tensor in tensors}
    state |= {name: torch.empty(targets[name], device="meta", dtype=dtype) for name in left}
    absent = [name for name in targets if name not in state]
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
    for file, count in Counter(source.file for source in sources.values()).items():
        log.info("reading %d tensors from %s", count, file)
    yield from _tensors(sources, device, dtype)


def _tensors(
    sources: Mapping[str, TensorInfo], device: Device, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    by_file: dict[Path, dict[str, TensorInfo]] = defaultdict(dict)
    for name, source in sources.items():
        by_file[source.file][name] = source
    for file, within in by_file.items():
        in_parts = file.suffix == ".safetensors" or is_zip(file)
        for names in portions(within, PORTION) if in_parts else [names_in_file(within)]:
            read = _read_safetensors if file.suffix == ".safetensors" else _read_pickled
            for name, tensor in read(file, names, device):
                yield name, tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)


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


def _read_safetensors(file: Path, names: Mapping[str, str], device: Device) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt", device=str(device)) as content:
            for name, name_in_file in names.items():
                yield name, content.get_tensor(name_in_file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}; download it again") from error


def _read_pickled(file: Path, names: Mapping[str, str], device: Device) -> Iterator[tuple[str, Tensor]]:
    """`device` is applied by the caller: a mapped file is moved tensor by tensor."""
    if not is_zip(file):
        log.info("%s is in torch's legacy format, which cannot be memory-mapped: it is read whole", file)
    content = unpickle(file, data=True)
    for name, name_in_file in names.items():
        yield name, content.pop(name_in_file)
