"""What to tell when memory runs out: what was being done, what was asked for and is free, what would take less.

    except BaseException as error:
        shortage = Shortage.of(error)          # None if memory is not what is short
        print(shortage.explain(catalog.units))

Nothing is noted while a run goes on: where it was is read from the frames that the error came through.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from traceback import walk_tb
from types import FrameType
from typing import Any

import torch

from omniavatar.engine.engine import Engine
from omniavatar.engine.hooks import Hooks
from omniavatar.engine.loop import Loop
from omniavatar.engine.plan import check_conflicts, make_unit
from omniavatar.engine.saving import eased_by, smaller
from omniavatar.engine.scopes import Forward, Job, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import PlanError

GIB = 2**30
UNITS_OF_SIZE = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": GIB, "TiB": 2**40}
SIGNS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "unable to mmap",
    "bad_alloc",
    "alloc_failed",
    "allocation_failed",
)
"""How torch, CUDA and its libraries, and the operating system say in errors of other types that memory is short."""
ASKED = re.compile(r"(?:[Tt]ried to allocate|[Uu]nable to (?:mmap|allocate)) ([\d.]+) (bytes|[KMGT]iB)")
CAPACITY = re.compile(r"total capacity of ([\d.]+) ([KMGT]iB) of which ([\d.]+) (bytes|[KMGT]iB) is free")
WORK_OF_HOOK = {
    "setup": "load",
    "begin_job": "prepare",
    "plan_windows": "prepare",
    "noise": "prepare",
    "plan_steps": "prepare",
    "begin_window": "prepare",
    "decode_latents": "decode",
    "postprocess_frames": "decode",
    "output_frames": "decode",
    "end_window": "decode",
    "end_job": "decode",
}
TRAINING = "omniavatar.training"
TRAINER = f"{TRAINING}.trainer"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the machine has run out of memory, also where another error hides that."""
    return any(_says_so(each) for each in _chain(error))


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was raised from."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        cause = cause.__cause__
    return iter(seen)


@dataclass
class Place:
    """What a run was at: read from frames, outermost first, so that inner ones say more."""

    role: str | None = None
    hook: str | None = None
    unit: PipelineUnit | None = None
    engine: Engine | None = None
    job: Job | None = None
    window: Window | None = None
    step: Step | None = None
    block: int | None = None
    trained: int | None = None
    is_in_training: bool = False
    is_backward: bool = False

    @classmethod
    def of(cls, error: BaseException) -> Place:
        """Where an error was raised."""
        place = cls()
        for frame, _ in walk_tb(error.__traceback__):
            place._look(frame)
        return place

    def _look(self, frame: FrameType) -> None:
        code, values = frame.f_code, frame.f_locals
        owner = values.get("self")
        if isinstance(owner, Engine):
            self.engine = owner
            self.role = values.get("role") if code.co_name == "model" else self.role
        elif isinstance(owner, Loop) and code.co_name == "decode":
            self.hook = "decode_latents"  # a generator, so no frame of the hook's call is left
        elif isinstance(owner, Hooks) and not code.co_name.startswith("_"):
            self.hook = code.co_name
        elif isinstance(owner, PipelineUnit):
            self.unit = owner
            if isinstance(values.get("index"), int) and "forward" in values:
                self.block = values["index"]
        module = str(frame.f_globals.get("__name__"))
        self.is_in_training |= module.startswith(f"{TRAINING}.")
        if module == TRAINER:
            self.trained = getattr(owner, "step", self.trained)
        self.is_backward |= self.trained is not None and code.co_name == "backward"
        for value in list(values.values()):
            self._meet(value)

    def _meet(self, value: Any) -> None:
        """Take over a scope, with those around it."""
        if isinstance(value, Forward):
            value = value.step
        if isinstance(value, Step):
            self.step, value = value, value.window
        if isinstance(value, Window):
            if self.step is not None and self.step.window is not value:
                self.step = None  # of the window before, which an outer frame still names
            self.window, value = value, value.job
        if isinstance(value, Job):
            self.job, self.engine = value, value.engine

    @property
    def work(self) -> str:
        """The kind of work, of `saving.WORKS`."""
        if self.trained is not None and self.job is None:
            return "train"
        if self.role is not None:
            return "load"
        if self.trained is not None and self.step is not None and isinstance(self.step.timestep, torch.Tensor):
            return "train"
        return WORK_OF_HOOK.get(self.hook or "", "denoise")

    def __str__(self) -> str:
        """In words, such as "while denoising window 2 of 5, step 3 of 25, block 12"."""
        if self.role is not None:
            return f"while loading the network '{self.role}'"
        if self.work == "train":
            back = ", on the way back" if self.is_backward else ""
            return f"while training, step {(self.trained or 0) + 1}{self._of_block()}{back}"
        name = f" (unit {self.unit.name})" if self.unit is not None else ""
        if self.hook == "setup":
            return f"while setting up{name}"
        if self.window is None:
            return f"while preparing the video{name}" if self.job is not None else ""
        return f"while {self._in_window(self.window)}{'' if self.block is not None else name}"

    def _in_window(self, window: Window) -> str:
        number = f"window {window.index + 1} of {max(1, len(window.job.spans))}"
        doing = {"decode": "decoding", "prepare": "preparing"}.get(self.work)
        if doing:
            return f"{doing} {number}"
        if self.step is None:
            return f"denoising {number}"
        return f"denoising {number}, step {self.step.index + 1} of {window.step_count}{self._of_block()}"

    def _of_block(self) -> str:
        return "" if self.block is None else f", block {self.block + 1}"


