"""The unit: the change of the modulation once per video, added in every transformer call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from omniavatar.sdk import CheckpointError, IdleInSteps, PipelineUnit, UnitInputs, hookimpl, torch

if TYPE_CHECKING:
    from omniavatar.sdk import Forward, Job, Models, Plan


class Motion(PipelineUnit, IdleInSteps):
    """Speed control: how fast everything in the video moves, by a motion bucket.

    Made for Wan2.1-T2V-1.3B. Without a bucket the video is what it is without the unit.
    """

    name = "motion"
    roles = ("dit", "motion_controller")
    idle_in_steps = ("motion_controller",)

    class Inputs(UnitInputs):
        motion_bucket_id: float | None = Field(None, ge=0, le=100, description="speed, 0 slow to 100 fast")

    def check(self, plan: Plan, models: Models) -> None:
        width, needed = models.config("motion_controller")["dim"], models.config("dit")["dim"]
        if width != needed:
            raise CheckpointError(
                f"the motion controller is made for a transformer of width {width} and this one has {needed}; "
                "use it with Wan2.1-T2V-1.3B or leave it out with -motion"
            )

    @hookimpl
    def begin_job(self, job: Job) -> None:
        bucket, engine = job.inputs(self).motion_bucket_id, job.engine
        job["motion.modulation"] = None
        if bucket is not None:
            buckets = torch.tensor([bucket], dtype=torch.float64, device=engine.device)
            job["motion.modulation"] = engine.model("motion_controller")(buckets)

    @hookimpl(trylast=True)
    def embed(self, forward: Forward) -> None:
        """The blocks' modulation alone; the head keeps that of the time. Last, since others may replace it."""
        change = forward["motion.modulation"]
        if change is not None:
            forward.t_mod = forward.t_mod + change
