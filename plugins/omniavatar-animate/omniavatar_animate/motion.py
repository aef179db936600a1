"""How the person moves and looks: a video of drawn poses, and one of a face."""

from __future__ import annotations

from typing import TYPE_CHECKING

from einops import rearrange, repeat
from pydantic import Field

from omniavatar.sdk import (
    CheckpointError,
    IdleInSteps,
    PipelineUnit,
    UnitInputs,
    UnitSettings,
    VideoFile,
    encode_pictures,
    functional,
    hookimpl,
    length_of,
    opened_footage,
    torch,
)
from omniavatar_animate.footage import frames_of

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.sdk import Branch, Draft, Engine, Footage, Forward, Job, Length, Outline, Window

BLACK = -1.0


class AnimateMotion(PipelineUnit, IdleInSteps):
    """Movement and expression, from a video of drawn poses and a video of a face; frame n goes with frame n.

    Either may be left out. The shorter of the two limits the length of the video. Guidance branches that drop the
    condition "face" see a black one; the pose is the same in all branches.
    """

    name = "animate-motion"
    provides = ("pose_latents", "face_tokens")
    roles = ("vae", "dit", "animate_adapter")
    idle_in_steps = ("vae",)

    class Settings(UnitSettings):
        tiled: bool = Field(False, description="encode poses in overlapping tiles: less memory, twice the work")

    class Inputs(UnitInputs):
        pose: VideoFile | None = Field(None, description="a video of drawn poses")
        face: VideoFile | None = Field(None, description="a video of a face, cropped to it")

    settings: Settings

    @hookimpl
    def setup(self, engine: Engine) -> None:
        """See that the layers are those of this transformer."""
        dit, adapter = engine.model("dit"), engine.model("animate_adapter")
        if adapter.last_block >= len(dit.blocks):
            raise CheckpointError(
                f"the layers of Animate go up to block {adapter.last_block} and the transformer has {len(dit.blocks)} "
                "blocks; give both from one file"
            )
        if adapter.face_layers * adapter.face_every < len(dit.blocks):
            raise CheckpointError(
                f"the {adapter.face_layers} layers for the face, one behind every {adapter.face_every}th block, do not "
                f"reach the last of {len(dit.blocks)} blocks; put the config.json of the checkpoint, with "
                "'face_every', beside its file"
            )

    @hookimpl
    def check_request(self, draft: Draft) -> None:
        width, needed = draft.config("animate_adapter").get("dim"), draft.config("dit").get("dim")
        if width != needed:
            raise CheckpointError(
                f"the layers of Animate have width {width} and the transformer has width {needed}; give both from one "
                "file"
            )

    @hookimpl
    def plan_length(self, video: Outline) -> Length | None:
        inputs = video.inputs(self)
        return length_of(video.fps, inputs.pose, inputs.face)

    @hookimpl
    def begin_job(self, job: Job) -> None:
        inputs = job.inputs(self)
        side = job.engine.model("animate_adapter").face_size
        for name, size in (("pose", job.size), ("face", (side, side))):
            source = getattr(inputs, name)
            job[f"animate-motion.{name}"] = None if source is None else opened_footage(source, job, size)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        pose: Footage | None = window["animate-motion.pose"]
        face: Footage | None = window["animate-motion.face"]
        window["pose_latents"] = None
        if pose is not None:
            pictures = frames_of(pose, window) * 2 - 1
            window["pose_latents"] = encode_pictures(window.engine, pictures, tiled=self.settings.tiled)
        window["face_tokens"] = None if face is None else encode_face(window, frames_of(face, window) * 2 - 1)

    @hookimpl
    def embed(self, forward: Forward) -> None:
        if forward["pose_latents"] is not None:
            pose = forward.window.once("animate-motion.pose_tokens", lambda: pose_tokens(forward))
            frames = rearrange(forward.frame_index, "(f n) -> f n", f=forward.grid[0])[:, 0]
            forward.x = forward.x + rearrange(pose[:, frames], "b f n d -> b (f n) d")

    @hookimpl
    def after_block(self, forward: Forward, index: int) -> None:
        adapter = forward.engine.model("animate_adapter")
        layer = adapter.layer(index)
        if layer is not None and forward["face_tokens"] is not None:
            faces = forward.memory.once("animate-motion.faces", lambda: forward.stacked(face_of))
            sees = forward.memory.once("animate-motion.sees", lambda: own_face(forward.frame_index, faces))
            forward.x = forward.x + adapter.expression(layer, forward.x, faces, sees)


def encode_face(window: Window, pictures: Tensor) -> Tensor:
    """The tokens (1 t+1 k d) of pictures of a face (1 3 f size size) in [-1, 1]."""
    engine = window.engine
    tokens: Tensor = engine.model("animate_adapter").face(pictures.to(engine.device, engine.dtype))
    return tokens


def face_of(branch: Branch) -> Tensor:
    """The face tokens that a branch sees (1 t+1 k d)."""
    window = branch.window
    tokens: Tensor = window["face_tokens"]
    if branch.drops("face"):
        tokens = window.once("animate-motion.no_face", lambda: encode_face(window, no_face(window)))
    return tokens


def no_face(window: Window) -> Tensor:
    """Black pictures (1 3 f size size)."""
    side = window.engine.model("animate_adapter").face_size
    return torch.full((1, 3, window.span.frames, side, side), BLACK)


def pose_tokens(forward: Forward) -> Tensor:
    """What is added to the tokens of each frame (1 t+1 n d); zeros last, for a frame that is not of the video."""
    tokens: Tensor = forward.engine.model("animate_adapter").pose(forward["pose_latents"])
    return functional.pad(tokens, (0, 0, 0, 0, 0, 1))


def own_face(frame_index: Tensor, faces: Tensor) -> Tensor:
    """Which face tokens (b t+1 k d) each token sees (s (t+1)*k): those of its frame, or the first, of no frame."""
    frames = torch.arange(faces.shape[1], device=frame_index.device) - 1
    return repeat(frame_index[:, None] == frames, "s t -> s (t k)", k=faces.shape[2])
