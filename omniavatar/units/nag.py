"""Normalized Attention Guidance (Chen et al. 2025, arXiv:2505.21179): a negative prompt without calls for it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from omniavatar.engine.residency import IdleInSteps
from omniavatar.engine.step_range import StepRange, in_words, said_beforehand
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.scopes import Branch, Forward, Job, Step, Window


class Nag(PipelineUnit, IdleInSteps):
    """NAG: a negative prompt that works inside attention, also for networks that need no guidance.

    Where tokens attend to the text, they are led away from what they would make of the negative one, and no further
    than `tau` times their size (arXiv:2505.21179). That costs a second attention to a text and no call, so it is what
    distilled networks at guidance 1 take. Beside ordinary guidance it acts in the branches that have the prompt. Image
    tokens stay unguided.
    """

    name = "nag"
    needs = ("encode_text",)
    uses = ("negative_embedding",)
    roles = ("dit",)
    optional_roles = ("text_encoder",)
    idle_in_steps = ("text_encoder",)

    class Settings(StepRange):
        scale: float = Field(11.0, ge=1, le=100, description="how far away from the negative prompt; 1 does nothing")
        tau: float = Field(2.5, gt=0, le=100, description="how many times as large the result may become")
        alpha: float = Field(0.25, ge=0, le=1, description="share of the result; the rest is what it was without")
        norm: Literal[1, 2] = Field(1, description="norm of a size: 1 as in other programs for Wan, 2 as in the paper")
        negative: str | None = Field(
            None, max_length=100_000, description="what to lead away from; default: the negative prompt of the plan"
        )

    settings: Settings

    @property
    def acts(self) -> bool:
        """Whether its settings make a difference."""
        return self.settings.scale > 1 and self.settings.alpha > 0

    def acting(self, count: int) -> range:
        """The places of the steps, of `count`, in which it acts."""
        return self.settings.steps(count) if self.acts else range(0)

    def forecast(self, window: Window) -> Iterable[str]:
        count = len(window.steps)
        yield f"leads away from the negative prompt {in_words(self.acting(count), count)}"

    @hookimpl
    def begin_job(self, job: Job) -> None:
        negative = self.settings.negative
        if not self.acts:
            return
        if negative is None and "negative_embedding" not in job:
            raise PlanError("no unit of the plan has a negative prompt; give nag one of its own: nag(negative=...)")
        job["nag.embedding"] = job["negative_embedding"] if negative is None else job["encode_text"](negative)

    @hookimpl(wrapper=True)
    def plan_steps(self, window: Window) -> Generator[None, Sequence[Step], Sequence[Step]]:
        """Say in which steps it acts."""
        steps = yield
        return said_beforehand(self.name, steps, self.acting(len(steps)))

    @hookimpl
    def embed(self, forward: Forward) -> None:
        """Give the blocks the negative text, and say for which samples it is."""
        from omniavatar.models.nag import ROWS, TEXT

        if self.name not in forward.step.regimes or all(branch.drops("text") for branch in forward.branches):
            return
        memory, embedding = forward.memory, forward["nag.embedding"]
        forward.conditions[TEXT] = memory.once(TEXT, lambda: forward.network.embed_text(embedding))
        if any(branch.drops("text") for branch in forward.branches):
            forward.conditions[ROWS] = memory.once(ROWS, lambda: forward.stacked(partial(has_prompt, forward)))

    @hookimpl(wrapper=True)
    def run_blocks(self, forward: Forward) -> Iterator[None]:
        from omniavatar.models.nag import guided

        settings = self.settings
        around = partial(guided, scale=settings.scale, tau=settings.tau, alpha=settings.alpha, norm=settings.norm)
        with forward.engine.attention.cross.wrapped_at(around):
            return (yield)


def has_prompt(forward: Forward, branch: Branch) -> Tensor:
    """Whether the samples of a branch have the prompt (b) bool."""
    return torch.full((len(forward.window.latents),), not branch.drops("text"), device=forward.latents.device)
