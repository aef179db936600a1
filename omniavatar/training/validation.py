"""Validation videos: what the weights of a run make now and then, by the run's own plan.

    validation = run.validation(task.engine)
    Trainer(task, ..., visits=[Visit(every, validation)]).run()

The networks in training are lent for the time of it, with the averaged weights in them if there are some. All others
are loaded for it and let go afterwards.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from omniavatar.engine.delegation import DelegatingModels
from omniavatar.engine.engine import Adapter, Engine, Models
from omniavatar.engine.out_of_memory import Place, is_out_of_memory
from omniavatar.engine.plan import Plan, current_names, make_unit
from omniavatar.engine.ranks import working
from omniavatar.engine.scopes import Request
from omniavatar.engine.settings import Layer, Strength
from omniavatar.errors import InputError, OmniError, PlanError, nearest
from omniavatar.training.split import hooks
from omniavatar.training.trainer import Trainer

log = logging.getLogger(__name__)

FOLDER = "validation"


class ValidationSettings(BaseModel):
    """Videos that are made in the course of training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(500, ge=1, description="updates between them")
    videos: tuple[dict[str, Any], ...] = Field(
        min_length=1, description="the inputs of each, as of omni run, such as image, audio and prompt"
    )
    seconds: float | None = Field(None, gt=0, description="longest length; none: that of the sound")
    settings: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="settings by unit that differ from those of the run"
    )


def plan_of_videos(plan: Plan, changes: Mapping[str, Mapping[str, Any]]) -> Plan:
    """The plan with some settings changed. Raises PlanError for a unit that it does not have."""
    layer = Layer(Strength.FILE, "validation.settings", changes)
    changes = current_names(layer, {unit.name: type(unit) for unit in plan.units}, plan.names)
    for name in changes:
        if name not in plan:
            raise PlanError(f"validation.settings: the plan has no unit '{name}'{nearest(name, plan.names)}")
    return Plan(
        tuple(
            make_unit(type(unit), {**unit.settings.model_dump(exclude_unset=True), **changes.get(unit.name, {})})
            for unit in plan.units
        )
    )


def check_requests(plan: Plan, requests: Sequence[Request]) -> None:
    """Raise InputError if one of the videos cannot be made of its inputs, and PlanError if the plan writes none."""
    if "output" not in plan.input_fields:
        raise PlanError("validation videos need a unit that writes them; add write-video")
    for number, request in enumerate(requests, start=1):
        place = f"validation video {number}"
        try:
            plan.parse_inputs(request.inputs)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
        if request.seconds is None and request.inputs.get("audio") is None and "audio" in plan.input_fields:
            raise InputError(f"{place} has no sound, so its length is unknown; give validation.seconds")


class Validation:
    """Makes the videos of `requests`; a visit of `omniavatar.training.trainer.Trainer`.

    lenders: engines of the training, the networks of which are set up already; the first one's are trained.
    models: where others come from. observers: of the engine that makes the videos.
    Every rank makes all videos, so that weights which are sharded can be gathered; the first rank writes them.
    """

    def __init__(
        self,
        plan: Plan,
        models: Models,
        requests: Sequence[Request],
        lenders: Sequence[Engine],
        observers: Sequence[Any] = (),
    ) -> None:
        self.models, self.requests, self.lenders, self.observers = models, requests, lenders, observers
        is_main = lenders[0].world.is_main
        units = working(plan.units, is_main=is_main)
        # What only sets networks up has done so with those that are lent, and the others do without.
        self.plan = Plan(tuple(unit for unit in units if hooks(unit) != {"setup"}))

    def __call__(self, trainer: Trainer) -> None:
        """Make the videos; one that cannot be made does not end the training.

        Except where weights are sharded: a rank that fails has left the others in the middle of an exchange. Such a run
        goes on from the checkpoint that is made first.
        """
        if trainer.is_sharded and trainer.kept != trainer.step:
            trainer.checkpoint()
        try:
            self._make(trainer)
        except Exception as error:
            self._pass_over(trainer, trainer.folder / FOLDER, error)
        gc.collect()
        if self.lenders[0].device.type == "cuda":
            torch.cuda.empty_cache()

    def _make(self, trainer: Trainer) -> None:
        lender = self.lenders[0]
        devices = [lender.device] if lender.device.type == "cuda" else []
        with torch.random.fork_rng(devices), self._borrowed(trainer):
            engine = Engine(
                self.plan,
                Lent(self.models, self.lenders),
                device=lender.device,
                dtype=lender.dtype,
                observers=self.observers,
            )
            engine.attention = lender.attention
            for number, request in enumerate(self.requests, start=1):
                path = trainer.folder / FOLDER / f"step-{trainer.step:06}-{number}.mp4"
                try:
                    engine.generate(self._to(path, request))
                except Exception as error:
                    self._pass_over(trainer, path, error)
                    if devices:
                        torch.cuda.empty_cache()

    def _pass_over(self, trainer: Trainer, path: Path, error: Exception) -> None:
        """Tell in one line why there is no video. Raises the error if other ranks wait for this one."""
        if trainer.is_sharded and not isinstance(error, OmniError):
            raise error
        log.warning("%s cannot be made: %s", path, reason(error))
        log.debug("", exc_info=error)

    def _to(self, path: Path, request: Request) -> Request:
        """The request with its output, if this rank writes it."""
        if "output" not in self.plan.input_fields:
            return request
        return replace(request, inputs={**request.inputs, "output": path})

    @contextmanager
    def _borrowed(self, trainer: Trainer) -> Iterator[None]:
        """The trained networks in the state in which videos are made of them."""
        lender = self.lenders[0]
        with ExitStack() as stack:
            for network in lender.networks.values():
                stack.callback(network.train, network.training)
            stack.enter_context(holding(trainer.parameters, trainer.result(), lender.dtype))
            if trainer.is_sharded and lender.dtype != torch.float32:  # LoRA layers stay float32 in what is sharded
                stack.enter_context(torch.autocast(lender.device.type, lender.dtype))
            yield


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, OmniError):
        return str(error)
    if is_out_of_memory(error):
        place = str(Place.of(error))
        return f"{f'out of memory {place}'.rstrip()}; try a smaller validation.seconds"
    return f"{type(error).__name__}: {error}".partition("\n")[0]


@contextmanager
def holding(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[None]:
    """Let parameters hold other values, in another precision, for the time of a with-block.

    Sharded ones keep their precision, in which their blocks are gathered.
    """
    sharded = {name: weight.detach().clone() for name, weight in parameters.items() if isinstance(weight, DTensor)}
    own = {name: weight.data for name, weight in parameters.items() if name not in sharded}
    try:
        for name, weight in parameters.items():
            if name in own:
                weight.data = values[name].to(weight.device, dtype)
            else:
                put(weight, values[name])
        yield
    finally:
        for name, weight in parameters.items():
            if name in own:
                weight.data = own[name]
            else:
                put(weight, sharded[name])


@torch.no_grad()
def put(weight: nn.Parameter, value: Tensor) -> None:
    """Overwrite a weight."""
    weight.copy_(value)


class Lent(DelegatingModels[Models]):
    """The networks that engines hold already, and those of `models`; see `omniavatar.engine.engine.Models`."""

    def __init__(self, models: Models, lenders: Sequence[Engine]) -> None:
        super().__init__(models)
        self.lenders = lenders

    def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        for lender in self.lenders:
            if role in lender.networks:
                return lender.networks[role]
        return self.models.load(role, device=device, dtype=dtype, **constructor)

    def adapters(self) -> Sequence[Adapter]:
        """None: the networks that are lent have been changed by theirs."""
        return ()
