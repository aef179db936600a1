"""LoRA: weight changes merged into the networks as they are loaded, or added beside the weights as they run."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pydantic import Field

from omniavatar.engine.conversion import trains
from omniavatar.engine.manifest import Recorded
from omniavatar.engine.unit import ALL, PipelineUnit, UnitSettings
from omniavatar.errors import CheckpointError, PlanError
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from omniavatar.engine.engine import Adapter, Engine, LoraFit
    from omniavatar.engine.scopes import Step, Window
    from omniavatar.models.conversion import Conversion
    from omniavatar.models.lora import Change, Strengths

log = logging.getLogger(__name__)

Numbered = tuple["Change", int]
"""A change with the number of its file."""


class Lora(PipelineUnit, Recorded):
    """LoRA files among the models (the OmniAvatar delta has one) change the weights of their networks.

    Each file has a strength of its own: --lora FILE=0.7, or `strength:` in the models of a configuration; `scale`
    multiplies those that were added, and not what belongs to an avatar's checkpoint. They are merged into the weights
    as these are loaded, and cost nothing then. Beside packed weights, and where strengths differ between steps, they
    are added as the layers run, which costs two small products a layer. What works before the steps, such as the text
    encoder, does so at the strengths of the first step.

    Keys that name a second transformer or the text encoder change those. A file that is given for one network
    (--lora dit2=FILE) changes no other one.
    """

    name = "lora"
    optional_roles = ("lora", ALL)

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
            description="false: never change linear layers, but add what LoRA makes beside them, as is always done "
            "with packed weights and with strengths by ranges of steps",
        )

    settings: Settings

    def conversion(self, engine: Engine, role: str) -> Conversion | None:
        """What the files change in a role's network as it is loaded; see `engine.conversion`."""
        return self._applied(engine).conversion(engine, role, merge=self.settings.merge)

    @hookimpl
    def setup(self, engine: Engine) -> None:
        """Have the networks loaded, and with them changed; add beside their layers what could not be merged."""
        applied = self._applied(engine)
        for role in dict.fromkeys(role for file in applied.files for role in file.roles):
            engine.model(role)
        applied.report = [file.facts() for file in applied.files]
        for role, late in applied.late.items():
            if late:
                check_is_for_videos(engine)
                applied.add(engine, role, late)

    def record(self, engine: Engine) -> Mapping[str, Any]:
        """What became of each file."""
        report = self._applied(engine).report
        return {"loras": report} if report else {}

    @hookimpl(wrapper=True)
    def plan_steps(self, window: Window) -> Generator[None, Sequence[Step], Sequence[Step]]:
        """Say where strengths change, so that caches compute there; begin with the first ones."""
        steps = yield
        self._applied(window.engine).change(0.0)
        for file in self._applied(window.engine).scheduled:
            for index, step in enumerate(steps):
                strength = file.strength_at(index / len(steps))
                step.regimes.add(f"lora {Path(file.adapter.name).name} at {strength:g}")
        return steps

    @hookimpl(tryfirst=True)
    def before_step(self, step: Step) -> None:
        self._applied(step.engine).change(step.index / max(1, step.window.step_count))

    @hookimpl(trylast=True)
    def after_step(self, step: Step) -> None:
        """What works before the steps of the next window, such as the audio layers, does so at the first strengths."""
        if step.index + 1 >= step.window.step_count:
            self._applied(step.engine).change(0.0)

    def _applied(self, engine: Engine) -> Applied:
        """What is done to the networks of an engine; asked for when the first is loaded, or steps are foretold."""
        if engine not in APPLIED:
            APPLIED[engine] = Applied.of(engine, self.settings)
        return APPLIED[engine]


@dataclass
class File:
    """One LoRA file, its strengths by ranges of the steps, and the networks that it may change: part of it by role."""

    adapter: Adapter
    ranges: tuple[tuple[float, float, float], ...]
    places: Mapping[str, str]
    fits: dict[str, LoraFit] = field(default_factory=dict)

    @classmethod
    def of(cls, engine: Engine, adapter: Adapter, settings: Lora.Settings) -> File:
        """Raises CheckpointError if there is no such network."""
        strength = adapter.strength
        ranges = strength if isinstance(strength, tuple) else ((0.0, 1.0, strength),)
        scale = 1.0 if adapter.is_own else settings.scale
        wanted = adapter.places(engine.plan.experts)
        given = {adapter.target} if adapter.target in engine.models else set()
        places = {role: part for role, part in wanted.items() if role in given.union(engine.roles)}
        if not places:
            first, there = next(iter(wanted)), ", ".join(engine.roles)
            raise CheckpointError(
                f"LoRA {adapter.name}: it is for the network '{first}', which no model file has; there are {there}"
            )
        return cls(adapter, tuple((begin, end, value * scale) for begin, end, value in ranges), places)

    @property
    def roles(self) -> Sequence[str]:
        """The roles of the networks that it may change."""
        return tuple(self.places)

    @property
    def is_scheduled(self) -> bool:
        """Whether its strength differs between steps."""
        return self.ranges != ((0.0, 1.0, self.ranges[0][2]),)

    def strength_at(self, part: float) -> float:
        """Its strength in the step that begins after this part of all steps."""
        return next((value for begin, end, value in self.ranges if begin <= part + 1e-9 < end), 0.0)

    def fit(self, role: str, network: nn.Module) -> Mapping[str, Sequence[Change]]:
        """What it changes in one network. Raises CheckpointError for what does not fit."""
        shapes = dict(shapes_of(network))
        fit = self.adapter.read().fit(
            shapes, partial=len(self.roles) > 1, part=self.places[role], is_named=self.adapter.is_named
        )
        for name, changes in fit.changes.items():
            wide = next((change for change in changes if hasattr(change, "shape")), None)
            if wide is not None and tuple(wide.shape) != shapes[name]:
                raise CheckpointError(
                    f"LoRA {self.adapter.name}: it makes '{name}' {list(wide.shape)} instead of {list(shapes[name])}, "
                    "for control channels that no unit of this plan brings; give a LoRA without them"
                )
        self.fits[role] = fit
        return fit.changes

    def facts(self) -> dict[str, Any]:
        """The file, its strength, and how much of it is used, as JSON values. Raises CheckpointError if nothing is."""
        fit: LoraFit = reduce(lambda one, other: one.beside(other), (self.fits[role] for role in self.roles))
        fit.check()
        log.info("LoRA %s: %s", self.adapter.name, fit)
        return {
            "file": self.adapter.name,
            "role": self.adapter.target,
            "networks": {role: len(fit.changes) for role, fit in self.fits.items() if fit.changes},
            "strength": [list(part) for part in self.ranges] if self.is_scheduled else self.ranges[0][2],
            **fit.facts(),
        }


