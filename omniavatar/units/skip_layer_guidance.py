"""Skip-layer guidance: away from what the transformer predicts without some of its blocks."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from omniavatar.engine.scopes import Branch
from omniavatar.engine.step_range import StepRange, in_words, said_beforehand
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.draft import Draft
    from omniavatar.engine.engine import Models
    from omniavatar.engine.plan import Plan
    from omniavatar.engine.scopes import Forward, Step, Window

log = logging.getLogger(__name__)
PREDICTED = "skip-layer-guidance.predicted"
GUIDED = "skip-layer-guidance.guided"
ROWS = "skip-layer-guidance.rows"


class SkipLayerGuidance(PipelineUnit):
    """Skip-layer guidance: the branches that guidance leads away from are made worse by leaving out some blocks.

    rule=uncond, as in Wan2GP and KJNodes: all branches but the first, with all conditions, do without the blocks, in
    steps int(start n) to int(end n) - 1 of n. It costs nothing, and does nothing without guidance. rule=extra_call, as
    for Stable Diffusion 3.5 and in diffusers: one call more with all conditions and without the blocks, and
    v + scale (p - s) with the prediction p and that of this call, s; without guidance it is s + scale (p - s). It acts
    in the steps strictly between int(start n) and int(end n).
    """

    name = "skip-layer-guidance"
    roles = ("dit",)
    passes_on = ("run_block",)

    class Settings(StepRange):
        blocks: tuple[int, ...] = Field((9,), min_length=1, description="numbers of the blocks, from 0")
        start: float = Field(0.1, ge=0, le=1, description="share of the steps before it begins to act")
        end: float = Field(0.9, ge=0, le=1, description="share of the steps after which it stops")
        rule: Literal["uncond", "extra_call"] = Field(
            "uncond", description="uncond: in the calls that there are; extra_call: in a call of its own"
        )
        scale: float = Field(2.8, ge=0, le=100, description="strength of extra_call")

        @field_validator("blocks")
        @classmethod
        def _blocks_are_counted_from_0(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
            if any(block < 0 for block in blocks):
                raise ValueError("blocks are counted from 0")
            return tuple(sorted(set(blocks)))

        def steps(self, count: int) -> range:
            """The places of the steps, of `count`, in which it acts."""
            acting = super().steps(count)
            return acting[1:] if self.rule == "extra_call" else acting

    settings: Settings

    def check(self, plan: Plan, models: Models) -> None:
        count = models.config("dit").get("num_layers")
        if count is not None and self.settings.blocks[-1] >= count:
            raise PlanError(
                f"skip-layer-guidance leaves out block {self.settings.blocks[-1]} and the transformer has the blocks "
                f"0 to {count - 1}; choose of these with skip-layer-guidance(blocks=[...])"
            )

    @hookimpl
    def check_request(self, draft: Draft) -> None:
        plan = draft.engine.plan
        if self.settings.rule == "uncond" and "guidance-parallel" in plan and "fsdp" in plan:
            raise PlanError(
                "skip-layer-guidance leaves out blocks in some branches only, and with fsdp all ranks gather the "
                "weights of a block together, those with other branches too; leave out guidance-parallel or fsdp"
            )

    def forecast(self, window: Window) -> Iterable[str]:
        count = len(window.steps)
        blocks = ", ".join(map(str, self.settings.blocks))
        acting = in_words(self.settings.steps(count), count)
        whose = "one call more" if self.settings.rule == "extra_call" else "weak branches"
        yield f"{whose} without block{'s' * (len(self.settings.blocks) > 1)} {blocks} {acting}"

    @hookimpl(wrapper=True)
    def plan_steps(self, window: Window) -> Generator[None, Sequence[Step], Sequence[Step]]:
        """Say in which steps it acts."""
        steps = yield
        return said_beforehand(self.name, steps, self.settings.steps(len(steps)))

    @hookimpl(wrapper=True)
    def guide(self, step: Step) -> Generator[None, Tensor, Tensor]:
        """The call of its own, behind those of the guidance rule."""
        velocity = yield
        predicted: dict[Branch, Tensor] = step.pop(PREDICTED, {})
        if self.settings.rule == "uncond" or self.name not in step.regimes:
            return velocity
        full = predicted[Branch.fullest(list(predicted))]
        (skipped,) = step.predict([step.window.branch(self.name)])
        step.pop(PREDICTED)
        scale = self.settings.scale if len(predicted) > 1 else self.settings.scale - 1
        return velocity + scale * (full - skipped)

    @hookimpl(wrapper=True, tryfirst=True)
    def predict(self, step: Step, branches: Sequence[Branch]) -> Generator[None, Sequence[Tensor], Sequence[Tensor]]:
        """Look on. Who spreads branches asks for each again; the last to end is the call for all of them."""
        velocities = yield
        if self.name in step.regimes:
            step[PREDICTED] = dict(zip(branches, velocities, strict=True))
            step.window[GUIDED] = step.window.get(GUIDED, default=False) or len(branches) > 1
        return velocities

    @hookimpl
    def embed(self, forward: Forward) -> None:
        """Say which blocks the call leaves out, for all its samples or for those of some branches."""
        if self.name not in forward.step.regimes:
            return
        weak = [branch for branch in forward.branches if self.is_weak(branch)]
        if len(weak) == len(forward.branches):
            forward.left_out.update(self.settings.blocks)
        elif weak:
            forward[ROWS] = forward.memory.once(ROWS, lambda: forward.rows(lambda branch: branch not in weak))

    def is_weak(self, branch: Branch) -> bool:
        """Whether a branch does without the blocks."""
        return branch.name == self.name if self.settings.rule == "extra_call" else bool(branch.dropped)

    @hookimpl
    def run_block(self, forward: Forward, index: int) -> Tensor | None:
        """Branches in one batch: only some samples do without a block."""
        if index not in self.settings.blocks or ROWS not in forward:
            return None
        return forward.run_block_for(index, forward[ROWS])

    @hookimpl
    def end_window(self, window: Window) -> None:
        if self.settings.rule == "uncond" and not window.get(GUIDED, default=True):
            text = "skip-layer-guidance did nothing, since there is no guidance; raise guidance.scale, or take %s"
            window.job.once("skip-layer-guidance.warned", lambda: log.warning(text, "rule=extra_call"))
