"""Blocks that come when they are called: the same numbers, two in memory, and none left behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omniavatar.models.streaming import BlockStream, Layout, Packed, Parcel, ReadBlocks, Visitor, spread

CPU = torch.device("cpu")
WIDTH = 3


def make_blocks(count: int) -> nn.ModuleList:
    """Linear layers that differ."""
    torch.manual_seed(0)
    return nn.ModuleList(nn.Linear(WIDTH, WIDTH).requires_grad_(False) for _ in range(count))


class Counted(Packed):
    """Notes what is loaded, or fails to load a block."""

    def __init__(self, parcels: Sequence[Parcel]) -> None:
        super().__init__(parcels)
        self.loaded: list[int] = []
        self.fails = -1

    def load(self, index: int, memory: Tensor) -> None:
        if index == self.fails:
            raise OSError("gone")
        self.loaded.append(index)
        super().load(index, memory)


def streamed(count: int, resident: Sequence[int] = ()) -> tuple[nn.ModuleList, BlockStream, Any]:
    blocks = make_blocks(count)
    source = Counted([Parcel.of(block, CPU) for block in blocks])
    stream = BlockStream(source, CPU, resident)
    stream.attach(blocks)
    return blocks, stream, source


def run(blocks: nn.ModuleList) -> Tensor:
    x = torch.ones(1, WIDTH)
    for block in blocks:
        x = block(x)
    return x


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("resident", [0, 1, 3])
def test_the_numbers_are_the_same_again_and_again(count: int, resident: int) -> None:
    blocks, _, _ = streamed(count, spread(min(count, resident), count))
    expected = run(make_blocks(count))
    for _ in range(3):
        assert torch.equal(run(blocks), expected)


def test_each_passing_block_is_copied_once_a_call_and_the_first_again_after_the_last() -> None:
    blocks, stream, source = streamed(4, [2])
    run(blocks)
    assert source.loaded == [0, 1, 3, 2, 0], "one ahead, round and round, and 2 when it is called"
    run(blocks)
    assert source.loaded[5:] == [1, 3, 0], "0 has come and 2 has stayed"
    assert len(stream.shared) == 2


def test_few_blocks_stay_where_they_are() -> None:
    blocks, _, source = streamed(2)
    for _ in range(3):
        run(blocks)
    assert source.loaded == [0, 1]


def test_a_block_out_of_turn_comes_when_it_is_called() -> None:
    blocks, _, _ = streamed(5)
    plain = make_blocks(5)
    x = torch.ones(1, WIDTH)
    for index in (0, 1, 0, 4, 2, 2, 1, 3):
        assert torch.equal(blocks[index](x), plain[index](x))


def test_weights_are_there_only_while_a_block_runs() -> None:
    blocks, stream, _ = streamed(3)
    assert all(weight.numel() == 0 for weight in blocks.parameters())
    with stream.present(1):
        assert [weight.numel() for weight in blocks[1].parameters()] == [WIDTH * WIDTH, WIDTH]
        assert all(weight.numel() == 0 for weight in blocks[0].parameters())
    assert all(weight.numel() == 0 for weight in blocks.parameters())


def test_after_an_error_it_goes_on() -> None:
    blocks, _, source = streamed(4)
    with pytest.raises(RuntimeError):
        blocks[1](torch.ones(1, WIDTH + 1))
    source.fails = 2
    with pytest.raises(OSError, match="gone"):
        run(blocks)
    source.fails = -1
    assert torch.equal(run(blocks), run(make_blocks(4)))


def test_leaving_frees_the_device_until_the_next_call() -> None:
    blocks, stream, source = streamed(4, [0])
    run(blocks)
    stream.leave()
    assert not stream.shared
    assert not stream.own
    source.loaded.clear()
    assert torch.equal(run(blocks), run(make_blocks(4)))
    assert set(source.loaded) == {0, 1, 2, 3}


def test_types_and_buffers_keep_their_places() -> None:
    module = nn.Module()
    module.eight = nn.Parameter(torch.arange(5.0).to(torch.float8_e4m3fn), requires_grad=False)
    module.sixteen = nn.Parameter(torch.randn(2, 3).bfloat16(), requires_grad=False)
    module.register_buffer("count", torch.tensor(7))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    parcel = Parcel.of(module, CPU)
    parcel.point(parcel.pack())
    for name, value in module.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value.double(), before[name].double())
    assert all(offset % 256 == 0 for offset, _, _ in parcel.layout.places)
    assert Layout.of([]).nbytes == 0


class Tape:
    """Blocks that are read, and what is done to them afterwards."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        self.weights = [[weight.clone() for weight in block.parameters()] for block in blocks]
        self.reads: list[int] = []

    def read(self, index: int, targets: Sequence[Tensor]) -> None:
        if index == 9:
            raise OSError("gone")
        self.reads.append(index)
        for target, weight in zip(targets, self.weights[index], strict=True):
            target.copy_(weight)

    def double(self, index: int, weights: Sequence[Tensor]) -> None:
        for weight in weights:
            weight.mul_(2)


