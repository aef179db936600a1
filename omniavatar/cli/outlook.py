"""What a plan will do with some models, as far as its units know before anything is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from omniavatar.engine.delegation import DelegatingModels
from omniavatar.errors import CheckpointError
from omniavatar.locating import located

if TYPE_CHECKING:
    from omniavatar.checkpoints import Bundle
    from omniavatar.config import RunConfig
    from omniavatar.engine.plan import Catalog, Plan
    from omniavatar.engine.scopes import Window
    from omniavatar.engine.unit import PipelineUnit
    from omniavatar.plugins import Plugins


@dataclass(frozen=True)
class Outlook:
    """A plan with the settings that a configuration and its models give it, and a window that is only planned.

    missing: why there is no window, in words.
    """

    plan: Plan
    window: Window | None
    missing: str = ""

    @classmethod
    def of(cls, config: RunConfig, plugins: Plugins, catalog: Catalog) -> Self:
        """Reads headers, and weights only where units want to look into the future, and none of any block."""
        from omniavatar.engine.plan import build_plan
        from omniavatar.engine.settings import Layer, Strength
        from omniavatar.opening import bundle_of, checkpoint_layers

        file = Layer(Strength.FILE, "the configuration", config.settings)
        registry = plugins.registry(map(Path, config.tables))
        try:
            bundle = bundle_of(located(config), registry)
        except CheckpointError as error:
            reason = str(error).partition("\n")[0].removesuffix(" for")
            return cls(build_plan(config.units, catalog, file), None, reason)
        plan = build_plan(config.units, catalog, *checkpoint_layers(bundle), file)
        if not any(map(foresees, plan.units)):
            return cls(plan, None)
        plan.check_complete()
        try:
            return cls(plan, planned_window(plan, bundle, config))
        except CheckpointError as error:
            return cls(plan, None, str(error))

    def lines(self, unit: PipelineUnit) -> Iterator[str]:
        """What a unit will do; what is missing to know it."""
        if foresees(unit):
            if self.window is None:
                yield f"depend on the models: {self.missing}"
            else:
                import torch

                with torch.inference_mode():
                    yield from unit.forecast(self.window)


def foresees(unit: PipelineUnit) -> bool:
    """Whether a unit can say what it will do."""
    from omniavatar.engine.unit import PipelineUnit

    return type(unit).forecast is not PipelineUnit.forecast


def plans_steps(unit: PipelineUnit) -> bool:
    """Whether a unit is a schedule, or changes what one plans."""
    from omniavatar.engine.plan import hooks_of

    return any((options["specname"] or name) == "plan_steps" for name, options in hooks_of(type(unit)).items())


def planned_window(plan: Plan, bundle: Bundle, config: RunConfig) -> Window:
    """A window with its steps, in the precision of the configuration, on the CPU.

    Only units that plan steps or foresee something take part, so that no other models are needed.
    """
    import torch

    from omniavatar.engine.engine import Engine
    from omniavatar.engine.loop import Loop
    from omniavatar.engine.plan import Plan
    from omniavatar.engine.scopes import Request
    from omniavatar.opening import torch_dtype

    device = torch.device("cpu")
    units = [unit for unit in plan.units if foresees(unit) or plans_steps(unit) or unit.experts]
    engine = Engine(Plan(tuple(units)), WithoutBlocks(bundle), device=device, dtype=torch_dtype(config.dtype, device))
    return Loop(engine, engine.plan, Request()).plan_window()


class WithoutBlocks(DelegatingModels["Bundle"]):
    """An `engine.Models` that leaves the blocks of networks on the meta device: nothing of a large file is read."""

    def load(self, role: str, **options: Any) -> Any:
        return super().load(role, **{**options, "blocks": False})
