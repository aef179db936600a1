"""Weights that wait outside the device: those of a network's blocks come one block ahead of their use, and go again.

    parts = parcels(network.blocks, device)             # each block in one piece of page-locked host memory
    stream = BlockStream(Packed(parts), device, resident=range(4))
    stream.attach(network.blocks)                       # from now on a block finds its weights when it is called

While a block computes, the next one is copied on a stream of its own, into the second of two places on the device. A
block that is called out of turn is copied when it is called. On the CPU everything happens in order, with the same
copies. This is for inference: weights have no gradients.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from omniavatar.models.wan_dit import BlockInputs
from omniavatar.models.wrapped import Wrapped

log = logging.getLogger(__name__)

ALIGNMENT = 256
"""Bytes; compiled kernels and matrix multiplications want at least 16."""
PAGE = 4096
PLACES = 2
"""Blocks that pass through the device at a time: one computes, one is on its way."""
BUFFERS = 2
"""Blocks from files that are in host memory at a time: one is read, one is copied to the device."""


# Pieces of memory ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where tensors lie in one piece of memory: offset in bytes, shape and type of each, and all bytes together."""

    places: tuple[tuple[int, torch.Size, torch.dtype], ...]
    nbytes: int

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Layout:
        """One behind the other."""
        places, end = [], 0
        for tensor in tensors:
            places.append((end, tensor.shape, tensor.dtype))
            end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return cls(tuple(places), end)

    def views(self, memory: Tensor) -> list[Tensor]:
        """The tensors in a piece of memory (n) uint8."""
        return [
            memory[offset : offset + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
            for offset, shape, dtype in self.places
        ]


def host_memory(nbytes: int) -> Tensor:
    """Host memory (nbytes) uint8 in whole pages."""
    memory = torch.empty(nbytes + 2 * PAGE, dtype=torch.uint8)
    start = -memory.data_ptr() % PAGE
    return memory[start : start + nbytes]


def lock(memory: Tensor, device: torch.device) -> None:
    """Page-lock host memory as long as this tensor lives, so that a CUDA device copies from it by itself.

    Memory that torch allocates page-locked comes in powers of two, which can be nearly twice as much.
    """
    if device.type != "cuda" or not len(memory):
        return
    runtime: Any = torch.cuda.cudart()
    error = runtime.cudaHostRegister(memory.data_ptr(), len(memory), 0)
    if int(error) == 0:
        weakref.finalize(memory, _unlock, memory.data_ptr(), device).atexit = False
    else:
        log.warning("%d MB of host memory cannot be page-locked (CUDA error %d)", len(memory) >> 20, int(error))


def _unlock(address: int, device: torch.device) -> None:
    """Undo `lock` after the last copy."""
    torch.cuda.synchronize(device)
    runtime: Any = torch.cuda.cudart()
    runtime.cudaHostUnregister(address)


class Parcel:
    """Tensors of a module that lie together: empty, unless they are pointed at a piece of memory that holds them.

    is_unread: they were on the meta device, so that they have no values yet.
    """

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        self.tensors = tensors
        self.device = device
        self.layout = Layout.of(tensors)
        self.is_unread = False

    @classmethod
    def of(cls, module: nn.Module, device: torch.device) -> Parcel:
        """The parameters and buffers of a module; those on the meta device, which cannot leave it, are replaced."""
        parcel = cls([*module.parameters(), *module.buffers()], device)
        for part in module.modules():
            for name, weight in part.named_parameters(recurse=False):
                if weight.is_meta:
                    empty = torch.empty(0, dtype=weight.dtype, device=device)
                    setattr(part, name, nn.Parameter(empty, requires_grad=False))
                    parcel.is_unread = True
        parcel.tensors = [*module.parameters(), *module.buffers()]
        return parcel

    def point(self, memory: Tensor) -> None:
        """Let the tensors be those in a piece of memory (n) uint8."""
        for tensor, view in zip(self.tensors, self.layout.views(memory), strict=True):
            tensor.data = view

    def park(self) -> None:
        """Let the tensors be empty ones on the device."""
        for tensor in self.tensors:
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=self.device)

    def pack(self) -> Tensor:
        """Copy the tensors to a new piece of host memory (n) uint8 and let go of them."""
        memory = host_memory(self.layout.nbytes)
        for view, tensor in zip(self.layout.views(memory), self.tensors, strict=True):
            view.copy_(tensor.data)
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=self.device)
        lock(memory, self.device)
        return memory


# Where blocks come from ----------------------------------------------------------------------------------------------


class Source(Protocol):
    """The weights of blocks."""

    parcels: Sequence[Parcel]
    in_background: bool
    """Whether it takes so long that a thread should do it."""

    def load(self, index: int, memory: Tensor) -> None:
        """Put the weights of a block in device memory (n) uint8, in the order of the device's current stream."""
        ...


