"""Disk offload: the blocks' weights are read from their files whenever the blocks run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from omniavatar.engine.unit import ALL, Kept, PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from omniavatar.engine.engine import Engine
    from omniavatar.models.lora import LoraPair
    from omniavatar.models.streaming import Parcel, ReadBlocks

ONE_WAY = "both bring the blocks to the device; take the one for which there is memory"


class DiskOffload(PipelineUnit):
    """Little GPU memory and little host memory: each block is read from its file while the one before computes.

    Steps take as long as reading the transformer from the disk, unless the system keeps the file in memory it has left.
    Every network is on the device only while a unit that works with it runs. LoRA is merged into each block when it has
    come. Files other than safetensors are read as well, but take longer to open.
    """

    name = "disk-offload"
    exact = True
    rehearses = False
    eases = ("load", "prepare", "denoise", "decode", "host")
    roles = ("dit",)
    host_roles = (ALL,)
    reads_blocks = True
    conflicts: ClassVar[Mapping[str, str]] = {
        "offload": ONE_WAY,
        "fsdp": "with sharded weights every GPU holds a part of each block already",
        "fp8": "the weights would be rounded again with every block that comes; take offload",
    }

    @hookimpl(wrapper=True)
    def setup(self, engine: Engine) -> Iterator[None]:
        """After all other units, which may change weights."""
        yield
        from omniavatar.engine.streaming import take_over

        take_over(self, engine, partial(read_blocks, engine))

    def keeps(self, role: str, blocks: int) -> Kept | None:
        from omniavatar.models.streaming import BUFFERS, PLACES

        return Kept(on_device=min(PLACES, blocks), in_host=BUFFERS, copied=blocks if blocks > PLACES else 0)


def read_blocks(engine: Engine, role: str, network: nn.Module, parcels: Sequence[Parcel]) -> ReadBlocks:
    """The blocks of a network from its files, or from where its weights lie if they have been loaded."""
    from omniavatar.models.streaming import ReadBlocks

    if not parcels[0].is_unread:
        return ReadBlocks(parcels, engine.device, Lying(parcels).read)
    files = FileBlocks(engine, role, network)
    return ReadBlocks(parcels, engine.device, files.read, files.merge)


class Lying:
    """Blocks whose weights have been loaded; where they are mapped from a file, only what is used takes memory."""

    def __init__(self, parcels: Sequence[Parcel]) -> None:
        self.blocks = [[tensor.data for tensor in parcel.tensors] for parcel in parcels]

    def read(self, index: int, targets: Sequence[Tensor]) -> None:
        """Copy a block's weights."""
        for target, tensor in zip(targets, self.blocks[index], strict=True):
            target.copy_(tensor)


class FileBlocks:
    """Blocks whose weights lie in files, and what LoRA adds to them."""

    def __init__(self, engine: Engine, role: str, network: Any) -> None:
        self.models: Any = engine.models
        self.role = role
        names = {id(weight): name for name, weight in network.named_parameters()}
        self.names = [[names[id(weight)] for weight in block.parameters()] for block in network.blocks]
        self.pairs: dict[str, list[tuple[LoraPair, float]]] = defaultdict(list)
        for pair, scale in changes(engine, role):
            self.pairs[f"{pair.module}.weight"].append((pair, scale))

    def read(self, index: int, targets: Sequence[Tensor]) -> None:
        """Read a block's weights."""
        self.models.read_into(self.role, dict(zip(self.names[index], targets, strict=True)))

    def merge(self, index: int, weights: Sequence[Tensor]) -> None:
        """Add LoRA to a block's weights, as the lora unit does with others."""
        from omniavatar.models.lora import merged

        with torch.inference_mode():
            for name, weight in zip(self.names[index], weights, strict=True):
                for pair, scale in self.pairs.get(name, ()):
                    weight.copy_(merged(weight, pair, scale, weight.device))


def changes(engine: Engine, role: str) -> Iterator[tuple[LoraPair, float]]:
    """What the lora unit of the plan adds to a network, with its strength; nothing without that unit."""
    from omniavatar.models.lora import lora_pairs

    scales = [unit.settings.scale for unit in engine.plan.units if unit.name == "lora"]
    for adapter in engine.models.adapters() if scales else ():
        if adapter.target == role:
            for pair in lora_pairs(adapter.tensors(), adapter.alpha):
                yield pair, scales[0]
