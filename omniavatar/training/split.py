"""Which units of a plan take part in training, and which of them can do their work once, before it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from omniavatar.engine.conditions import nulls_of
from omniavatar.engine.plan import Plan, hooks_of, made_by
from omniavatar.engine.ranks import SpreadsWork
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import PlanError

STEP_HOOKS = frozenset(
    (
        *("before_step", "predict", "call", "embed"),
        *("run_blocks", "before_block", "run_block", "after_block", "unembed"),
    )
)
"""The hooks of a prediction; what only plans, guides, samples, decodes or writes is not part of training."""


@dataclass(frozen=True)
class Split:
    """The units of a training run.

    prepared: those that make what a prediction reads with networks that stay as they are. live: the others, which
    run in every step. values: what the prepared ones make and a step reads.
    """

    prepared: tuple[PipelineUnit, ...]
    live: tuple[PipelineUnit, ...]
    values: tuple[str, ...]

    @property
    def stepping(self) -> Plan:
        """The units that work in a step; of the prepared ones, those with hooks of a prediction."""
        return Plan(tuple(unit for unit in (*self.prepared, *self.live) if unit in self.live or steps(unit)))


def split(plan: Plan, trained: Collection[str]) -> Split:
    """What is prepared and what is live if the networks of the roles `trained` change.

    A unit can be prepared if it makes values with other networks only, and reads nothing that is made live.
    Raises PlanError for a unit that cannot be prepared although it takes inputs or looks at the job.
    """
    for unit in plan.units:
        if isinstance(unit, SpreadsWork):
            raise PlanError(
                f"unit '{unit.name}' spreads one video over ranks, and training gives each rank samples of its own; "
                f"leave it out with -{unit.name}"
            )
    taking_part = participants(plan)
    prepared: list[PipelineUnit] = []
    live: list[PipelineUnit] = []
    of_live: set[str] = set()
    for unit in taking_part:
        roles = {*unit.roles, *unit.optional_roles}
        if unit.provides and not roles & set(trained) and not of_live & {*unit.needs, *unit.uses}:
            prepared.append(unit)
        else:
            live.append(unit)
            of_live.update(unit.provides)
    for unit in live:
        if unit.Inputs.model_fields or "begin_job" in hooks(unit):
            trains = ", ".join(sorted({*unit.roles, *unit.optional_roles} & set(trained))) or "what is trained"
            raise PlanError(
                f"unit '{unit.name}' cannot be trained with: it works with {trains} and takes inputs of its own, which "
                "are read before training; make two units of it, or train something else"
            )
    read = {name for unit in taking_part if unit in live or steps(unit) for name in (*unit.needs, *unit.uses)}
    read |= {null for nulls in nulls_of(prepared).values() for name, null in nulls.items() if name in read}
    own = {name for unit in prepared if steps(unit) for name in unit.provides}
    values = [name for unit in prepared for name in unit.provides if name in read | own]
    return Split(tuple(prepared), tuple(live), tuple(dict.fromkeys(values)))


def participants(plan: Plan) -> list[PipelineUnit]:
    """Units that work in a prediction or set networks up, and the makers of all that they read; in plan order."""
    makers = {value: unit for unit in plan.units for value in made_by(unit)}
    found = [unit for unit in plan.units if steps(unit) or "setup" in hooks(unit)]
    for unit in found:
        for value in (*unit.needs, *unit.uses):
            maker = makers.get(value)
            if maker is not None and maker not in found:
                found.append(maker)
    return [unit for unit in plan.units if unit in found]


def steps(unit: PipelineUnit) -> bool:
    """Whether the unit works in a prediction."""
    return not STEP_HOOKS.isdisjoint(hooks(unit))


def hooks(unit: PipelineUnit) -> set[str]:
    """The hooks that the unit implements."""
    return {options["specname"] or attribute for attribute, options in hooks_of(type(unit)).items()}
