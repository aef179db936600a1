"""Networks that are on the device only while a unit that declares them runs: the plan decides, units do nothing for it.

Around every hook outside the denoising steps, the networks that its unit declares are there and all others have gone.
In the steps those of all units that take part in them are there, less what a unit declares as `idle_in_steps`, and of
several experts only the one that works in the step, with its companions. This is for networks that a unit, such as
`offload`, has made visitors; others are where they are. A unit that uses a network of the steps without declaring it,
because it takes whichever is there, brings it by calling it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Protocol

from omniavatar.engine.plan import Plan, hooks_of
from omniavatar.engine.surround import Around
from omniavatar.engine.unit import names_faults
from omniavatar.hookspecs import hookimpl
from omniavatar.roles import companion_of

if TYPE_CHECKING:
    from omniavatar.engine.scopes import Step
    from omniavatar.engine.unit import PipelineUnit

OUTSIDE_STEPS = frozenset(
    (
        *("begin_job", "plan_windows", "noise", "plan_steps", "begin_window"),
        *("decode_latents", "postprocess_frames", "output_frames", "end_window", "end_job"),
    )
)
"""The hooks of a video that are not called from step to step."""


class IdleInSteps:
    """A unit that works with some of its networks only outside the denoising steps, such as the encoder of a picture.

    idle_in_steps: the roles of these, so that a plan that is short of memory can have their networks elsewhere
        meanwhile. A unit without hooks in the steps need not say so.
    """

    idle_in_steps: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def faults(cls) -> Iterator[str]:
        """What the class says in another form, one line each."""
        return names_faults(cls, "idle_in_steps")


class Visitor(Protocol):
    """A network that can come to the device and go again; either may be asked for when it is done already."""

    def come(self) -> None: ...

    def leave(self) -> None: ...


class Residency:
    """Who is on the device. `visitors` are the networks that come and go, by role; `present` those that are there."""

    def __init__(self, plan: Plan) -> None:
        self.visitors: dict[str, Visitor] = {}
        self.present: frozenset[str] = frozenset()
        self._plan = plan
        self._roles = {unit.name: {*unit.roles, *unit.optional_roles} for unit in plan.units}
        self.in_steps = {role for unit in plan.units for role in roles_in_steps(unit, plan)} | {*plan.experts}

    @property
    def around(self) -> Around:
        """What every hook outside the steps runs in, so that the networks of its unit are there."""
        return Around(self._inside, OUTSIDE_STEPS)

    @contextmanager
    def _inside(self, unit: str, hook: str) -> Iterator[None]:
        """Have a unit's networks on the device; one that works with none disturbs nobody."""
        if roles := self._roles[unit] & self.visitors.keys():
            self.admit(roles)
        yield

    @hookimpl(tryfirst=True)
    def before_step(self, step: Step) -> None:
        if self.visitors:
            self.admit((self.in_steps - self._idle(step.expert)) & self.visitors.keys())

    def _idle(self, expert: str) -> set[str]:
        """The other experts, and the companions that belong to them alone."""
        plan, kinds = self._plan, [role for unit in self._plan.units for role in unit.companions]
        idle = {*plan.experts} - {expert}
        for role in kinds:
            own = companion_of(role, plan.experts[0], expert)
            idle |= {*plan.companions(role)} - {own if own in self.visitors else role}
        return idle

    def admit(self, roles: Collection[str]) -> None:
        """Have the networks of these roles on the device, after all others have gone."""
        for role, visitor in self.visitors.items():
            if role not in roles:
                visitor.leave()
        for role in sorted(roles):
            self.visitors[role].come()
        self.present = frozenset(roles)


def roles_in_steps(unit: PipelineUnit, plan: Plan) -> set[str]:
    """The roles that a unit works with while steps run."""
    hooks = {options["specname"] or attribute for attribute, options in hooks_of(type(unit)).items()}
    if hooks <= OUTSIDE_STEPS | {"plan_size", "plan_length", "check_request", "setup"}:
        return set()
    return {*plan.roles_of(unit)} - {*(unit.idle_in_steps if isinstance(unit, IdleInSteps) else ())}
