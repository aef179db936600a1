"""The schedule: through which noise levels a window is denoised, whatever solver goes from one to the next."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from omniavatar.engine.flow_match import (
    SPACINGS,
    START_LATENTS,
    TIMESTEPS,
    shifted,
    shifted_sigmas,
    steps_along,
)
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.lazy import torch

if TYPE_CHECKING:
    from omniavatar.engine.draft import Draft
    from omniavatar.engine.scopes import Step, Window

LISTS = ("sigmas", "timesteps")
SPACED = ("steps", "spacing", "sigma_max", "sigma_min")
MOST_STEPS = 1000
LEAST_START = 0.9
"""Schedules that begin below this noise level, without footage, are warned of."""

log = logging.getLogger(__name__)


class Schedule(PipelineUnit):
    """The noise levels of the steps, for every solver. More steps, better pictures, more time.

    `steps` levels are spaced evenly and shifted towards high noise; or a list gives them, and then decides how many
    there are. With a strength below 1 a video starts from given footage (unit video-to-video) with noise of the first
    level: evenly spaced levels then begin there, as in the first OmniAvatar program, and of others that share of the
    steps is left, the last ones, rounded down as in diffusers. A list that you give counts as it is, unless you give a
    strength too.
    """

    name = "schedule"

    class Settings(UnitSettings):
        steps: int = Field(50, ge=1, le=MOST_STEPS, description="denoising steps")
        shift: float = Field(5.0, gt=0, le=100, description="how much of the schedule is spent at high noise")
        strength: float = Field(
            1.0, gt=0, le=1, description="how much noise given footage gets; 1 leaves nothing of it"
        )
        spacing: Literal["uniform", "diffusers", "karras", "exponential"] = Field(
            "uniform", description="evenly before the shift, or as diffusers' FlowMatchEulerDiscreteScheduler does it"
        )
        sigma_max: float = Field(
            1.0, gt=0, le=1, description="level before the shift from which uniform ones are spaced"
        )
        sigma_min: float = Field(0.0, ge=0, lt=1, description="level before the shift towards which they are spaced")
        sigmas: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = Field(
            None,
            description="noise levels before each step instead, descending, 1 at most; 0 comes behind them",
        )
        timesteps: tuple[Annotated[float, Field(ge=0, le=TIMESTEPS)], ...] | None = Field(
            None, description="the same as time steps, 1000 times the level"
        )
        warp: bool = Field(False, description="shift the levels of a list too, as few-step models want it")

        @field_validator("sigmas", "timesteps")
        @classmethod
        def _descending(cls, levels: tuple[float, ...] | None) -> tuple[float, ...] | None:
            if levels is None:
                return None
            if not any(levels):
                raise ValueError("the list needs a level above 0")
            if len(levels) > MOST_STEPS:
                raise ValueError(f"{len(levels)} levels are too many; up to {MOST_STEPS} are possible")
            for before, level in pairwise(levels):
                if not level < before:
                    raise ValueError(f"levels must descend, and {level:g} follows {before:g}")
            return levels

        @classmethod
        def replaced(cls, name: str, value: Any, *, by_user: bool) -> tuple[str, ...]:
            if name in LISTS and value is not None:
                return (*LISTS, *SPACED, *(("strength",) if by_user else ()))
            if name == "spacing" and value != "uniform":
                return (*LISTS, "warp", "sigma_max", "sigma_min")
            return (*LISTS, "warp") if name in SPACED else ()

        @model_validator(mode="after")
        def _one_source(self) -> Schedule.Settings:
            said = self.model_fields_set
            given = [name for name in (*LISTS, *SPACED) if name in said and getattr(self, name) is not None]
            if given and given[0] in LISTS and len(given) > 1:
                raise ValueError(f"{given[0]} says all levels, and {given[1]} says them too; leave one of them out")
            if self.spacing != "uniform" and (extent := {"sigma_max", "sigma_min"} & said):
                raise ValueError(f"{min(extent)} is for uniform levels and spacing is {self.spacing}; leave one out")
            if self.warp and self.sigmas is None and self.timesteps is None:
                raise ValueError("warp is for the levels of a list, and neither sigmas nor timesteps give one")
            if self.sigma_min >= self.sigma_max:
                raise ValueError(f"sigma_min {self.sigma_min:g} is not below sigma_max {self.sigma_max:g}")
            return self

    settings: Settings

    def levels(self) -> list[float]:
        """The noise levels, from that of the first step to 0 behind the last."""
        settings = self.settings
        if settings.sigmas is None and settings.timesteps is None and settings.spacing == "uniform":
            levels = shifted_sigmas(
                settings.steps,
                settings.shift,
                strength=settings.strength,
                sigma_max=settings.sigma_max,
                sigma_min=settings.sigma_min,
            )
            return [*levels.tolist(), 0.0]
        listed = self._listed()
        return listed[-1 - max(1, int((len(listed) - 1) * settings.strength)) :]

    def _listed(self) -> list[float]:
        """All levels of a list, or of another spacing, and 0."""
        settings = self.settings
        if settings.timesteps is not None:
            listed = torch.tensor(settings.timesteps, dtype=torch.float64) / TIMESTEPS
        elif settings.sigmas is not None:
            listed = torch.tensor(settings.sigmas, dtype=torch.float64)
        else:
            return [*SPACINGS[settings.spacing](settings.steps, settings.shift).tolist(), 0.0]
        levels = shifted(listed, settings.shift) if settings.warp else listed
        return [*levels[levels > 0].tolist(), 0.0]

    @hookimpl
    def check_request(self, draft: Draft) -> None:
        if any(START_LATENTS in unit.provides for unit in draft.plan.units):
            return
        if self.settings.strength < 1:
            raise PlanError(
                f"schedule.strength is {self.settings.strength:g}, which starts from given footage, and no unit of the "
                "plan brings any; add +video-to-video, or leave the strength at 1"
            )
        if (first := self.levels()[0]) < LEAST_START:
            log.warning(
                "the schedule begins at the noise level %g and the video with nothing but noise of level 1, so that "
                "some of it stays; begin at 1, or add +video-to-video",
                first,
            )

    @hookimpl
    def plan_steps(self, window: Window) -> Sequence[Step]:
        return steps_along(window, self.levels())
