"""LoRA: weight changes merged into the networks once, or added beside the weights as they run."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from omniavatar.engine.unit import ALL, PipelineUnit, UnitSettings
from omniavatar.errors import CheckpointError, PlanError
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from omniavatar.engine.engine import Adapter, Engine
    from omniavatar.engine.scopes import Step, Window
    from omniavatar.models.lora import Change, Strengths

log = logging.getLogger(__name__)

UNREAD = "lora.unread"
"""Changes of weights that are read whenever they are used: {role: {weight: [(change, strength)]}}."""
APPLIED = "lora.applied"
REPORT = "lora.report"
"""What became of each file, for the record of a video."""


class Lora(PipelineUnit):
    """LoRA files among the models (the OmniAvatar delta has one) change the weights of their networks.

    Each file has a strength of its own: --lora FILE=0.7, or `strength:` in the models of a configuration; `scale`
    multiplies those that were added, and not what belongs to an avatar's checkpoint. They are merged into the weights
    before the first video, and cost nothing then. Beside packed weights, and where strengths differ between steps, they
    are added as the layers run, which costs two small products a layer.
    """

    name = "lora"
    roles = ("dit",)
    optional_roles = ("lora",)
    provides = (UNREAD, REPORT)

    class Settings(UnitSettings):
        scale: float = Field(
            1.0,
            ge=-10,
            le=10,
            description="multiplies the strength of every LoRA that was added to the avatar's own files; 0 leaves "
            "them out",
        )
        merge: bool = Field(
            True,
            description="false: never change weights, but add what LoRA makes beside them, as is always done with "
            "packed weights and with strengths by ranges of steps",
        )

    settings: Settings

    @hookimpl
    def setup(self, engine: Engine) -> None:
        from omniavatar.models.lora import Strengths

        files = [File(adapter, self._ranges(adapter)) for adapter in engine.models.adapters()]
        targets: dict[tuple[str, str], Target] = {}
        for number, file in enumerate(files):
            file.find(engine, number, targets)  # all are seen to fit before anything changes
        strengths = Strengths([file.strength_at(0.0) for file in files], engine.device)
        rewritten = [
            change
            for change in self._apply(engine, list(targets.values()), files, strengths)
            if any(files[number].is_scheduled for _, number in change.changes)
        ]
        engine.values[APPLIED] = Applied(files, rewritten, strengths)
        engine.values[REPORT] = [file.facts() for file in files]

    def _ranges(self, adapter: Adapter) -> tuple[tuple[float, float, float], ...]:
        """The strengths of a file by ranges of the steps."""
        strength = adapter.strength
        ranges = strength if isinstance(strength, tuple) else ((0.0, 1.0, strength),)
        scale = 1.0 if adapter.is_own else self.settings.scale
        return tuple((begin, end, value * scale) for begin, end, value in ranges)

    def _apply(
        self, engine: Engine, targets: Sequence[Target], files: Sequence[File], strengths: Strengths
    ) -> Generator[Rewritten, None, None]:
        """Change all weights; what has to be written anew when strengths change comes back."""
        from omniavatar.models.lora import is_linear, is_packed, merged, put_beside

        unread: dict[str, dict[str, list[tuple[Change, float]]]] = defaultdict(dict)
        beside: dict[int, tuple[Target, dict[str, list[tuple[Change, int]]]]] = {}
        for target in targets:
            changes, owner = target.changes, target.owner
            is_scheduled = any(files[number].is_scheduled for _, number in changes)
            by_itself = (is_scheduled or not self.settings.merge) and is_linear(owner)
            if (by_itself or (target.part == "weight" and is_packed(owner))) and target.part in ("weight", "bias"):
                engine.check_frozen(target.network, self)
                beside.setdefault(id(owner), (target, defaultdict(list)))[1][target.part] += changes
                continue
            if is_scheduled:
                check_stays(engine, target)
                yield Rewritten(target, target.weight.detach().clone())
            constant = [(change, strengths.numbers[number]) for change, number in changes]
            weight = target.weight
            if weight.is_meta:
                unread[target.role][target.name] = constant
            elif any(strength for _, strength in constant):
                assign(weight, merged(weight, constant, engine.device))
        for target, parts in beside.values():
            put_beside(target.owner, parts["weight"], parts["bias"], strengths, engine.dtype, target.place(engine))
        used = {number for _, parts in beside.values() for changes in parts.values() for _, number in changes}
        for number in used:
            files[number].is_beside = True
        engine.values[UNREAD] = dict(unread)

    @hookimpl(wrapper=True)
    def plan_steps(self, window: Window) -> Generator[None, Sequence[Step], Sequence[Step]]:
        """Say where strengths change, so that caches compute there."""
        steps = yield
        for index, step in enumerate(steps):
            for file in window.engine.values[APPLIED].files:
                if file.is_scheduled:
                    strength = file.strength_at(index / len(steps))
                    step.regimes.add(f"lora {Path(file.adapter.name).name} at {strength:g}")
        return steps

    @hookimpl(tryfirst=True)
    def before_step(self, step: Step) -> None:
        applied: Applied = step.engine.values[APPLIED]
        if any(file.is_scheduled for file in applied.files):
            at = step.index / max(1, step.window.step_count)
            applied.change([file.strength_at(at) for file in applied.files], step.engine)


@dataclass
class File:
    """One LoRA file and what it does to the networks of an engine."""

    adapter: Adapter
    ranges: tuple[tuple[float, float, float], ...]
    fits: Any = None
    is_beside: bool = False

    @property
    def is_scheduled(self) -> bool:
        """Whether its strength differs between steps."""
        return self.ranges != ((0.0, 1.0, self.ranges[0][2]),)

    def strength_at(self, part: float) -> float:
        """Its strength in the step that begins after this part of all steps."""
        return next((value for begin, end, value in self.ranges if begin <= part + 1e-9 < end), 0.0)

    def find(self, engine: Engine, number: int, targets: dict[tuple[str, str], Target]) -> None:
        """Add what this file changes to the weights that files change. Raises CheckpointError if it does not fit."""
        adapter = self.adapter
        roles = [role for role in (adapter.target, *adapter.branches) if role in engine.roles]
        if adapter.target in engine.models:
            roles = list(dict.fromkeys((adapter.target, *roles)))
        else:
            raise CheckpointError(
                f"LoRA {adapter.name}: it is for the network '{adapter.target}', which no model file has; there are "
                f"{', '.join(engine.roles)}"
            )
        known: dict[str, Target] = {}
        for role in roles:
            for target in targets_in(role, engine.model(role)):
                known.setdefault(target.name, target)
        self.fits = adapter.fit({name: target.shape for name, target in known.items()})
        for name, changes in self.fits.changes.items():
            target = targets.setdefault((known[name].role, name), known[name])
            wide = next((change for change in changes if hasattr(change, "shape")), None)
            if wide is not None and tuple(wide.shape) != target.shape:
                raise CheckpointError(
                    f"LoRA {adapter.name}: it makes '{name}' {list(wide.shape)} instead of {list(target.shape)}, for "
                    "control channels that no unit of this plan brings; give a LoRA without them"
                )
            target.changes += [(change, number) for change in changes]
        log.info("LoRA %s: %s", adapter.name, self.fits)

    def facts(self) -> dict[str, Any]:
        """The file, its strength, and how much of it is used, as JSON values."""
        strength: Any = [list(part) for part in self.ranges] if self.is_scheduled else self.ranges[0][2]
        how = "beside the weights" if self.is_beside else "merged"
        return {
            "file": self.adapter.name,
            "role": self.adapter.target,
            "strength": strength,
            "applied": how,
            **self.fits.facts(),
        }


@dataclass
class Target:
    """A weight that files may change: which it is, and the changes with the numbers of their files, in order."""

    role: str
    network: nn.Module
    name: str
    owner: nn.Module
    part: str
    shape: tuple[int, ...]
    changes: list[tuple[Change, int]] = field(default_factory=list)

    @property
    def weight(self) -> Tensor:
        """The weight as it is now."""
        weight: Tensor = getattr(self.owner, self.part)
        return weight

    def place(self, engine: Engine) -> Any:
        """Where the network has its weights."""
        weight = next(self.owner.parameters(recurse=False), None)
        return engine.device if weight is None or weight.is_meta else weight.device


def targets_in(role: str, network: nn.Module) -> list[Target]:
    """The weights of a network, packed ones with the shape that they have when they are dense."""
    from omniavatar.models.lora import is_linear, is_packed

    found = []
    for prefix, module in network.named_modules():
        for part, weight in module.named_parameters(recurse=False):
            name = f"{prefix}.{part}" if prefix else part
            if part != "weight" or not (is_linear(module) and is_packed(module)):
                found.append(Target(role, network, name, module, part, tuple(weight.shape)))
        if is_linear(module) and is_packed(module):
            shape = int(module.out_features), int(module.in_features)
            found.append(Target(role, network, f"{prefix}.weight", module, "weight", shape))
    return found


@dataclass
class Rewritten:
    """A weight that is no linear layer's, and is written anew when strengths change. before: without any change."""

    target: Target
    before: Tensor

    @property
    def changes(self) -> list[tuple[Change, int]]:
        """The changes with the numbers of their files."""
        return self.target.changes

    def write(self, strengths: Strengths, engine: Engine) -> None:
        """Give the weight its value at the strengths of the moment."""
        from omniavatar.models.lora import merged

        weight = self.target.weight
        now = [(change, strengths.numbers[number]) for change, number in self.changes]
        assign(weight, merged(self.before, now, engine.device))


@dataclass
class Applied:
    """What has been done to the networks of an engine."""

    files: Sequence[File]
    rewritten: Sequence[Rewritten]
    strengths: Strengths

    def change(self, numbers: Sequence[float], engine: Engine) -> None:
        """Work with other strengths from now on."""
        if self.strengths.set(numbers):
            for weight in self.rewritten:
                weight.write(self.strengths, engine)


def assign(weight: Tensor, value: Tensor) -> None:
    """Give a weight other values, rounded once to its precision."""
    import torch

    with torch.no_grad():
        if value.device == weight.device:
            weight.copy_(value.to(weight.dtype))
        else:  # written into a weight that is mapped from a file, it would take memory beside the file's
            weight.data = value.to(weight.device, weight.dtype)


def check_stays(engine: Engine, target: Target) -> None:
    """Raise PlanError for a weight that cannot be written between steps, since it is not there then."""
    mover = next((unit.name for unit in engine.plan.units if ALL in unit.host_roles), None)
    if mover is not None:
        raise PlanError(
            f"unit 'lora': '{target.name}' changes with the steps, and unit '{mover}' moves or shards it; give the "
            f"LoRA one strength for all steps, or leave out {mover}"
        )
