"""A sound beside the pictures that nothing in them follows."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from omniavatar.engine.scopes import Job
from omniavatar.engine.unit import AudioFile, PipelineUnit, UnitInputs
from omniavatar.hookspecs import hookimpl
from omniavatar.media.sound import Soundtrack as Track


class Soundtrack(PipelineUnit):
    """A sound that is put into the file as it is, for plans whose pictures follow none; the unit audio does it itself.

    It begins with the video and is cut, or filled up with silence, to its length.
    """

    name = "soundtrack"
    provides = ("soundtrack",)
    conflicts: ClassVar = {
        "audio-adapter": "its audio layers would hear nothing; the unit audio puts the sound into the file as well"
    }

    class Inputs(UnitInputs):
        audio: AudioFile | None = Field(None, description="what is heard: any audio or video file that ffmpeg reads")

    @hookimpl
    def begin_job(self, job: Job) -> None:
        source = job.inputs(self).audio
        job["soundtrack"] = None if source is None else Track(source)