@dataclass
class Applied:
    """What LoRA does to the networks of an engine.

    late: by role, what is not merged while loading. report: what became of each file, once all networks that they
    change are loaded.
    """

    files: Sequence[File]
    strengths: Strengths
    late: dict[str, dict[str, Sequence[Numbered]]] = field(default_factory=dict)
    report: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, engine: Engine, settings: Lora.Settings) -> Applied:
        """With all files of an engine; none is read yet."""
        from omniavatar.models.lora import Strengths

        files = [File.of(engine, adapter, settings) for adapter in engine.models.adapters()]
        return cls(files, Strengths([file.strength_at(0.0) for file in files], engine.device))

    @property
    def scheduled(self) -> list[File]:
        """The files whose strengths differ between steps."""
        return [file for file in self.files if file.is_scheduled]

    def conversion(self, engine: Engine, role: str, *, merge: bool) -> Conversion | None:
        """What is merged into a role's network as it is loaded; None if no file is for it."""
        from omniavatar.models.conversion import Merging
        from omniavatar.models.packed import is_linear

        files = [(number, file) for number, file in enumerate(self.files) if role in file.roles]
        late: dict[str, Sequence[Numbered]] = self.late.setdefault(role, {})
        strengths, is_scheduled = self.strengths, [file.is_scheduled for file in self.files]

        class Files(Merging):
            """Files that are read and checked when the network is known; all before anything is changed."""

            def begin(self, network: nn.Module) -> None:
                found: dict[str, list[Numbered]] = defaultdict(list)
                for number, file in files:
                    for name, changes in file.fit(role, network).items():
                        found[name] += [(change, number) for change in changes]
                for name, numbered in found.items():
                    layer, _, own = name.rpartition(".")
                    linear = own in ("weight", "bias") and is_linear(network.get_submodule(layer))
                    if (linear and not merge) or any(is_scheduled[number] for _, number in numbered):
                        late[name] = numbered
                self.numbered = {name: numbered for name, numbered in found.items() if name not in late}
                constant = {
                    name: [(change, strengths.numbers[number]) for change, number in numbered]
                    for name, numbered in self.numbered.items()
                }
                self.of = {name: some for name, some in constant.items() if any(strength for _, strength in some)}

            def leaves(self, name: str) -> bool:
                late[name] = self.numbered[name]
                return True

        return Files({}) if files else None

    def add(self, engine: Engine, role: str, late: Mapping[str, Sequence[Numbered]]) -> None:
        """Add what has not been merged beside the linear layers of a network, and to other weights when they are read.

        What is added lies where the weights are, or on the device if they are in their files.
        """
        from omniavatar.models.lora import Beside, WithBeside, change_when_read
        from omniavatar.models.packed import is_linear

        network = engine.model(role)
        layers: dict[str, dict[str, Sequence[Numbered]]] = defaultdict(dict)
        for name, numbered in late.items():
            layer, _, own = name.rpartition(".")
            layers[layer][own] = numbered
        for layer, parts in layers.items():
            owner = network.get_submodule(layer)
            place = next(weight.device for weight in owner.parameters(recurse=False))
            device = engine.device if place.type == "meta" else place
            if is_linear(owner):
                added = Beside(parts.get("weight", ()), parts.get("bias", ()), self.strengths, engine.dtype, device)
                network.set_submodule(layer, WithBeside(owner, added))
            else:
                change_when_read(owner, parts, self.strengths, device)

    def change(self, part: float) -> None:
        """Work from now on with the strengths that hold after this part of the steps."""
        self.strengths.set([file.strength_at(part) for file in self.files])


APPLIED: WeakKeyDictionary[Engine, Applied] = WeakKeyDictionary()
"""By engine: networks are loaded, and so changed, whoever asks for them first."""


def shapes_of(network: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a network's weights, packed ones with the shape that they have when they are dense."""
    from omniavatar.models.packed import PackedLayer

    for prefix, module in network.named_modules():
        packed = isinstance(module, PackedLayer)
        for own, weight in module.named_parameters(recurse=False):
            if not packed or own == "bias":
                yield f"{prefix}.{own}" if prefix else own, tuple(weight.shape)
        if isinstance(module, PackedLayer):
            yield f"{prefix}.weight", (module.out_features, module.in_features)


def check_is_for_videos(engine: Engine) -> None:
    """Raise PlanError in training, which saves weights by the names that they have in files."""
    if trains(engine.plan.units):
        raise PlanError(
            "unit 'lora': in training every LoRA is merged; leave out merge=false and strengths by ranges of steps"
        )
