"""Size and length of a video: what units say of them in `plan_size` and `plan_length`, before loading and after.

Both hooks are asked twice: with the `Draft`, of which the headers of files tell, and with the `Job`, before
`begin_job`, when the networks are there. Both are an `Outline`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omniavatar.engine.pictures import MULTIPLE, check_size
from omniavatar.media.video import probe_video

if TYPE_CHECKING:
    from pydantic import BaseModel

    from omniavatar.engine.engine import Engine
    from omniavatar.engine.geometry import Geometry
    from omniavatar.engine.hooks import Hooks
    from omniavatar.engine.scopes import Job, Request
    from omniavatar.engine.unit import PipelineUnit


@dataclass(frozen=True)
class Length:
    """How long a unit lets a video be, in frames.

    frames: or what finds out, which is not asked before the job begins; so a sound need not be decoded for the draft.
    is_limit: the video is not longer than this, whatever else is said; otherwise it counts where nothing else is.
    """

    frames: int | Callable[[Job], int]
    is_limit: bool = True

    def of(self, job: Job) -> int:
        """The number of frames, found out if need be."""
        return self.frames(job) if callable(self.frames) else self.frames


class Outline:
    """What is known of a video that has not begun: a `Draft`, or a `Job`.

    frames: its length, height, width: pixels; each as the request says it, else as units do, None while nobody has.
    """

    engine: Engine
    request: Request
    inputs_by_unit: Mapping[str, BaseModel]
    fps: int
    frames: int | None
    height: int | None
    width: int | None

    def _ask(self, request: Request, inputs: Mapping[str, BaseModel]) -> None:
        """Take over what the request says."""
        self.request = request
        self.inputs_by_unit = inputs
        self.fps = request.fps
        self.frames = None if request.seconds is None else max(1, round(request.seconds * request.fps))
        self.height, self.width = request.height, request.width

    def inputs(self, unit: PipelineUnit) -> Any:
        """The validated `Inputs` of this unit."""
        return self.inputs_by_unit[unit.name]

    def given(self, name: str) -> Any:
        """The input of this name, whichever unit takes it; None without one."""
        return next((getattr(values, name) for values in self.inputs_by_unit.values() if hasattr(values, name)), None)

    @property
    def geometry(self) -> Geometry | None:
        """What latents and tokens stand for, if all of it is known."""
        raise NotImplementedError

    @property
    def multiple(self) -> int:
        """What both sides of the video are multiples of: the pixels of a token, Wan 2.1's while they are not known."""
        return MULTIPLE if self.geometry is None else self.geometry.multiple


def settle_size(hooks: Hooks, video: Outline) -> None:
    """Give a video the size that the first unit says, unless it has one. Raises InputError if it is not usable."""
    if video.height is None or video.width is None:
        video.height, video.width = hooks.plan_size(video) or (None, None)
    if video.height is not None and video.width is not None and video.geometry is not None:
        check_size((video.height, video.width), video.geometry.multiple)


def settle_length(hooks: Hooks, job: Job) -> None:
    """Give a job the length that is asked for, within the limits of units, or else the first that one offers."""
    lengths = hooks.plan_length(job)
    bounds = [length.of(job) for length in lengths if length.is_limit]
    if job.frames is not None:
        bounds.append(job.frames)
    if bounds or lengths:
        job.frames = min(bounds) if bounds else lengths[0].of(job)


def length_of(fps: int, *sources: Any, is_limit: bool = True) -> Length | None:
    """The length of the shortest of the videos, at this rate; None without any, and for pictures alone."""
    found = [probe_video(source).frames_at(fps) for source in sources if source is not None]
    frames = [count for count in found if count is not None]
    return Length(min(frames), is_limit) if frames else None
