"""Writing the video: H.264 pictures and AAC sound, window by window."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import torch
from einops import rearrange
from pydantic import AfterValidator, Field
from torch import Tensor

from omniavatar.engine.scopes import Job, Window
from omniavatar.engine.unit import AudioFile, PipelineUnit, UnitInputs, UnitSettings
from omniavatar.errors import OmniError
from omniavatar.hookspecs import hookimpl
from omniavatar.media.video import Soundtrack, VideoWriter, check_output

log = logging.getLogger(__name__)


class WriteVideo(PipelineUnit):
    """The file: frames are encoded as windows finish, so memory does not grow, and the name appears when all is done.

    A unit that changes what is shown, but not what the next window continues from, provides "output_frames".
    A run that stops early leaves the windows that were finished as NAME.partial.mp4.
    """

    name = "write-video"
    needs = ("frames",)
    uses = ("output_frames", "audio_delay")
    main_rank_only = True
    rehearses = False

    class Settings(UnitSettings):
        crf: int = Field(18, ge=0, le=51, description="H.264 quality, 0 lossless to 51 worst")

    class Inputs(UnitInputs):
        output: Annotated[Path, AfterValidator(check_output)] = Field(
            Path("out/video.mp4"), description="the file to write", json_schema_extra={"short": "-o"}
        )
        audio: AudioFile | None = Field(None, description="the voice, any sound or video file that ffmpeg reads")

    settings: Settings

    @hookimpl
    def end_window(self, window: Window) -> None:
        writer: VideoWriter = window.job.once("write-video.writer", lambda: self._open(window.job))
        frames: Tensor = window["output_frames" if "output_frames" in window else "frames"]
        writer.write(to_bytes(frames[0, :, window.span.keep]).numpy())

    @hookimpl
    def end_job(self, job: Job) -> None:
        job.results["video"] = job["write-video.writer"].close()

    def _open(self, job: Job) -> VideoWriter:
        inputs = job.inputs(self)
        delay: float = job.get("audio_delay") or 0.0
        sound = Soundtrack(inputs.audio, delay) if inputs.audio is not None else None
        height, width = job.size
        writer = VideoWriter(
            inputs.output, width=width, height=height, fps=job.fps, soundtrack=sound, crf=self.settings.crf
        )
        job.resources.push(lambda kind, error, trace: _leave(writer, error))
        return writer


def to_bytes(frames: Tensor) -> Tensor:
    """Pictures (c t h w) in [0, 1] as bytes (t h w c) on the CPU."""
    return rearrange(frames.mul(255).round().clamp(0, 255).to(torch.uint8), "c t h w -> t h w c").cpu()


def _leave(writer: VideoWriter, error: BaseException | None) -> None:
    """Keep what an interrupted job had finished, beside the place of the whole video; the error stays the job's own."""
    try:
        if error is not None and writer.frames_written:
            partial = writer.close(writer.path.with_suffix(".partial.mp4"))
            error.add_note(f"the {writer.frames_written} finished frames are in {partial}")
    except OmniError as failure:
        log.warning("the finished frames are lost: %s", failure)
    finally:
        writer.abort()
