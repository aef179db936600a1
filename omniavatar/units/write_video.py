"""Writing the video: H.264 pictures and AAC sound, encoded while the next frames are made."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from omniavatar.engine.manifest import recipe
from omniavatar.engine.ranks import MainRankOnly
from omniavatar.engine.rehearsing import NotRehearsed
from omniavatar.engine.unit import PipelineUnit, UnitInputs, UnitSettings
from omniavatar.errors import Cancelled
from omniavatar.hookspecs import hookimpl
from omniavatar.media.writer import VideoWriter, check_output

if TYPE_CHECKING:
    import numpy as np

    from omniavatar.engine.scopes import Job, Window
    from omniavatar.media.writer import Soundtrack


log = logging.getLogger(__name__)
LONGEST_RECORD = 50_000
"""Characters of JSON that a file may carry about how it was made."""


class WriteVideo(PipelineUnit, MainRankOnly, NotRehearsed):
    """The file: frames are encoded as they are decoded, and the file gets its name only when it is complete.

    Everything it needs, the sound too, is tried before the first step. A run that fails or is interrupted leaves what
    was finished as NAME.partial.mp4; one that is cancelled leaves nothing.
    """

    name = "write-video"
    needs = ("frames",)
    uses = ("soundtrack", "command")

    class Settings(UnitSettings):
        crf: int = Field(18, ge=0, le=51, description="H.264 quality, 0 best to 51 worst")
        preview: bool = Field(
            False,
            description="let the growing file be seen beside the output, as NAME.preview.mp4, until it is complete",
        )
        metadata: bool = Field(
            True, description="write into the file what made it: prompt, settings, seed; omni run --again repeats it"
        )

    class Inputs(UnitInputs):
        output: Annotated[Path, AfterValidator(check_output)] = Field(
            Path("out/video.mp4"), description="the file to write", json_schema_extra={"short": "-o"}
        )

    settings: Settings

    @hookimpl(wrapper=True)
    def begin_job(self, job: Job) -> Iterator[None]:
        """After all others, when the length and the size of the video are known."""
        result = yield
        self._open(job)
        return result

    def _open(self, job: Job) -> None:
        if job.first_frame >= job.length:
            return  # an earlier run has made all frames
        height, width = job.size
        begin = job.first_frame / job.fps
        soundtrack: Soundtrack | None = job.get("soundtrack")
        writer = VideoWriter(
            job.inputs(self).output,
            width=width,
            height=height,
            fps=job.fps,
            soundtrack=None if soundtrack is None else replace(soundtrack, start_seconds=begin),
            duration=job.length / job.fps - begin,
            crf=self.settings.crf,
            preview=self.settings.preview,
            metadata=self._metadata(job),
        )
        job["write-video.writer"] = writer
        job.resources.push(lambda kind, error, trace: leave(writer, error))

    def _metadata(self, job: Job) -> dict[str, str]:
        """What made the video, as texts of the file; nothing if that is longer than files should carry."""
        text = json.dumps(recipe(job.loop.plan, job)) if self.settings.metadata else ""
        if len(text) > LONGEST_RECORD:
            log.warning("the file will not say what made it, since that takes %d characters", len(text))
        return {"comment": text} if 0 < len(text) <= LONGEST_RECORD else {}

    @hookimpl
    def output_frames(self, window: Window, frames: np.ndarray) -> None:
        writer: VideoWriter = window.job["write-video.writer"]
        writer.write(frames)

    @hookimpl
    def end_window(self, window: Window) -> None:
        window.job["write-video.writer"].flush(wait=False)

    @hookimpl
    def end_job(self, job: Job) -> None:
        if "write-video.writer" in job:
            job.results["video"] = job["write-video.writer"].close()


def leave(writer: VideoWriter, error: BaseException | None) -> None:
    """Keep what an interrupted job had finished, beside the place of the whole video; the error stays the job's own."""
    if error is not None and not isinstance(error, Cancelled) and (line := writer.keep()):
        error.add_note(line)
    writer.abort()
