"""The training loop: what to minimise is a `Task`; this is gradients, optimiser, averages, checkpoints and logs.

    trainer = Trainer(task, Settings(steps=1000, learning_rate=1e-4), Path("out/run"))
    trainer.run()

Everything random in step n is drawn from generators seeded by (seed, n, rank), so a run that is stopped and resumed
goes on bit by bit as if it had not been stopped, on the same machine.

An update whose gradients are no numbers is left out, so weights, averages and checkpoints always are numbers. Whether
they are is asked once an update, which waits for the device; the batch that the CPU draws has waited for it before.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from omniavatar.distributed.world import ALONE, World
from omniavatar.errors import InputError, OutputError
from omniavatar.training.gradients import Batch, Gradients, GraphedGradients
from omniavatar.training.sharded import any_of, average, clip, local, mapped, shared_like, whole

STATE = "state.pt"
LOG = "log.jsonl"
RESULTS = "results"
"""The folder of results on the way, each in one of its own."""
MOST_SKIPPED = 20
"""Updates in a row whose gradients are no numbers, after which training ends."""

Mean = Annotated[float, Field(ge=0, lt=1)]


class NotFinite(InputError):
    """The gradients are no numbers any more."""


class Task(Protocol):
    """What is trained, and on what."""

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The weights to train, in float32, by the names they are saved under."""
        ...

    def batch(self, draw: torch.Generator) -> Batch:
        """The tensors of a micro-batch; `draw` (on the CPU) decides everything random about it, noise included."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of a micro-batch."""
        ...

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write the result for use, with these weights for the parameters. All ranks call it, the first writes."""
        ...


class Settings(BaseModel):
    """How to train; a step is an update of the weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(ge=1, description="updates of the weights")
    accumulate: int = Field(1, ge=1, description="micro-batches whose gradients are added up for an update")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="highest learning rate")
    schedule: Literal["constant", "cosine"] = Field("constant", description="course of the learning rate after warmup")
    warmup: int = Field(0, ge=0, description="updates over which the learning rate rises from 0")
    final_rate: float = Field(0.0, ge=0, le=1, description="what the cosine ends at, as a part of the learning rate")
    weight_decay: float = Field(0.01, ge=0, le=1, description="AdamW's weight decay, on matrices only")
    betas: tuple[Mean, Mean] = Field((0.9, 0.99), description="AdamW's averages")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradients; none: as they are")
    ema: float | None = Field(None, gt=0, lt=1, description="keep an exponential average of the weights, and save that")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of the arithmetic; auto: that of the networks; the trained weights stay fp32"
    )
    cuda_graph: bool = Field(False, description="on CUDA: launch all kernels of a micro-batch at once")
    save_every: int = Field(1000, ge=1, description="updates between checkpoints")
    results_every: int | None = Field(
        None,
        ge=1,
        description="updates between results that can be used, in results/step-NUMBER; none: at the end alone",
    )
    log_every: int = Field(10, ge=1, description="updates between lines of the log")
    max_minutes: float | None = Field(None, gt=0, description="stop after this time, with a checkpoint to go on from")
    seed: int = Field(0, ge=0, description="of everything random")


@dataclass(frozen=True)
class Report:
    """A line of the log: means since the last one, the loss over all ranks; `seconds` are those of an update.

    skipped: how many updates since then were left out, because their gradients were no numbers; the means are of the
    others, NaN if there were none.
    """

    step: int
    loss: float
    gradient: float
    learning_rate: float
    seconds: float
    skipped: int = 0


@dataclass(frozen=True)
class Visit:
    """Something to be done after every n-th update, on every rank; it must leave the weights as they are."""

    every: int
    work: Callable[[Trainer], None]


