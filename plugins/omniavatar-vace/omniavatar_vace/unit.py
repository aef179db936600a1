"""The unit: inputs to context once per window, hints once per transformer call."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from omniavatar.sdk import (
    SIZE_MULTIPLE,
    CheckpointError,
    Footage,
    IdleInSteps,
    ImageFile,
    InputError,
    InputKind,
    PipelineUnit,
    PlanError,
    UnitInputs,
    UnitSettings,
    VideoFile,
    encode_pictures,
    fit_image,
    functional,
    hookimpl,
    length_of,
    listed,
    load_image,
    opened_footage,
    picture_size,
    probe_video,
    size_near,
    torch,
)
from omniavatar_vace.context import filled, on_white, vace_context
from omniavatar_vace.layers import check_last, known_layers

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from omniavatar.sdk import Draft, Engine, Footage, Forward, Job, Length, Outline, Window

GREY = 0.5


class VaceUnit(PipelineUnit, IdleInSteps):
    """VACE: the video follows a control video, keeps what a mask protects, and shows what reference pictures show.

    The control video is a pose, depth, scribble or grey video to follow, or a real one of which the mask says what is
    made anew (white) and what stays (black): inpainting, and outpainting where the video has a border to be filled.
    Behind its end nothing is given, which extends it. Reference pictures show a person, a thing or a place. Without
    another unit that sets them, size and length of the video are those of the control video.
    """

    name = "vace"
    uses = ("previous.frames",)
    provides = ("vace_context",)
    roles = ("dit", "vae", "vace")
    companions = ("vace",)
    idle_in_steps = ("vae",)

    class Settings(UnitSettings):
        scale: float = Field(1.0, ge=0, le=10, description="strength of the hints; 1 as in training")
        reference_fit: Literal["whole", "cover"] = Field(
            "whole", description="'whole' shows all of a reference picture on white, 'cover' crops it to the size"
        )
        extend: bool = Field(True, description="give the branch the frames taken over from the window before")
        pixels: int = Field(
            480 * 832,
            ge=SIZE_MULTIPLE**2,
            description="about how many pixels a frame has, if nothing else sets the size",
        )
        tiled: bool = Field(False, description="encode in overlapping tiles: less memory, twice the work")

    class Inputs(UnitInputs):
        control_video: VideoFile | None = Field(None, description="what to follow or to change")
        control_mask: VideoFile | None = Field(None, description="video or picture, white where frames are made anew")
        reference_images: Annotated[tuple[ImageFile, ...], BeforeValidator(listed), InputKind("image|[image, ...]")] = (
            Field((), description="pictures of who or what the video shows, one or [several]")
        )

    settings: Settings

    @hookimpl
    def setup(self, engine: Engine) -> None:
        dit, vae = engine.model("dit"), engine.model("vae")
        channels = 2 * vae.z_dim + vae.spatial_factor**2
        for role in engine.companions("vace"):
            branch = engine.model(role)
            check_last(role, branch.layers, len(dit.blocks))
            check_channels(role, branch.in_dim, channels)

    @hookimpl(trylast=True)
    def plan_size(self, video: Outline) -> tuple[int, int] | None:
        """By the shape of the first thing given; last, since other units may set it."""
        inputs = video.inputs(self)
        for source in (inputs.control_video, inputs.control_mask):
            if source is not None:
                info = probe_video(source)
                return size_near(info.height, info.width, self.settings.pixels, video.multiple)
        if not inputs.reference_images:
            raise InputError("the size of the video is unknown; give one with --size, or something to follow")
        return size_near(*picture_size(inputs.reference_images[0]), self.settings.pixels, video.multiple)

    @hookimpl
    def plan_length(self, video: Outline) -> Length | None:
        return length_of(video.fps, video.inputs(self).control_video, is_limit=False)

    @hookimpl
    def check_request(self, draft: Draft) -> None:
        inputs, channels, cell = draft.inputs(self), draft.latent_channels, draft.latent_pixels
        draft.leading += len(inputs.reference_images)
        for role in draft.engine.companions("vace"):
            own, blocks = draft.config(role), draft.config("dit").get("num_layers")
            check_width(role, own.get("dim"), draft.config("dit").get("dim"))
            if blocks is not None:
                check_last(role, known_layers(own.get("layers")), blocks)
            taken = own.get("in_dim")
            if taken is not None and channels is not None and cell is not None:
                check_channels(role, taken, 2 * channels + cell**2)

    @hookimpl(wrapper=True, specname="check_request")
    def check_leading(self, draft: Draft) -> Iterator[None]:
        """When all have said what they put in front of the video."""
        yield
        inputs = draft.inputs(self)
        if inputs.control_video is not None or inputs.control_mask is not None or inputs.reference_images:
            stand_alone(len(inputs.reference_images), draft.leading)

    @hookimpl
    def begin_job(self, job: Job) -> None:
        inputs = job.inputs(self)
        for name, source in (("video", inputs.control_video), ("mask", inputs.control_mask)):
            job[f"vace.{name}"] = None if source is None else opened_footage(source, job)
        job["vace.references"] = [self._reference(job, source) for source in inputs.reference_images]
        job.leading += len(inputs.reference_images)

    def _reference(self, job: Job, source: Path | np.ndarray) -> Tensor:
        """The latent of a reference picture (1 c 1 h w)."""
        fit = fit_image if self.settings.reference_fit == "cover" else on_white
        return encode_pictures(job.engine, fit(load_image(source), job.size).unsqueeze(2), tiled=self.settings.tiled)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        video, mask, references = (window[f"vace.{name}"] for name in ("video", "mask", "references"))
        window["vace_context"] = None
        if video is None and mask is None and not references:
            return
        stand_alone(len(references), window.job.leading)
        engine = window.engine
        given = frames_of(video, window)
        pictures = shown(given, window, GREY).to(engine.device) * 2 - 1
        held = frames_of(mask, window, hold=mask is not None and mask.is_still)[
            :, :1
        ]  # what the mask protects must be there
        changes = shown(held if video is None else held[:, :, : given.shape[2]], window, 1.0).to(engine.device)
        if self.settings.extend and window.previous is not None and "frames" in window.previous:
            count, frames = window.span.given, window.previous["frames"]
            pictures[:, :, :count] = frames[:, :, frames.shape[2] - count :] * 2 - 1
            changes[:, :, :count] = 0
        window["vace_context"] = vace_context(
            pictures,
            changes,
            references,
            partial(encode_pictures, engine, tiled=self.settings.tiled),
            engine.model("vae").spatial_factor,
        )

    @hookimpl(tryfirst=True)
    def before_block(self, forward: Forward, index: int) -> None:
        """Only where the blocks run, so that a cache skips the branch too; first, to see the tokens as embedded."""
        if forward["vace_context"] is not None:
            forward.once("vace.hints", lambda: hints(forward))

    @hookimpl
    def after_block(self, forward: Forward, index: int) -> None:
        if "vace.hints" in forward and index in branch_for(forward).layers:
            forward.x = forward.x + self.settings.scale * next(forward["vace.hints"])


def check_width(role: str, own: int | None, width: int | None) -> None:
    """Raise CheckpointError if a branch has not the width of the transformer, as far as both are known."""
    if None not in (own, width) and own != width:
        raise CheckpointError(
            f"the VACE branch '{role}' has width {own} and the transformer has width {width}; "
            "give the branch made for it"
        )


def check_channels(role: str, taken: int, made: int) -> None:
    """Raise CheckpointError unless a branch takes as many channels as the VAE makes."""
    if taken != made:
        raise CheckpointError(
            f"the VACE branch '{role}' takes {taken} channels, with this VAE there are {made}; "
            "give the VAE that it was trained with"
        )


def stand_alone(count: int, leading: int) -> None:
    """Raise PlanError if there are more frames in front of the video than reference pictures."""
    if count != leading:
        raise PlanError(
            f"vace puts {count} frame{'s' * (count != 1)} in front of the video and another unit more of them; "
            "leave one of the two out"
        )


def frames_of(footage: Footage | None, window: Window, *, hold: bool = False) -> Tensor:
    """The frames of a window (1 3 n H W) in [0, 1], as far as there are any, or all, and the video goes."""
    span, job = window.span, window.job
    if footage is None:
        return torch.empty(1, 3, 0, *job.size, device=window.engine.device)
    return footage.read(span.start, min(span.stop, job.length), hold=hold, device=window.engine.device)


def shown(frames: Tensor, window: Window, nothing: float) -> Tensor:
    """A window's frames (1 c t H W) from those that there are (1 c n H W), and `nothing` behind them.

    Behind the end of the video itself the last frame stays, since it shares a latent with frames that are seen.
    """
    span = window.span
    return filled(frames, min(span.stop, window.job.length) - span.start, span.frames, nothing)


def branch_for(forward: Forward) -> Any:
    """The branch that belongs to the transformer of this call."""
    return forward.engine.companion("vace", forward)


def hints(forward: Forward) -> Iterator[Tensor]:
    """The hints for a call, from this rank's tokens as the first block gets them."""
    branch = branch_for(forward)
    control = branch.embed(forward.cut(forward["vace_context"]))
    tokens = forward.x.shape[1] if forward.sharding is None else forward.sharding.length
    if control.shape[1] > tokens:
        raise PlanError(
            f"the VACE context has {control.shape[1]} tokens and the transformer call {tokens}; "
            "leave out the unit that makes the call shorter"
        )
    control = forward.shard(functional.pad(control, (0, 0, 0, tokens - control.shape[1])))
    made: Iterator[Tensor] = branch.hints(control, forward.x, forward.block_inputs(0))
    return made
