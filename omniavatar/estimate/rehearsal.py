"""A run rehearsed on its own device: every hook of every unit runs, blocks of large networks are measured and skipped.

    engine = Engine(plan, models, device="cuda", dtype=torch.bfloat16)   # nothing is loaded
    estimate = Rehearsal(engine).estimate(request)

The rehearsal is the run itself, with the networks of `networks.py`: windows, steps, branches, calls and what caches
skip are those of the run, whatever units the plan has. What stands outside the blocks is computed and timed as it is; a
block is timed in its first calls and takes that time without computing in all others. Of windows that are alike one is
rehearsed. Memory is what the device's allocator says, plus the weights of the blocks that are one in the rehearsal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from omniavatar.engine.engine import Engine
from omniavatar.engine.out_of_memory import host_peak
from omniavatar.engine.placing import placing_units
from omniavatar.engine.plan import Plan
from omniavatar.engine.rehearsing import NotRehearsed, ReadsDecisiveWeights
from omniavatar.engine.run import Run
from omniavatar.engine.scopes import Forward, Request, Window
from omniavatar.estimate.networks import Alike, RehearsalModels, signature, stand_in
from omniavatar.estimate.report import Estimate, Network, Phase
from omniavatar.estimate.timing import Calls, Clock, Lap, Seconds, time_of, total
from omniavatar.hookspecs import hookimpl

FEWEST_TIMES, MOST_TIMES = 2, 6
REPEAT_SECONDS = 6.0
"""How often a run is rehearsed, and how often while its times are not stable; as far as repeating takes no longer than
this in all, nor than the run."""
COPIED = 2**27
"""Bytes of a copy that is timed."""
LOAD, PREPARE, DENOISE, DECODE = "load", "prepare", "denoise", "decode"
PHASES = (PREPARE, DENOISE, DECODE)


class Stand(nn.Module):
    """Takes the place of blocks that are alike: computes until its time is known, then only takes that time.

    Where it does not compute it returns its input, if the block's result has the same form, or else an old result.
    copying: seconds that the weights take to come, while the block before computes.
    """

    def __init__(self, block: nn.Module, clock: Clock, memory: Memory) -> None:
        super().__init__()
        self.block = block
        self.clock = clock
        self.memory = memory
        self.copying = 0.0
        self.calls: dict[Any, Calls] = {}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        calls = self.calls.setdefault((signature(args), signature(kwargs)), Calls(self.copying))
        if not self.clock.measures(calls):
            return args[0] if calls.result is None else calls.result
        self.memory.mark()
        with self.clock.measuring(calls):
            result = self.block(*args, **kwargs)
        self.memory.mark()
        if not (args and _same_form(result, args[0])):
            calls.result = result
        return result

    @property
    def seconds(self) -> float:
        """Of the longest kind of call, 0 if there was none."""
        return max((calls.time.typical for calls in self.calls.values()), default=0.0)


def _same_form(one: Any, other: Any) -> bool:
    return isinstance(one, Tensor) and isinstance(other, Tensor) and signature(one) == signature(other)


class Memory:
    """The most memory that the run would hold on its device, by phase: what the allocator says and what is missing.

    Networks may come and go, so what is missing is asked again at every mark.
    """

    def __init__(self, device: torch.device, networks: Mapping[str, Alike]) -> None:
        self.device = device
        self.networks = networks
        self.phase = LOAD
        self.peaks: dict[str, int] = {}
        self._missing = 0

    def mark(self) -> None:
        """Take what was held since the last mark."""
        if self.device.type != "cuda":
            return
        missing = self.missing(self.device)
        peak = torch.cuda.max_memory_allocated(self.device) + max(missing, self._missing)
        self.peaks[self.phase] = max(peak, self.peaks.get(self.phase, 0))
        self._missing = missing
        torch.cuda.reset_peak_memory_stats(self.device)

    def missing(self, device: torch.device) -> int:
        """Bytes that the run holds on a device beyond the rehearsal; negative if it holds less."""
        here = [network for network in self.networks.values() if network.device_type() == device.type]
        return sum(network.on_device * network.is_here - network.held for network in here)

    def missing_in_host(self) -> int:
        """Bytes of host memory that the run holds beyond the rehearsal."""
        waiting = sum(network.in_host for network in self.networks.values())
        return waiting + self.missing(torch.device("cpu"))


@dataclass(frozen=True)
class WindowSeen:
    """A window: its steps, transformer calls, those whose blocks are skipped, tokens of the largest call, and laps by
    phase."""

    steps: int
    calls: int
    skipped: int
    tokens: int
    laps: Mapping[str, Lap]


@dataclass(frozen=True)
class Rehearsed:
    """One rehearsal: length, rate and size of the video, its windows, and laps of the whole run by phase.

    took: seconds that it took itself, without measured calls.
    """

    frames: int
    fps: int
    size: tuple[int, int]
    windows: Sequence[WindowSeen]
    laps: Mapping[str, Lap]
    took: float = 0.0


def is_worth_repeating(times: Seconds, took: Sequence[float]) -> bool:
    """Whether to rehearse once more. took: seconds of the rehearsals so far."""
    wanted = FEWEST_TIMES if times.is_stable else MOST_TIMES
    return len(took) < wanted and sum(took[1:]) + took[-1] <= min(REPEAT_SECONDS, times.typical)


class Rehearsal:
    """Rehearses what an engine would do; the engine itself loads nothing.

    observers: further observers of the rehearsal, such as one that shows how far it is.
    """

    def __init__(self, engine: Engine, observers: Iterable[Any] = ()) -> None:
        self.wanted = engine.plan
        units = [unit for unit in engine.plan.units if not isinstance(unit, NotRehearsed)]
        decisive: dict[str, list[str]] = {}
        for unit in (unit for unit in units if isinstance(unit, ReadsDecisiveWeights)):
            for role, patterns in unit.decisive.items():
                for each in engine.plan.companions(role):
                    decisive.setdefault(each, []).extend(patterns)
        models: Any = engine.models
        self.models = RehearsalModels(models, decisive)
        self.clock = Clock(engine.device)
        self.memory = Memory(engine.device, self.models.networks)
        self.count = Count()
        self.observers = tuple(observers)
        self.engine = Engine(
            Plan(tuple(units)), self.models, device=engine.device, dtype=engine.dtype, observers=[self.count]
        )
        self._stands: dict[str, list[Stand]] = {}

    @torch.inference_mode()
    def estimate(self, request: Request) -> Estimate:
        """What a request would cost. A further one uses the times that are known by then.

        The whole is rehearsed a few times if that is quick, since what stands outside the blocks is timed once in each.
        """
        self.wanted.parse_inputs(request.inputs)
        if not self.models.networks:
            self._set_up()
            if self.warms_up:
                self._rehearse(request, self.observers)
        rehearsed: list[Rehearsed] = []
        while True:
            rehearsed.append(self._rehearse(request, () if rehearsed else self.observers))
            estimate = self._report(rehearsed)
            if not is_worth_repeating(estimate.seconds, [each.took for each in rehearsed]):
                return estimate

    @property
    def warms_up(self) -> bool:
        """Whether the first time does not count: on a GPU, kernels are compiled or chosen when they are first used."""
        return self.engine.device.type == "cuda"

    def _rehearse(self, request: Request, observers: Iterable[Any] = ()) -> Rehearsed:
        inputs = {name: value for name, value in request.inputs.items() if name in self.engine.plan.input_fields}
        with self.engine.start(replace(request, inputs=inputs), observers=observers) as run:
            begin = self.clock.outside()
            rehearsed = self._run(run)
            return replace(rehearsed, took=self.clock.outside() - begin)

    def _set_up(self) -> None:
        """Make the networks, let units change them, and put the stand-ins in their places."""
        engine = self.engine
        for role in engine.plan.required_roles:
            engine.model(role)
            self._keep(role, self.models.networks[role])
        self.memory.mark()
        engine.set_up()
        self.memory.mark()
        for role, network in self.models.networks.items():
            self._stand_in(role, network)

    def _keep(self, role: str, network: Alike) -> None:
        """Let a network come and go, if a unit of the run keeps its blocks elsewhere."""
        said = (unit.keeps(role, network.blocks, self.wanted) for unit in placing_units(self.wanted.units))
        if kept := [each for each in said if each is not None]:
            network.kept = min(kept, key=lambda each: each.on_device)
            network.is_here = False
            network.network.to(self.engine.device)  # in a rehearsal it is only said to come and go
            copying = self._copying
            network.arrive = lambda size: self.clock.skip(size * copying)
            self.engine.residency.visitors[role] = network

    @cached_property
    def _copying(self) -> float:
        """Seconds in which a byte comes from host memory to the device."""
        return copy_seconds(self.engine.device)

    def _stand_in(self, role: str, network: Alike) -> None:
        stands: list[Stand] = []

        def stand(block: nn.Module) -> nn.Module:
            stands.append(Stand(block, self.clock, self.memory))
            return stands[-1]

        stand_in(network, stand)
        self._stands[role] = stands
        if network.kept is not None and network.blocks:
            share = network.kept.copied / network.blocks
            for each in stands:
                each.copying = share * network.largest_block * self._copying

    def _run(self, run: Run) -> Rehearsed:
        """The run itself, but of windows that are alike the first only."""
        with self._phase(PREPARE) as before:
            run.begin()
        job = run.job
        likenesses = [(span.frames, span.given, min(index, 1)) for index, span in enumerate(job.spans)]
        first = {likeness: index for index, likeness in reversed(list(enumerate(likenesses)))}
        windows = run.windows(sorted(first.values()))
        seen = {likenesses[index]: self._window(run, windows) for index in sorted(first.values())}
        next(windows, None)  # closes the last one
        with self._phase(DECODE) as after:
            run.finish()
        all_seen = [seen[likeness] for likeness in likenesses]
        laps = {name: sum((window.laps[name] for window in all_seen), Lap()) for name in PHASES}
        laps[PREPARE] += before[0]
        laps[DECODE] += after[0]
        return Rehearsed(job.length, job.fps, job.size, all_seen, laps)

    def _window(self, run: Run, windows: Iterator[Window]) -> WindowSeen:
        self.count.begin()
        with self._phase(PREPARE) as prepare:
            window = next(windows)
        with self._phase(DENOISE) as denoise:
            for _ in run.denoise(window):
                pass
        with self._phase(DECODE) as decode:
            for _ in run.decode(window):
                pass
            run.loop.close_window(window)
        laps = {PREPARE: prepare[0], DENOISE: denoise[0], DECODE: decode[0]}
        count = self.count
        return WindowSeen(window.step_count, count.calls, count.skipped, count.tokens, laps)

    @contextmanager
    def _phase(self, name: str) -> Iterator[list[Lap]]:
        """A phase of the run; the list gets what has passed."""
        self.memory.mark()
        self.memory.phase = name
        laps: list[Lap] = []
        self.clock.lap()
        yield laps
        laps.append(self.clock.lap())
        self.memory.mark()

    def _report(self, rehearsed: Sequence[Rehearsed]) -> Estimate:
        last = rehearsed[-1]
        height, width = last.size
        blocks = total(lap.inside for lap in last.laps.values())
        peaks = self.memory.peaks
        return Estimate(
            units=[repr(unit) for unit in self.wanted.units],
            left_out=[unit.name for unit in self.wanted.units if isinstance(unit, NotRehearsed)],
            device=str(self.engine.device),
            dtype=str(self.engine.dtype).removeprefix("torch."),
            frames=last.frames,
            fps=last.fps,
            height=height,
            width=width,
            windows=len(last.windows),
            steps=sum(window.steps for window in last.windows),
            transformer_calls=sum(window.calls for window in last.windows),
            transformer_calls_skipped=sum(window.skipped for window in last.windows),
            tokens=max((window.tokens for window in last.windows), default=0),
            branches=sorted(self.count.branches),
            networks=[self._network(role) for role in self.models.networks],
            phases=[
                Phase(name, time_of([each.laps[name] for each in rehearsed], blocks), peaks.get(name))
                for name in PHASES
            ],
            peak_device=max(peaks.values(), default=None),
            total_device=total_memory(self.engine.device),
            peak_host=peak_host(self.memory.missing_in_host()),
        )

    def _network(self, role: str) -> Network:
        network = self.models.networks[role]
        weight = next(network.network.parameters(), None)
        return Network(
            role=role,
            parameters=network.parameters,
            dtype=str(weight.dtype).removeprefix("torch.") if weight is not None else "",
            size=network.size,
            on_device=network.on_device,
            in_host=network.in_host,
            blocks=network.blocks,
            block_seconds=max((stand.seconds for stand in self._stands.get(role, ())), default=0.0) or None,
        )


class Count:
    """Observes the rehearsal: the transformer calls of a window and those whose blocks were skipped, as `omni run`
    counts them; the tokens of the largest call; the names of all guidance branches."""

    def __init__(self) -> None:
        self.branches: set[str] = set()
        self.begin()

    def begin(self) -> None:
        """Another window."""
        self.calls = self.skipped = self.tokens = 0

    @hookimpl
    def embed(self, forward: Forward) -> None:
        self.calls += 1
        self.skipped += 1
        self.branches.update(branch.name for branch in forward.branches)

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        if index == 0:
            self.skipped -= 1
            self.tokens = max(self.tokens, forward.x.shape[0] * forward.x.shape[1])


def copy_seconds(device: torch.device) -> float:
    """Seconds in which a byte comes from page-locked memory to a GPU; 0 elsewhere."""
    if device.type != "cuda":
        return 0.0
    clock = Clock(device)
    source = torch.empty(COPIED, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(COPIED, dtype=torch.uint8, device=device)
    seconds = []
    for _ in range(4):
        begin = clock.wait()
        target.copy_(source, non_blocking=True)
        seconds.append(clock.wait() - begin)
    return min(seconds) / COPIED


def total_memory(device: torch.device) -> int | None:
    """Bytes of the device's memory."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def peak_host(missing: int) -> int | None:
    """The most bytes that this process has held, and those that are missing; None where that cannot be asked."""
    peak = host_peak()
    return None if peak is None else peak + missing