@dataclass(frozen=True)
class Shortage:
    """Memory that was asked for and was not there; amounts in bytes, None where they are not known."""

    place: Place
    is_host: bool
    asked: int | None = None
    free: int | None = None
    total: int | None = None
    reason: str = field(default="", repr=False)

    @classmethod
    def of(cls, error: BaseException) -> Shortage | None:
        """What an error says of memory, or None if it is about something else."""
        found = next((each for each in _chain(error) if _says_so(each)), None)
        if found is None:
            return None
        text = str(found)
        place = Place.of(error)
        is_host = not isinstance(found, torch.OutOfMemoryError) and not any(
            sign in text.lower() for sign in ("cuda", "cublas", "cudnn", "nccl", "hip ")
        )
        match = ASKED.search(text)
        asked = _bytes(*match.groups()) if match else None
        free, total = host_memory() if is_host else device_memory(text, place)
        return cls(place, is_host, asked, free, total, text.partition("\n")[0])

    def explain(self, known: Mapping[str, type[PipelineUnit]] | None = None) -> str:
        """One line. `known` are the units that can be added to a plan."""
        where = str(self.place)
        head = f"out of memory {where}" if where else "out of memory"
        facts = []
        if self.asked is not None:
            facts.append(f"{amount(self.asked)} more asked for")
        if self.free is not None and self.total is not None:
            owner = "the machine's" if self.is_host else "the GPU's"
            facts.append(f"{amount(self.free)} of {owner} {amount(self.total)} free")
        if self.asked is None and self.reason:
            facts.append(self.reason)
        told = ", ".join(facts) or "the system gave no more"
        return f"{head}: {told}; try {either(self.remedies(known or {}))}"

    def remedies(self, known: Mapping[str, type[PipelineUnit]]) -> list[str]:
        """What takes less memory for this work, as terms of a plan expression or in words."""
        place = self.place
        if place.is_in_training:
            return self._remedies_of_training(known)
        units = list(place.engine.plan.units) if place.engine is not None else []
        works = {"host"} if self.is_host and not _runs_on_host(place) else {place.work}
        added = [
            f"--units with +{name}"
            for name, unit in known.items()
            if works & set(eased_by(unit)) and not self._is_barred(unit, units)
        ]
        changed = [
            f"{unit.name}({key}={str(value).lower()})"
            for unit in units
            for key, value in smaller(unit, place.work, place.window).items()
        ]
        words = {"load": ["a smaller model"]}.get(place.work, ["a smaller --size"])
        return [*changed, *added, *words]

    def _remedies_of_training(self, known: Mapping[str, type[PipelineUnit]]) -> list[str]:
        """The same in fields of a training configuration."""
        engine, work = self.place.engine, self.place.work
        units = list(engine.plan.units) if engine is not None else []
        is_spread = self.is_host or any(unit.name == "fsdp" for unit in units)
        ranks = [] if is_spread else ["several GPUs, units with +fsdp"]
        if work == "load":
            return [*ranks, "a smaller model"]
        if work != "train":
            return ["a smaller samples.frames", "smaller data.limits.sizes"]
        added = [
            f"units with +{name}"
            for name, unit in known.items()
            if work in eased_by(unit) and not self._is_barred(unit, units)
        ]
        return [*added, "a smaller samples.max_tokens, samples.frames or batch", *ranks]

    def _is_barred(self, unit: type[PipelineUnit], units: Iterable[PipelineUnit]) -> bool:
        """Whether a unit is in the plan already, or cannot be."""
        if any(other.name == unit.name for other in units):
            return True
        try:
            check_conflicts([*units, make_unit(unit, {})])
        except PlanError:
            return True
        return _runs_on_host(self.place) and "host" not in eased_by(unit) and self.place.work != "train"


def _runs_on_host(place: Place) -> bool:
    return place.engine is not None and place.engine.device.type == "cpu"


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * UNITS_OF_SIZE[unit])


def device_memory(text: str, place: Place) -> tuple[int | None, int | None]:
    """Free and total bytes of the GPU: what the error says, or else what the driver does."""
    match = CAPACITY.search(text)
    if match:
        total, unit, free, free_unit = match.groups()
        return _bytes(free, free_unit), _bytes(total, unit)
    if torch.cuda.is_available():
        with suppress(RuntimeError):
            free_now, total_now = torch.cuda.mem_get_info(place.engine.device if place.engine else None)
            return free_now, total_now
    return None, None


def host_memory() -> tuple[int | None, int | None]:
    """Available and total bytes of this machine."""
    if sys.platform == "linux":
        with suppress(OSError, ValueError, KeyError), open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
            available, total = (int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
            return available, total
    with suppress(OSError, ValueError, AttributeError):
        return None, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None, None


def host_peak() -> int | None:
    """The most bytes that this process has held; None where that cannot be asked."""
    if sys.platform == "win32":
        return None
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def amount(size: float) -> str:
    """2684354560 -> "2.50 GiB"."""
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1000 or unit == "GiB":
            return f"{size:.2f} {unit}" if size < 100 else f"{size:.0f} {unit}"
    raise AssertionError


def either(choices: list[str]) -> str:
    """["a", "b", "c"] -> "a, b or c"."""
    return choices[-1] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
