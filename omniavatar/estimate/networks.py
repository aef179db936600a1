"""Networks for a rehearsal: of the true shapes, with random weights, and with one block where many are alike.

A network's `blocks` are modules that run one after another. Those of equal shapes are one module in a rehearsal, which
takes the place of each of them; its first calls are measured, and later ones take that time without computing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from omniavatar.engine.delegation import DelegatingModels
from omniavatar.engine.engine import Adapter, Models
from omniavatar.engine.placing import Kept

NOISE = 2**20
"""Random numbers that are made; larger weights repeat them."""


class Skeletons(Models, Protocol):
    """Models that can be built without their weights; `omniavatar.checkpoints.Bundle` is one."""

    def skeleton(self, role: str, *, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        """The network of this role on the meta device, as `load` would make it."""
        ...

    def weights(
        self, role: str, patterns: Sequence[str], *, device: torch.device, dtype: torch.dtype
    ) -> Mapping[str, Tensor]:
        """Those weights of the role's network whose names fit one of the patterns."""
        ...


@dataclass
class Alike:
    """A network in a rehearsal: its blocks by kind, and how many stand for each; empty without blocks.

    parameters: how many numbers the whole network has. kept: where its blocks are, if a unit keeps them elsewhere; then
    the network is a visitor of the device, and in a rehearsal only said to come and go.
    """

    network: nn.Module
    parameters: int
    kinds: list[nn.Module]
    counts: list[int]
    kept: Kept | None = None
    is_here: bool = True
    arrive: Callable[[int], None] = field(default=lambda size: None, repr=False)

    def come(self) -> None:
        """Be on the device; `arrive` is told how many bytes that moves."""
        if not self.is_here:
            self.is_here = True
            self.arrive(self.rest + (0 if self.kept is None else self.kept.arriving * self.largest_block))

    def leave(self) -> None:
        """Be elsewhere."""
        self.is_here = False

    @property
    def blocks(self) -> int:
        """Blocks of the whole network."""
        return sum(self.counts)

    @property
    def held(self) -> int:
        """Bytes that the network takes in the rehearsal."""
        return size_of(self.network)

    @property
    def block_sizes(self) -> list[int]:
        """Bytes of a block of each kind."""
        return [size_of(block) for block in self.kinds]

    @property
    def rest(self) -> int:
        """Bytes outside the blocks."""
        return self.held - sum(self.block_sizes)

    @property
    def size(self) -> int:
        """Bytes of the whole network."""
        return self.rest + sum(size * count for size, count in zip(self.block_sizes, self.counts, strict=True))

    @property
    def on_device(self) -> int:
        """Bytes on the device while the network works."""
        return self.size if self.kept is None else self.rest + self.kept.on_device * self.largest_block

    @property
    def in_host(self) -> int:
        """Bytes in host memory all the time."""
        return 0 if self.kept is None else self.rest + self.kept.in_host * self.largest_block

    @property
    def largest_block(self) -> int:
        """Bytes of the largest block, 0 without blocks."""
        return max(self.block_sizes, default=0)

    def device_type(self) -> str:
        """Where the network is now; empty without weights."""
        return next((weight.device.type for weight in self.network.parameters()), "")


class RehearsalModels(DelegatingModels[Skeletons]):
    """`engine.Models` for a rehearsal.

    decisive: the weights that are read, as patterns by role; all others are random. LoRA files are left out, since they
    change what weights are and not how many.
    """

    def __init__(self, models: Skeletons, decisive: Mapping[str, Sequence[str]]) -> None:
        super().__init__(models)
        self.decisive = decisive
        self.networks: dict[str, Alike] = {}

    def adapters(self) -> Sequence[Adapter]:
        """None."""
        return ()

    def __getattr__(self, name: str) -> Any:
        """What else units may ask of the models."""
        return getattr(self.models, name)

    def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        """The network of this role with random weights, alike blocks being one."""
        network = self.models.skeleton(role, dtype=dtype, **constructor)
        parameters = sum(weight.numel() for weight in network.parameters())
        kinds, counts = join_blocks(getattr(network, "blocks", None))
        materialize(network, device)
        patterns = self.decisive.get(role, ())
        if patterns:
            read = self.models.weights(role, patterns, device=device, dtype=dtype)
            network.load_state_dict(dict(read), strict=False, assign=True)
            network.requires_grad_(False)
        self.networks[role] = Alike(network, parameters, kinds, counts)
        return network


def join_blocks(blocks: Any) -> tuple[list[nn.Module], list[int]]:
    """Let the first block of equal shapes stand for all: the kinds of blocks, and how many there are of each."""
    first: dict[tuple[Any, ...], nn.Module] = {}
    counts: dict[tuple[Any, ...], int] = {}
    if not isinstance(blocks, nn.ModuleList):
        return [], []
    for index, block in enumerate(blocks):
        shapes = (type(block), *((name, tensor.shape) for name, tensor in block.state_dict().items()))
        blocks[index] = first.setdefault(shapes, block)
        counts[shapes] = counts.get(shapes, 0) + 1
    return list(first.values()), list(counts.values())


def stand_in(alike: Alike, stands: Callable[[nn.Module], nn.Module]) -> None:
    """Put a stand-in in the place of every block; units may have changed the blocks since they were joined."""
    blocks = getattr(alike.network, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        return
    alike.kinds = list(dict.fromkeys(blocks))
    alike.counts = [sum(block is kind for block in blocks) for kind in alike.kinds]
    made = {kind: stands(kind) for kind in alike.kinds}
    for index, block in enumerate(blocks):
        blocks[index] = made[block]


@torch.no_grad()
def materialize(network: nn.Module, device: torch.device) -> None:
    """Give a network on the meta device random weights that keep activations of order 1: by fan-in, norms ones, biases
    and tables zeros."""
    noise = torch.randn(NOISE, generator=torch.Generator(device).manual_seed(0), device=device)
    made: dict[Tensor, nn.Parameter] = {}
    for module in network.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight not in made:
                made[weight] = nn.Parameter(random_like(module, name, weight, noise), requires_grad=False)
            setattr(module, name, made[weight])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.zeros_like(buffer, device=device))


def random_like(module: nn.Module, name: str, weight: Tensor, noise: Tensor) -> Tensor:
    """Values for a weight on the meta device."""
    if isinstance(module, nn.Embedding) or name.endswith("bias"):
        return torch.zeros_like(weight, device=noise.device)
    if weight.ndim <= 1:
        return torch.ones_like(weight, device=noise.device)
    values = torch.empty(weight.shape, dtype=weight.dtype, device=noise.device)
    repeat_into(values, noise * math.prod(weight.shape[1:]) ** -0.5)
    return values


def repeat_into(target: Tensor, values: Tensor) -> None:
    """Fill a tensor with values (n), again and again: billions of random numbers take minutes."""
    flat = target.view(-1)
    whole = flat.numel() // values.numel() * values.numel()
    flat[:whole].view(-1, values.numel()).copy_(values.expand(whole // values.numel(), -1))
    flat[whole:].copy_(values[: flat.numel() - whole])


def size_of(network: nn.Module) -> int:
    """Bytes of a network's weights, each storage once."""
    tensors = [*network.parameters(), *network.buffers()]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def signature(value: Any) -> Any:
    """What the time of a call depends on: shapes and types of the tensors in its arguments."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, Mapping):
        return tuple((key, signature(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(signature(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), *(signature(getattr(value, item.name)) for item in fields(value))
    return type(value)
