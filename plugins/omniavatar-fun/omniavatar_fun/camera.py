"""The camera: rays of a direction or a trajectory, added to the tokens of the video."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from omniavatar_i2v.condition import behind_leading
from pydantic import AfterValidator, Field, field_validator

from omniavatar.sdk import (
    IdleInSteps,
    InputError,
    InputKind,
    PipelineUnit,
    UnitInputs,
    UnitSettings,
    functional,
    hookimpl,
    input_file,
    torch,
)
from omniavatar_fun.shared import OTHER_CHANNELS, check_width, picture_channels, tell_channels
from omniavatar_fun.trajectory import (
    ENTRY,
    ORIGIN,
    SPEED,
    Direction,
    check_entry,
    directed,
    folded_rays,
    read_trajectory,
)

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.sdk import Draft, Forward, Job, Window

ROLE = "fun_camera"
TrajectoryFile = Annotated[Path, AfterValidator(partial(input_file, what="trajectory")), InputKind("text file")]


class FunCamera(PipelineUnit, IdleInSteps):
    """How the camera moves, for Fun Control-Camera transformers: in a direction, or along a trajectory.

    It stands beside image-to-video, whose picture is the first frame. Every window of a long video is told the way from
    its own first frame. Behind the end of a trajectory the camera rests. With neither, the model decides.
    """

    name = "fun-camera"
    needs = ("condition",)
    provides = ("condition",)
    conflicts: ClassVar = {
        "reference-image": OTHER_CHANNELS,
        "animate-image": OTHER_CHANNELS,
        "fun-control": "no Fun model takes both a camera and a control video",
    }
    roles: ClassVar[tuple[str, ...]] = ("vae", "dit", ROLE)
    companions = (ROLE,)
    idle_in_steps = ("vae",)

    class Settings(UnitSettings):
        origin: tuple[float, ...] = Field(
            ORIGIN,
            min_length=ENTRY,
            max_length=ENTRY,
            description="the camera that a direction starts from, as a line of a trajectory",
        )

        @field_validator("origin")
        @classmethod
        def _usable(cls, origin: tuple[float, ...]) -> tuple[float, ...]:
            check_entry(origin)
            return origin

    class Inputs(UnitInputs):
        camera: Direction | None = Field(None, description="where the camera goes")
        camera_speed: float = Field(SPEED, ge=0, le=1, description="how far it goes in a frame, with --camera")
        camera_trajectory: TrajectoryFile | None = Field(
            None, description="a camera pose in every line, as in RealEstate10K: time, fx, fy, cx, cy, 0, 0, 3x4 matrix"
        )

    settings: Settings

    @hookimpl
    def check_request(self, draft: Draft) -> None:
        check_width(draft, ROLE)
        inputs = draft.inputs(self)
        if inputs.camera is not None and inputs.camera_trajectory is not None:
            raise InputError("a camera goes in a direction or along a trajectory; give --camera or --camera-trajectory")
        if inputs.camera_trajectory is not None:
            read_trajectory(inputs.camera_trajectory)
        tell_channels(draft, is_controlled=False)

    @hookimpl
    def begin_job(self, job: Job) -> None:
        path = job.inputs(self).camera_trajectory
        job["fun-camera.trajectory"] = None if path is None else read_trajectory(path)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        window["condition"] = behind_leading(picture_channels(window, 0), window.job.leading)
        window["fun-camera.entries"] = self._entries(window)

    def _entries(self, window: Window) -> Tensor | None:
        """The camera of every frame of a window (f 19)."""
        inputs, trajectory = window.job.inputs(self), window["fun-camera.trajectory"]
        frames = torch.arange(window.span.start, window.span.stop)
        if trajectory is not None:
            cameras: Tensor = trajectory[frames.clamp(max=len(trajectory) - 1)]
            return cameras
        if inputs.camera is not None:
            return directed(inputs.camera, frames, inputs.camera_speed, self.settings.origin)
        return None

    @hookimpl
    def embed(self, forward: Forward) -> None:
        if forward["fun-camera.entries"] is not None:
            role = forward.engine.companion_role(ROLE, forward)
            tokens = forward.window.once(f"fun-camera.tokens.{role}", lambda: camera_tokens(forward, role))
            _, rows, columns = forward.grid
            places = token_places(forward.frame_index, rows * columns, nowhere=tokens.shape[1] - 1)
            forward.x = forward.x + tokens[:, places]


def camera_tokens(forward: Forward, role: str) -> Tensor:
    """What is added to every token of the window's video, and zeros for a token of no frame: (1 s+1 d)."""
    adapter, engine = forward.engine.model(role), forward.engine
    frames = folded_rays(forward["fun-camera.entries"], forward.job.size, engine.device)
    return functional.pad(torch.cat([adapter(frame) for frame in frames], dim=1), (0, 0, 0, 1))


def token_places(frame_index: Tensor, per_frame: int, nowhere: int) -> Tensor:
    """For every token of a call (s) which token of the window's video it is; `nowhere` if it belongs to no frame.

    The tokens of a frame are all there and in order; which frames are there, and what stands between them, is open.
    """
    is_video = frame_index >= 0
    within = (is_video.cumsum(0) - 1) % per_frame
    return torch.where(is_video, frame_index * per_frame + within, nowhere)