def test_blocks_that_are_read_come_in_the_background_and_are_finished_on_the_device() -> None:
    blocks = make_blocks(4)
    tape = Tape(blocks)
    stream = BlockStream(ReadBlocks([Parcel.of(block, CPU) for block in blocks], CPU, tape.read, tape.double), CPU)
    stream.attach(blocks)
    doubled = make_blocks(4)
    for weight in doubled.parameters():
        weight.mul_(2)
    with torch.inference_mode():
        for _ in range(2):
            assert torch.equal(run(blocks), run(doubled))
    stream.leave()
    assert tape.reads == [0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_a_block_is_read_while_the_one_before_is_copied() -> None:
    """So they lie in two pieces of host memory, in turns."""
    blocks, places = make_blocks(5), []

    def read(index: int, targets: Sequence[Tensor]) -> None:
        places.append(targets[0].data_ptr())

    source = ReadBlocks([Parcel.of(block, CPU) for block in blocks], CPU, read)
    for index in range(5):
        source.load(index, torch.empty(1024, dtype=torch.uint8))
    assert len(set(places)) == 2
    assert places[0] == places[2] == places[4]
    assert places[1] == places[3]


def test_what_reading_raises_is_raised_by_the_call() -> None:
    blocks = make_blocks(10)
    tape = Tape(blocks)
    stream = BlockStream(ReadBlocks([Parcel.of(block, CPU) for block in blocks], CPU, tape.read, tape.double), CPU)
    stream.attach(blocks)
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            run(blocks)
    stream.leave()


def test_a_visitor_comes_and_goes() -> None:
    network = nn.Module()
    network.head, network.blocks = nn.Linear(WIDTH, 2).requires_grad_(False), make_blocks(3)
    expected = network.head(run(make_blocks(3)))
    stream = BlockStream(Packed([Parcel.of(block, CPU) for block in network.blocks]), CPU)
    stream.attach(network.blocks)
    visitor = Visitor(network, CPU, stream)
    assert network.head.weight.numel() == 0
    for _ in range(2):
        visitor.come()
        visitor.come()
        assert torch.equal(network.head(run(network.blocks)), expected)
        visitor.leave()
        visitor.leave()
        assert network.head.weight.numel() == 0
        assert not stream.shared
    assert torch.equal(network.head(run(network.blocks)), expected), "it comes when it is called"


def test_names_of_weights_stay_as_they_are() -> None:
    blocks, _, _ = streamed(3)
    assert list(blocks.state_dict()) == list(make_blocks(3).state_dict())


def test_resident_blocks_lie_evenly() -> None:
    assert spread(0, 4) == []
    assert spread(2, 4) == [1, 3]
    assert spread(3, 4) == [1, 2, 3]
    assert spread(4, 4) == [0, 1, 2, 3]


# What a GPU is told


class Clocked:
    """A stream that knows for each of its operations which ones, of all streams, have ended before it begins."""

    def __init__(self) -> None:
        self.done: set[Any] = set()

    def add(self, operation: Any) -> frozenset[Any]:
        before = frozenset(self.done)
        self.done.add(operation)
        return before

    def record_event(self) -> frozenset[Any]:
        return frozenset(self.done)

    def wait_event(self, event: frozenset[Any]) -> None:
        self.done |= event

    def wait_stream(self, other: Clocked) -> None:
        self.done |= other.done


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[Clocked]:
    """The stream on which blocks compute, and behind it those of with-blocks."""
    streams = [Clocked()]

    @contextmanager
    def entered(stream: Clocked) -> Iterator[None]:
        streams.append(stream)
        yield
        streams.pop()

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[-1])
    monkeypatch.setattr(torch.cuda, "stream", entered)
    return streams


@pytest.mark.parametrize("resident", [[], [1, 4]])
@pytest.mark.parametrize("calls", [range(6), (0, 1, 2, 0, 1, 5, 5, 3, 2), (4, 0, 4, 1, 4, 2)])
def test_nothing_is_read_before_it_has_come_nor_overwritten_while_it_is_read(
    streams: list[Clocked], resident: Sequence[int], calls: Sequence[int]
) -> None:
    blocks = make_blocks(6)
    used: dict[int, list[Any]] = {}

    class Noting(Packed):
        def load(self, index: int, memory: Tensor) -> None:
            place, copy = memory.data_ptr(), ("copy", index, len(used), sum(map(len, used.values())))
            before = streams[-1].add(copy)
            assert streams[-1] is not streams[0], "copies have a stream of their own"
            assert before >= set(used.get(place, ())), "what used the place has ended"
            used.setdefault(place, []).append(copy)
            super().load(index, memory)

    stream: Any = BlockStream(Noting([Parcel.of(block, CPU) for block in blocks]), CPU, resident)
    stream.side = Clocked()
    for number, index in enumerate([*calls, *calls]):
        with stream.present(index):
            weight: Any = blocks[index].weight
            place = weight.data_ptr()
            run = ("run", index, number)
            before = streams[0].add(run)
            last_copy = [operation for operation in used[place] if operation[0] == "copy"][-1]
            assert last_copy[1] == index
            assert last_copy in before, "the copy has ended"
            used[place].append(run)
        if number == len(calls):
            stream.leave()
            assert streams[0].done >= stream.side.done