class Trainer:
    """Trains a task and leaves checkpoints, a log and the result in a folder; goes on from a checkpoint found there.

    world: the ranks that train together, each on micro-batches of its own.
    listeners: called with every report, on the first rank.
    visits: made between two updates.
    origin: what a checkpoint is of, beside its weights; it does not fit a trainer with another one.
    """

    def __init__(
        self,
        task: Task,
        settings: Settings,
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        world: World = ALONE,
        listeners: Sequence[Callable[[Report], None]] = (),
        visits: Sequence[Visit] = (),
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        self.task = task
        self.settings = settings
        self.folder = folder
        self.device = torch.device(device)
        self.world = world
        self.listeners = listeners
        self.visits = visits
        self.origin = dict(origin or {})
        self.parameters = dict(task.parameters())
        if not self.parameters:
            raise InputError("nothing is trained: no weight fits the patterns of what to train")
        self.optimizer = optimizer_for(self.parameters.values(), settings)
        graphed = settings.cuda_graph and self.device.type == "cuda"
        precision = "fp32" if settings.precision == "auto" else settings.precision
        self.gradients = (GraphedGradients if graphed else Gradients)(
            task.loss, list(self.parameters.values()), precision, 1 / settings.accumulate
        )
        self.ema: dict[str, Tensor] = {}
        if settings.ema is not None:
            self.ema = {name: weight.detach().clone() for name, weight in self.parameters.items()}
        self.step = 0
        self.kept = 0
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.is_torn = False

    def run(self, asks_to_stop: Callable[[], bool] | None = None, began: float | None = None) -> bool:
        """Train to the end, or until the time is up; returns whether it has reached the end.

        asks_to_stop: looked at between two updates; if it says so on any rank, all stop as when the time is up.
        began: when the time that is limited began, by `time.monotonic`; default: now.
        """
        deadline = (time.monotonic() if began is None else began) + 60 * (self.settings.max_minutes or math.inf)
        self.resume()
        reports = Averages(self.settings.log_every, self.world)
        try:
            while self.step < self.settings.steps and not self.is_late(deadline) and not self.is_asked(asks_to_stop):
                begin = time.perf_counter()
                loss, gradient, rate = self.update()
                report = reports.add(self.step, loss, gradient, rate, begin, is_skipped=self.skipped_in_a_row > 0)
                if report is not None:
                    self.tell(report)
                if self.step % self.settings.save_every == 0:
                    self.checkpoint()
                if self.is_result_due():
                    self.save_result(self.result_folder())
                due = [visit for visit in self.visits if self.step % visit.every == 0]
                if due and (self.is_late(deadline) or self.is_asked(asks_to_stop)):
                    break
                for visit in due:
                    visit.work(self)
        except BaseException as error:
            # What several ranks have parts of cannot be saved by one that fails, nor what is broken.
            if not isinstance(error, NotFinite | OutputError) and not self.is_sharded and not self.is_torn:
                self.checkpoint()
            raise
        self.checkpoint()
        is_done = self.step >= self.settings.steps
        if is_done:
            self.save_result(self.folder)
        return is_done

    def save_result(self, folder: Path) -> None:
        """Write the weights as they are now for use. All ranks call it. Raises OutputError if it cannot be done."""
        if self.world.is_main:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
        self.task.save(folder, mapped(self.result(), whole))

    def is_result_due(self) -> bool:
        """Whether a result on the way is to be written after this step; that of the last step is the result itself."""
        every = self.settings.results_every
        return every is not None and self.step % every == 0 and self.step < self.settings.steps

    def result_folder(self) -> Path:
        """Where the result on the way of this step is written."""
        return self.folder / RESULTS / f"step-{self.step:06}"

    @property
    def is_sharded(self) -> bool:
        """Whether ranks have parts of weights only."""
        return any(isinstance(weight, DTensor) for weight in self.parameters.values())

    def is_late(self, deadline: float) -> bool:
        """Whether the time is up, on any rank."""
        if math.isinf(deadline):
            return False
        return self.is_anywhere(time.monotonic() >= deadline)

    def is_asked(self, asks_to_stop: Callable[[], bool] | None) -> bool:
        """Whether a stop is asked for, on any rank."""
        return asks_to_stop is not None and self.is_anywhere(asks_to_stop())

    def is_anywhere(self, is_true: bool) -> bool:
        """Whether it is true on any rank. All ranks call this together."""
        return any_of(is_true, self.world, self.device)

    def update(self) -> tuple[Tensor, Tensor, float]:
        """One update of the weights: its loss, the norm of its gradients, and the learning rate.

        If the norm, which all ranks have in common, is no number, the weights stay as they are. Raises NotFinite when
        that is so many times in a row.
        """
        settings = self.settings
        rate = learning_rate(self.step, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=self.device)
        for micro in range(settings.accumulate):
            total += self.gradients(self.task.batch(generator(settings.seed, self.step, self.world.rank, micro)))
        gradients = [weight.grad for weight in self.parameters.values() if weight.grad is not None]
        average(gradients, self.world)
        gradient = clip(gradients, settings.clip)
        is_skipped = not math.isfinite(float(gradient))
        self.is_torn = True
        if not is_skipped:
            self.optimizer.step()
            self._move_average()
        self.gradients.clear()
        self.step += 1
        self.skipped += is_skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if is_skipped else 0
        self.is_torn = False
        if self.skipped_in_a_row == MOST_SKIPPED:
            raise NotFinite(
                f"the gradients of {MOST_SKIPPED} updates in a row are no numbers, the last at step {self.step}; look "
                f"for bad numbers in the samples and the models, or lower the learning rate; {self.kept} steps are kept"
            )
        return total, gradient, rate

    def _move_average(self) -> None:
        """Bring the averaged weights a little nearer to the weights."""
        if self.ema:
            now = [local(weight.detach()) for weight in self.parameters.values()]
            torch._foreach_lerp_([local(mean) for mean in self.ema.values()], now, 1 - (self.settings.ema or 0.0))

    def result(self) -> Mapping[str, Tensor]:
        """The weights that are saved: the average, if there is one."""
        return self.ema or {name: weight.detach() for name, weight in self.parameters.items()}

    def tell(self, report: Report) -> None:
        """Add a line to the log and tell the listeners."""
        if not self.world.is_main:
            return
        values = {name: round(value, 8) if math.isfinite(value) else None for name, value in asdict(report).items()}
        with writing(self.folder / LOG), (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(values) + "\n")
        for listener in self.listeners:
            listener(report)

    def checkpoint(self) -> None:
        """Write everything to go on from; the file before is replaced at once or not at all. All ranks call it.

        Raises OutputError if it cannot be written.
        """
        state = {
            "step": self.step,
            "skipped": self.skipped,
            "origin": self.origin,
            "weights": {name: weight.detach() for name, weight in self.parameters.items()},
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
        }
        state = mapped(state, whole)
        if self.world.is_main:
            path = self.folder / STATE
            with writing(path, f"; {self.kept} steps are kept"):
                self.folder.mkdir(parents=True, exist_ok=True)
                write_state(path, state)
        self.kept = self.step

    def resume(self) -> None:
        """Go on from the checkpoint in the folder, if there is one. All ranks call it.

        Raises InputError if it is of other weights or damaged, or if some ranks only see it.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / STATE
        self.is_anywhere(False)  # the first rank may be writing it still
        is_there = path.exists()
        if not self.is_anywhere(is_there):
            return
        if self.is_anywhere(not is_there):
            raise InputError(f"some of the {self.world.size} ranks do not see {path}; give a folder that all share")
        state = read_state(path, self.device)
        self._check(state, path)
        with torch.no_grad():
            for name, weight in self.parameters.items():
                weight.copy_(shared_like(weight, state["weights"][name]))
        if self.ema:  # without one in the checkpoint it begins with these weights
            means = state["ema"] or state["weights"]
            self.ema = {name: shared_like(self.parameters[name], mean) for name, mean in means.items()}
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        moments = {
            index: {key: shared_like(weights[index], value) for key, value in values.items()}
            for index, values in state["optimizer"]["state"].items()
        }
        # The settings are those of now, such as weight decay; a checkpoint brings its own.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step = self.kept = state["step"]
        self.skipped = state.get("skipped", 0)
        if self.world.is_main:
            forget_after(self.folder / LOG, self.step)

    def _check(self, state: Mapping[str, Any], path: Path) -> None:
        """Refuse a checkpoint of something else than what is trained."""
        remedy = "give another folder, or remove it"
        for name, value in state.get("origin", {}).items():
            if name in self.origin and self.origin[name] != value:
                raise InputError(
                    f"{path} is a checkpoint with another {name}: {value}, and now it is {self.origin[name]}; {remedy}"
                )
        shapes = {name: tuple(weight.shape) for name, weight in state["weights"].items()}
        if shapes != {name: tuple(weight.shape) for name, weight in self.parameters.items()}:
            raise InputError(f"{path} is a checkpoint of other weights; {remedy}")


class Averages:
    """Means of what happens between two lines of the log; values stay on the device until then."""

    def __init__(self, every: int, world: World = ALONE) -> None:
        self.every = every
        self.world = world
        self.clear()

    def clear(self) -> None:
        """Begin a new line."""
        self.losses: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.seconds = 0.0
        self.skipped = 0

    def add(
        self, step: int, loss: Tensor, gradient: Tensor, rate: float, begin: float, *, is_skipped: bool = False
    ) -> Report | None:
        """Add an update that began at `begin`; the report, where one is due. All ranks call it."""
        if is_skipped:
            self.skipped += 1
        else:
            self.losses.append(loss)
            self.gradients.append(gradient)
        if step % self.every:
            self.seconds += time.perf_counter() - begin
            return None
        mean_loss, mean_gradient = (
            torch.stack(values).mean() if values else torch.full_like(loss, math.nan)
            for values in (self.losses, self.gradients)
        )
        average([mean_loss], self.world)
        seconds = (self.seconds + time.perf_counter() - begin) / (len(self.losses) + self.skipped)
        report = Report(step, float(mean_loss), float(mean_gradient), rate, seconds, self.skipped)
        self.clear()
        return report


def generator(*key: int) -> torch.Generator:
    """A generator on the CPU that depends on all numbers of the key."""
    seed = 0
    for number in key:
        seed = (seed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(seed)


def optimizer_for(parameters: Any, settings: Settings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101); vectors such as biases and norms do not decay."""
    parameters = list(parameters)
    groups = [
        {
            "params": [w for w in parameters if (w.ndim > 1) == decays and isinstance(w, DTensor) == is_sharded],
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for decays in (True, False)
        for is_sharded in (True, False)  # torch updates the two in calls of their own
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        fused=parameters[0].device.type == "cuda" or None,
    )


def learning_rate(step: int, settings: Settings) -> float:
    """The learning rate of an update: linear warmup, then constant or a cosine to `final_rate`."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return settings.learning_rate * (settings.final_rate + (1 - settings.final_rate) * cosine)


def forget_after(log: Path, step: int) -> None:
    """Remove the lines of a log that a run which goes on from `step` will write again, and those that are torn."""
    if log.exists():
        lines = [
            line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if is_until(line, step)
        ]
        partial = log.with_name(f"{log.name}.partial")
        with writing(log):
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            os.replace(partial, log)


def is_until(line: str, step: int) -> bool:
    """Whether it is a whole line of a log, of no later step."""
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, TypeError, KeyError):
        return False


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint; it takes the place of the one before when it is on the disk, and leaves no part of itself."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_state(path: Path, device: torch.device) -> dict[str, Any]:
    """A checkpoint. Raises InputError if it is none, or damaged."""
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        if {"step", "weights", "ema", "optimizer"} <= state.keys():
            return state
        reason = "it lacks what a run goes on from"
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # damage shows in many ways
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    raise InputError(f"{path} is damaged ({reason}); put a copy in its place, or remove it to begin anew")


@contextmanager
def writing(path: Path, end: str = "") -> Iterator[None]:
    """Raise OutputError for what goes wrong in the with-block, in which `path` is written."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}{end}") from error
    except RuntimeError as error:  # torch's writer
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise OutputError(f"cannot write {path}: {str(error).partition(chr(10))[0]}{end}") from error