class Packed:
    """Blocks in host memory, page-locked for a GPU."""

    in_background = False

    def __init__(self, parcels: Sequence[Parcel]) -> None:
        self.parcels = parcels
        self.memories = [parcel.pack() for parcel in parcels]

    def load(self, index: int, memory: Tensor) -> None:
        packed = self.memories[index]
        memory[: len(packed)].copy_(packed, non_blocking=True)


Read = Callable[[int, Sequence[Tensor]], None]
"""Fills host tensors with the weights of a block: (index, tensors in the order of its parcel)."""
Finish = Callable[[int, Sequence[Tensor]], None]
"""Changes the weights of a block once they are on the device: (index, tensors)."""


class ReadBlocks:
    """Blocks that are read anew whenever they are used.

    Host memory holds BUFFERS of them at a time, in turns: while one is copied to the device the next is read.
    """

    in_background = True

    def __init__(
        self, parcels: Sequence[Parcel], device: torch.device, read: Read, finish: Finish | None = None
    ) -> None:
        self.parcels = parcels
        self.read, self.finish = read, finish
        self.buffers = deque(Buffer.of(parcels, device) for _ in range(BUFFERS))
        for parcel in parcels:
            parcel.park()

    def load(self, index: int, memory: Tensor) -> None:
        layout = self.parcels[index].layout
        buffer = self.buffers[0]
        self.buffers.rotate(-1)
        if buffer.copied is not None:
            buffer.copied.synchronize()
        self.read(index, layout.views(buffer.memory))
        memory[: layout.nbytes].copy_(buffer.memory[: layout.nbytes], non_blocking=True)
        if memory.is_cuda:
            buffer.copied = torch.cuda.current_stream(memory.device).record_event()
        if self.finish is not None:
            self.finish(index, layout.views(memory))


@dataclass
class Buffer:
    """Host memory for a block, page-locked for a GPU. copied: after what it may be overwritten."""

    memory: Tensor
    copied: torch.cuda.Event | None = None

    @classmethod
    def of(cls, parcels: Sequence[Parcel], device: torch.device) -> Buffer:
        """One for the largest of these."""
        buffer = cls(host_memory(max(parcel.layout.nbytes for parcel in parcels)))
        lock(buffer.memory, device)
        return buffer


# Blocks that find their weights --------------------------------------------------------------------------------------


@dataclass
class Place:
    """A piece of device memory for one block at a time.

    block: which one it holds, or is about to. used: after what may be overwritten. ready: after what may be read.
    """

    memory: Tensor
    block: int | None = None
    used: Any = None
    ready: Any = None
    arriving: Future[None] | None = field(default=None, repr=False)


