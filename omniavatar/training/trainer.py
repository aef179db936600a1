"""The training loop: what to minimise is a `Task`; this is gradients, optimiser, averages, checkpoints and logs.

    trainer = Trainer(task, Settings(steps=1000, learning_rate=1e-4), Path("out/run"))
    trainer.run()

Everything random in step n is drawn from generators seeded by (seed, n, rank), so a run that is stopped and resumed
goes on bit by bit as if it had not been stopped, on the same machine.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from omniavatar.distributed.world import ALONE, World
from omniavatar.errors import InputError
from omniavatar.training.gradients import Batch, Gradients, GraphedGradients, Precision
from omniavatar.training.sharded import any_of, average, clip, local, mapped, shared_like, whole

STATE = "state.pt"
LOG = "log.jsonl"


class NotFinite(InputError):
    """The loss is no number any more."""


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
        """Write the result for use, with these weights in place of the parameters."""
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
    betas: tuple[float, float] = Field((0.9, 0.99), description="AdamW's averages")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradients; none: as they are")
    ema: float | None = Field(None, gt=0, lt=1, description="keep an exponential average of the weights, and save that")
    precision: Precision = Field("fp32", description="of the arithmetic; the trained weights stay fp32")
    cuda_graph: bool = Field(False, description="on CUDA: launch all kernels of a micro-batch at once")
    save_every: int = Field(1000, ge=1, description="updates between checkpoints")
    log_every: int = Field(10, ge=1, description="updates between lines of the log")
    max_minutes: float | None = Field(None, gt=0, description="stop after this time, with a checkpoint to go on from")
    seed: int = Field(0, ge=0, description="of everything random")


@dataclass(frozen=True)
class Report:
    """A line of the log: means since the last one; `seconds` are those of an update."""

    step: int
    loss: float
    gradient: float
    learning_rate: float
    seconds: float


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
    ) -> None:
        self.task = task
        self.settings = settings
        self.folder = folder
        self.device = torch.device(device)
        self.world = world
        self.listeners = listeners
        self.visits = visits
        self.parameters = dict(task.parameters())
        if not self.parameters:
            raise InputError("nothing is trained: no weight fits the patterns of what to train")
        self.optimizer = optimizer_for(self.parameters.values(), settings)
        graphed = settings.cuda_graph and self.device.type == "cuda"
        self.gradients = (GraphedGradients if graphed else Gradients)(
            task.loss, list(self.parameters.values()), settings.precision, 1 / settings.accumulate
        )
        self.ema: dict[str, Tensor] = {}
        if settings.ema is not None:
            self.ema = {name: weight.detach().clone() for name, weight in self.parameters.items()}
        self.step = 0
        self.is_torn = False

    def run(self) -> bool:
        """Train to the end or until the time is up; returns whether it has reached the end."""
        self.resume()
        deadline = time.monotonic() + 60 * (self.settings.max_minutes or math.inf)
        reports = Averages(self.settings.log_every)
        try:
            while self.step < self.settings.steps and not self.is_late(deadline):
                begin = time.perf_counter()
                loss, gradient, rate = self.update()
                report = reports.add(self.step, loss, gradient, rate, begin)
                if report is not None:
                    self.tell(report)
                if self.step % self.settings.save_every == 0:
                    self.checkpoint()
                for visit in self.visits:
                    if self.step % visit.every == 0:
                        visit.work(self)
        except BaseException as error:
            # What several ranks have parts of cannot be saved by one that fails, nor what is broken.
            if not isinstance(error, NotFinite) and not self.is_sharded and not self.is_torn:
                self.checkpoint()
            raise
        self.checkpoint()
        is_done = self.step == self.settings.steps
        if is_done:
            result = mapped(self.result(), whole)
            if self.world.is_main:
                self.task.save(self.folder, result)
        return is_done

    @property
    def is_sharded(self) -> bool:
        """Whether ranks have parts of weights only."""
        return any(isinstance(weight, DTensor) for weight in self.parameters.values())

    def is_late(self, deadline: float) -> bool:
        """Whether the time is up, on any rank."""
        if math.isinf(deadline):
            return False
        return self.is_anywhere(time.monotonic() >= deadline)

    def is_anywhere(self, is_true: bool) -> bool:
        """Whether it is true on any rank. All ranks call this together."""
        return any_of(is_true, self.world, self.device)

    def update(self) -> tuple[Tensor, Tensor, float]:
        """One update of the weights: its loss, the norm of its gradients, and the learning rate."""
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
        self.is_torn = True
        self.optimizer.step()
        self.gradients.clear()
        if self.ema:
            decay = settings.ema or 0.0
            now = [local(weight.detach()) for weight in self.parameters.values()]
            torch._foreach_lerp_([local(mean) for mean in self.ema.values()], now, 1 - decay)
        self.step += 1
        self.is_torn = False
        return total, gradient, rate

    def result(self) -> Mapping[str, Tensor]:
        """The weights that are saved: the average, if there is one."""
        return self.ema or {name: weight.detach() for name, weight in self.parameters.items()}

    def tell(self, report: Report) -> None:
        """Add a line to the log and tell the listeners."""
        if not self.world.is_main:
            return
        if not math.isfinite(report.loss):
            raise NotFinite(
                f"the loss is {report.loss} at step {report.step}; lower the learning rate or clip the gradients"
            )
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps({name: round(value, 8) for name, value in asdict(report).items()}) + "\n")
        for listener in self.listeners:
            listener(report)

    def checkpoint(self) -> None:
        """Write everything to go on from; the file before is replaced at once or not at all. All ranks call it."""
        state = {
            "step": self.step,
            "weights": {name: weight.detach() for name, weight in self.parameters.items()},
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
        }
        state = mapped(state, whole)
        if not self.world.is_main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{STATE}.partial"
        torch.save(state, partial)
        os.replace(partial, self.folder / STATE)

    def resume(self) -> None:
        """Go on from the checkpoint in the folder, if there is one. All ranks call it.

        Raises InputError if it is of other weights, or if some ranks only see it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / STATE
        self.is_anywhere(False)  # the first rank may be writing it still
        is_there = path.exists()
        if not self.is_anywhere(is_there):
            return
        if self.is_anywhere(not is_there):
            raise InputError(f"some of the {self.world.size} ranks do not see {path}; give a folder that all share")
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        shapes = {name: tuple(weight.shape) for name, weight in state["weights"].items()}
        if shapes != {name: tuple(weight.shape) for name, weight in self.parameters.items()}:
            raise InputError(f"{path} is a checkpoint of other weights; give another folder, or remove it")
        with torch.no_grad():
            for name, weight in self.parameters.items():
                weight.copy_(shared_like(weight, state["weights"][name]))
        if self.ema and state["ema"]:
            self.ema = {name: shared_like(self.parameters[name], mean) for name, mean in state["ema"].items()}
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        optimizer = state["optimizer"]
        for index, values in optimizer["state"].items():
            optimizer["state"][index] = {key: shared_like(weights[index], value) for key, value in values.items()}
        self.optimizer.load_state_dict(optimizer)
        self.step = state["step"]
        if self.world.is_main:
            forget_after(self.folder / LOG, self.step)


class Averages:
    """Means of what happens between two lines of the log; values stay on the device until then."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.losses: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.seconds = 0.0

    def add(self, step: int, loss: Tensor, gradient: Tensor, rate: float, begin: float) -> Report | None:
        """Add an update that began at `begin`; the report, where one is due."""
        self.losses.append(loss)
        self.gradients.append(gradient)
        report = None
        if step % self.every == 0:
            mean_loss, mean_gradient = (float(torch.stack(values).mean()) for values in (self.losses, self.gradients))
            seconds = (self.seconds + time.perf_counter() - begin) / len(self.losses)
            report = Report(step, mean_loss, mean_gradient, rate, seconds)
            self.losses, self.gradients, self.seconds = [], [], 0.0
        else:
            self.seconds += time.perf_counter() - begin
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
    """Remove the lines of a log that a run which goes on from `step` will write again."""
    if log.exists():
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= step]
        log.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
