"""Image to video: the condition channels and image tokens of the Wan networks that animate a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from omniavatar.sdk import (
    ENCODE_TILING,
    CheckpointError,
    IdleInSteps,
    ImageFile,
    InputError,
    ReferenceImage,
    hookimpl,
    load_image,
    torch,
)
from omniavatar_i2v.condition import TEMPORAL_FACTOR, behind_leading, image_condition, no_condition

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.sdk import Draft, Engine, Forward, Job, Models, Plan, Window

SIZES_480P = ((480, 832), (544, 720), (640, 640), (720, 544), (832, 480))


class ImageToVideo(ReferenceImage, IdleInSteps):
    """A picture that the video starts from, and one that it may end with, for image-to-video transformers.

    It stands in the plan instead of reference-image. Size and fit are chosen by the first picture. Later windows of a
    long video are conditioned on the frames that they take over; the end picture belongs to the last frame of the last
    one. Networks with CLIP tokens see the pictures in every window. Guidance keeps the pictures in all branches.
    Without a picture all of this is zero, which only the Fun InP models were trained for.
    """

    name = "image-to-video"
    needs = ("prompt_embedding",)
    uses = ("previous.frames",)
    provides: ClassVar[tuple[str, ...]] = ("image_latent", "condition", "image_features")  # type: ignore[assignment]
    roles: ClassVar[tuple[str, ...]] = ("vae", "dit")  # type: ignore[assignment]
    optional_roles = ("image_encoder",)
    idle_in_steps: ClassVar[tuple[str, ...]] = ("vae", "image_encoder")

    class Settings(ReferenceImage.Settings):
        sizes: tuple[tuple[int, int], ...] = Field(
            SIZES_480P, min_length=1, description="sizes to choose from, [height, width] in pixels"
        )

    class Inputs(ReferenceImage.Inputs):
        end_image: ImageFile | None = Field(None, description="the last frame, any format that Pillow reads")

    settings: Settings

    def check(self, plan: Plan, models: Models) -> None:
        """See that a network that takes image tokens gets them from an encoder of its width."""
        taken = clip_dim(models)
        if taken is None:
            return
        if "image_encoder" not in models:
            raise CheckpointError(
                "the transformer takes image tokens and no given file makes them; "
                "add models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth with --model"
            )
        made = models.config("image_encoder")["dim"]
        if made != taken:
            raise CheckpointError(
                f"the image encoder makes tokens of width {made} and the transformer takes {taken}; "
                "give the encoder that belongs to it"
            )

    @hookimpl
    def check_request(self, draft: Draft) -> None:
        inputs, channels, models = draft.inputs(self), draft.latent_channels, draft.engine.models
        if inputs.end_image is not None and inputs.image is None:
            raise InputError("an end image needs a picture to start from; give one with --image")
        super().check_request(draft)
        draft.condition = None if channels is None else TEMPORAL_FACTOR + channels
        if clip_dim(models) is not None and inputs.image is not None and inputs.end_image is None:
            pictures_seen(models, 1)

    @hookimpl
    def begin_job(self, job: Job) -> None:
        inputs = job.inputs(self)
        super().begin_job(job)
        job["image-to-video.pictures"] = [
            self.fitted(load_image(source), job) for source in (inputs.image, inputs.end_image) if source is not None
        ]
        job["image_features"] = image_features(job.engine, job["image-to-video.pictures"])

    @hookimpl
    def begin_window(self, window: Window) -> None:
        engine = window.engine
        video, known = known_frames(window, window["image-to-video.pictures"])
        channels = no_condition(window.video_latents)
        if known.any():
            tiling = ENCODE_TILING if self.settings.tiled else None
            channels = image_condition(engine.model("vae"), video.to(engine.device, engine.dtype), known, tiling=tiling)
        window["condition"] = behind_leading(channels, window.job.leading)

    @hookimpl
    def embed(self, forward: Forward) -> None:
        features: Tensor | None = forward["image_features"]
        if features is not None:
            embedded = forward.network.embed_image
            forward.conditions["image"] = forward.memory.once(
                "image-to-video.tokens", lambda: forward.repeated(embedded(features))
            )


def clip_dim(models: Models) -> int | None:
    """The width of the image tokens that the transformer takes; None if it takes none, as that of Wan 2.2."""
    width: int | None = models.config("dit").get("clip_dim")
    return width


def pictures_seen(models: Models, given: int | None = None) -> int:
    """How many pictures the transformer takes tokens of: two if it has learned positions for those of two.

    Raises InputError if fewer are given, but for none.
    """
    positions: int = models.config("dit").get("image_positions", 0)
    wanted = positions // models.config("image_encoder")["tokens"] or 1
    if given and given < wanted:
        raise InputError("this transformer goes from a first to a last picture; give the last one with --end-image")
    return wanted


def image_features(engine: Engine, pictures: list[Tensor]) -> Tensor | None:
    """The CLIP tokens (1 m clip_dim) of pictures (1 3 H W), zeros without one; None if the transformer takes none.

    A last picture has tokens only in a network with learned positions for those of two.
    """
    if clip_dim(engine.models) is None:
        return None
    encoder, wanted = engine.model("image_encoder"), pictures_seen(engine.models, len(pictures))
    if not pictures:
        return torch.zeros(1, wanted * encoder.tokens, encoder.dim, device=engine.device)
    features: Tensor = encoder.side_by_side(torch.cat(pictures[:wanted]).to(engine.device))
    return features


def known_frames(window: Window, pictures: list[Tensor]) -> tuple[Tensor, Tensor]:
    """A window's video (1 3 f H W), 0 where nothing is known, and which frames (f) are known.

    pictures: the first and the last frame of the whole video, as far as they are given, each (1 3 H W).
    The last frame also fills what is denoised beyond the end of the video.
    """
    span = window.span
    start = first_frames(window, pictures)
    video = torch.zeros(1, 3, span.frames, *window.job.size, device=start.device)
    known = torch.zeros(span.frames, dtype=torch.bool)
    video[:, :, : start.shape[2]] = start
    known[: start.shape[2]] = True
    if window.is_last and len(pictures) > 1:
        end = span.keep.stop - 1
        video[:, :, end:] = pictures[1].to(video.device)[:, :, None]
        known[end:] = True
    return video, known


def first_frames(window: Window, pictures: list[Tensor]) -> Tensor:
    """The known frames at the beginning of a window (1 3 g H W): the picture, or what the window before hands over."""
    if window.previous is not None:
        frames: Tensor = window.previous["frames"]
        return frames[:, :, frames.shape[2] - window.span.given :] * 2 - 1
    if pictures:
        return pictures[0][:, :, None]
    return torch.zeros(1, 3, 0, *window.job.size)