class BlockStream:
    """Brings blocks to the device when they are called, and the next one ahead of time; after the last comes the first.

    resident: the blocks that stay there once they have come, until `leave`. The device holds two others at a time.
    """

    def __init__(self, source: Source, device: torch.device, resident: Collection[int] = ()) -> None:
        self.source, self.device = source, device
        self.resident = frozenset(resident)
        self.passing = [index for index in range(len(source.parcels)) if index not in self.resident]
        self.size = max((source.parcels[index].layout.nbytes for index in self.passing), default=0)
        self.shared: list[Place] = []
        self.own: Mapping[int, Place] = {}
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.reader = ThreadPoolExecutor(1, "blocks") if source.in_background else None

    def attach(self, blocks: nn.ModuleList) -> None:
        """Replace the blocks by ones that ask this stream for their weights."""
        for index, block in enumerate(blocks):
            blocks[index] = Streamed(block, self, index)

    @contextmanager
    def present(self, index: int, left_out: Container[int] = ()) -> Iterator[None]:
        """Have the weights of a block on the device for the time of a with-block.

        left_out: blocks that are not called before the first one is called again, so that they are not brought ahead.
        """
        if not self.shared and not self.own:
            self._settle()
        place = self.own.get(index) or self._place_of(index) or self._free()
        if place.block != index:
            self._bring(index, place)
        self._await(place)
        parcel = self.source.parcels[index]
        parcel.point(place.memory)
        try:
            self._prefetch_after(index, place, left_out)
            yield
        finally:
            parcel.park()
            place.used = self._now()

    def leave(self) -> None:
        """Free all device memory; blocks come again when they are called."""
        places = [*self.shared, *self.own.values()]
        wait([place.arriving for place in places if place.arriving is not None])
        if self.side is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.side)
        self.shared, self.own = [], {}

    def _settle(self) -> None:
        """Take the device memory in one piece: taken between activations, pieces would leave gaps that nothing fits."""
        passing, kept = min(PLACES, len(self.passing)), sorted(self.resident)
        sizes = [self.size] * passing + [self.source.parcels[index].layout.nbytes for index in kept]
        memory = torch.empty(sum(sizes), dtype=torch.uint8, device=self.device)
        now = self._now()
        places = [Place(piece, used=now) for piece in memory.split(sizes)]
        self.shared, self.own = places[:passing], dict(zip(kept, places[passing:], strict=True))

    def _prefetch_after(self, index: int, busy: Place, left_out: Container[int]) -> None:
        """Begin to bring the next block that passes, unless it is here."""
        later = (other for other in self.passing if other > index and other not in left_out)
        following = next(later, next(iter(self.passing), None))
        if following is not None and self._place_of(following) is None:
            self._bring(following, self._free(busy))

    def _place_of(self, index: int) -> Place | None:
        """Where a block that passes is, or is about to be."""
        return next((place for place in self.shared if place.block == index), None)

    def _free(self, busy: Place | None = None) -> Place:
        """An empty place for a block that passes, or that of a block that is done."""
        others = [place for place in self.shared if place is not busy]
        return min(others, key=lambda place: place.block is not None)

    def _bring(self, index: int, place: Place) -> None:
        """Begin to fill a place."""
        if place.arriving is not None:
            wait([place.arriving])  # an earlier one that nobody has called
        place.block, place.arriving = None, None
        if self.reader is None:
            self._fill(index, place)
        else:
            place.arriving = self.reader.submit(self._fill, index, place)
        place.block = index

    @torch.inference_mode()
    def _fill(self, index: int, place: Place) -> None:
        """Copy a block, on CUDA behind the last use of the place."""
        if self.side is None:
            self.source.load(index, place.memory)
            return
        with torch.cuda.stream(self.side):
            self.side.wait_event(place.used)
            self.source.load(index, place.memory)
            place.ready = self.side.record_event()

    def _await(self, place: Place) -> None:
        """Let what follows on the device come after the arrival."""
        if place.arriving is not None:
            try:
                place.arriving.result()
            except BaseException:
                place.block = None
                raise
            finally:
                place.arriving = None
        if place.ready is not None:
            torch.cuda.current_stream(self.device).wait_event(place.ready)

    def _now(self) -> Any:
        """The end of what the device has been given so far."""
        return torch.cuda.current_stream(self.device).record_event() if self.side is not None else None


class Streamed(Wrapped):
    """A block whose weights are there while it runs."""

    def __init__(self, block: nn.Module, stream: BlockStream, index: int) -> None:
        super().__init__(block)
        self.stream, self.index = stream, index

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the block makes of its inputs, which may say which blocks are left out."""
        left_out = next((one.left_out for one in inputs if isinstance(one, BlockInputs)), frozenset[int]())
        with self.stream.present(self.index, left_out):
            return self.block(*inputs, **named)


class Visitor:
    """A network that is on the device only from `come` to `leave`; the blocks that `stream` brings come one by one.

    It also comes when a part of it is called that is not there. Leaving frees device memory and copies nothing, since
    weights do not change: they lie in host memory all the time.
    """

    def __init__(self, network: nn.Module, device: torch.device, stream: BlockStream | None = None) -> None:
        streamed = {id(tensor) for parcel in stream.source.parcels for tensor in parcel.tensors} if stream else set()
        tensors = [tensor for tensor in (*network.parameters(), *network.buffers()) if id(tensor) not in streamed]
        self.parcel = Parcel(tensors, device)
        self.stream = stream
        self.packed = self.parcel.pack()
        self.is_here = False
        held = {id(tensor) for tensor in tensors}
        for module, weights in callable_parts(network):
            if any(id(weight) in held for weight in weights):
                module.register_forward_pre_hook(self._called)

    def _called(self, module: nn.Module, inputs: Any) -> None:
        self.come()

    def come(self) -> None:
        """Bring what is not streamed."""
        if not self.is_here:
            self.parcel.point(self.packed.to(self.parcel.device, copy=True, non_blocking=True))
            self.is_here = True

    def leave(self) -> None:
        """Free the device memory."""
        if self.is_here:
            self.parcel.park()
            if self.stream is not None:
                self.stream.leave()
            self.is_here = False


def callable_parts(network: nn.Module) -> Iterator[tuple[nn.Module, list[Tensor]]]:
    """The modules of a network with their own weights, and its blocks as wholes: within them may be compiled code."""
    blocks = list(dict.fromkeys(getattr(network, "blocks", ())))
    within = {part for block in blocks for part in block.modules()}
    yield from ((block, list(block.parameters())) for block in blocks)
    for module in network.modules():
        if module not in within:
            yield module, list(module.parameters(recurse=False))


def spread(count: int, total: int) -> list[int]:
    """`count` of `total` indices, as evenly as they can lie: the blocks between two that pass give a copy its time."""
    return [index for index in range(total) if (index + 1) * count // total > index * count // total]
