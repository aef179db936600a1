"""Disk offload: the blocks' weights are read from their files whenever the blocks run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from omniavatar.engine.placing import Kept, PlacesWeights
from omniavatar.engine.rehearsing import NotRehearsed
from omniavatar.engine.saving import SavesMemory
from omniavatar.engine.unit import ALL, PipelineUnit
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from omniavatar.engine.engine import Engine
    from omniavatar.engine.plan import Plan
    from omniavatar.models.streaming import Parcel, ReadBlocks

ONE_WAY = "both bring the blocks to the device; take the one for which there is memory"


class DiskOffload(PipelineUnit, PlacesWeights, SavesMemory, NotRehearsed):
    """Little GPU memory and little host memory: each block is read from its file while the one before computes.

    Steps take as long as reading the transformer from the disk, unless the system keeps the file in memory it has left.
    Every network is on the device only while a unit that works with it runs. What other units make of weights (LoRA is
    merged, fp8 rounds) is made of each block anew when it has come; packed weights of files stay packed. Files other
    than safetensors are read as well, but take longer to open.
    """

    name = "disk-offload"
    exact = True
    eases = ("load", "prepare", "denoise", "decode", "host")
    optional_roles = (ALL,)
    host_roles = (ALL,)
    reads_blocks = True
    conflicts: ClassVar[Mapping[str, str]] = {
        "offload": ONE_WAY,
        "fsdp": "with sharded weights every GPU holds a part of each block already",
    }

    @hookimpl(wrapper=True)
    def setup(self, engine: Engine) -> Iterator[None]:
        """After all other units, which may change weights."""
        yield
        from omniavatar.engine.streaming import take_over

        take_over(self, engine, partial(read_blocks, engine))

    def keeps(self, role: str, blocks: int, plan: Plan) -> Kept | None:
        from omniavatar.models.streaming import BUFFERS, PLACES

        return Kept(on_device=min(PLACES, blocks), in_host=BUFFERS, copied=blocks if blocks > PLACES else 0)


def read_blocks(engine: Engine, role: str, network: nn.Module, parcels: Sequence[Parcel]) -> ReadBlocks:
    """The blocks of a network from its files, or from where its weights lie if they have been loaded."""
    from omniavatar.models.streaming import ReadBlocks

    if not parcels[0].is_unread:
        return ReadBlocks(parcels, engine.device, Lying(parcels).read)
    files = FileBlocks(engine, role, network)
    return ReadBlocks(parcels, engine.device, files.read, files.finish)


class Lying:
    """Blocks whose weights have been loaded; where they are mapped from a file, only what is used takes memory."""

    def __init__(self, parcels: Sequence[Parcel]) -> None:
        self.blocks = [[tensor.data for tensor in parcel.tensors] for parcel in parcels]

    def read(self, index: int, targets: Sequence[Tensor]) -> None:
        """Copy a block's weights."""
        for target, tensor in zip(targets, self.blocks[index], strict=True):
            target.copy_(tensor)


class FileBlocks:
    """Blocks whose weights lie in files, and what the plan makes of them."""

    def __init__(self, engine: Engine, role: str, network: Any) -> None:
        self.models: Any = engine.models
        self.role = role
        self.conversions = engine.conversions[role]
        names = {id(weight): name for name, weight in network.named_parameters()}
        self.names = [[names[id(weight)] for weight in block.parameters()] for block in network.blocks]
        made = {name: weight.data for name, weight in network.blocks.named_parameters() if weight.numel()}
        self.made = {f"blocks.{name}": value for name, value in made.items()}

    def read(self, index: int, targets: Sequence[Tensor]) -> None:
        """Read those of a block's weights that stay as they are."""
        self._read(index, targets, converted=False)

    def finish(self, index: int, weights: Sequence[Tensor]) -> None:
        """Read those of which the plan makes something, which happens on the device, into their place there."""
        self._read(index, weights, converted=True)

    def _read(self, index: int, targets: Sequence[Tensor], *, converted: bool) -> None:
        concern, owner = self.conversions.concern, self.conversions.owner
        pairs = zip(self.names[index], targets, strict=True)
        wanted = {name: target for name, target in pairs if concern(owner(name)) == converted}
        for name in wanted.keys() & self.made.keys():  # what is in no file, such as LoRA that is added at run time
            wanted.pop(name).copy_(self.made[name])
        if wanted:
            self.models.read_into(self.role, wanted, self.conversions)
