"""Fixed frames: what makes one long video of many windows, and the picture its first frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from omniavatar.engine.pictures import encode
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.engine.windows import TEMPORAL_FACTOR, frames_for_budget, plan_spans
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.engine import Engine
    from omniavatar.engine.scopes import Job, Step, Window
    from omniavatar.engine.windows import Span


class FixedFrames(PipelineUnit):
    """Long video: overlapping windows, each starting from the last frames of the one before, held fixed in denoising.

    The first window starts from the reference image, if there is one.
    """

    name = "fixed-frames"
    needs = ("previous.frames",)
    uses = ("image_latent",)
    provides = ("given_latents",)
    roles = ("vae",)
    idle_in_steps = ("vae",)

    class Settings(UnitSettings):
        overlap: int = Field(13, ge=1, description="frames that a window takes over from the one before, 4n+1")
        max_tokens: int = Field(30_000, ge=64, description="tokens that fit one window; sets its length")
        window_frames: int | None = Field(None, ge=5, description="frames of a window, 4n+1, instead of max_tokens")
        full_windows: bool = Field(
            False, description="denoise the last window in full length, as the first OmniAvatar program does"
        )

        tiled: bool = Field(False, description="encode in overlapping tiles: less memory, twice the work")

        @field_validator("overlap", "window_frames")
        @classmethod
        def _four_n_plus_one(cls, frames: int | None) -> int | None:
            if frames is not None and frames % TEMPORAL_FACTOR != 1:
                below = frames - (frames - 1) % TEMPORAL_FACTOR
                raise ValueError(f"must be 4n+1 frames; the nearest are {below} and {below + TEMPORAL_FACTOR}")
            return frames

    settings: Settings

    def smaller(self, work: str, window: Window | None) -> Mapping[str, Any]:
        if work == "prepare" and window is not None and not self.settings.tiled:
            return {"tiled": True}
        if work != "denoise" or window is None:
            return {}
        frames = (window.span.frames * 2 // 3 - 1) // TEMPORAL_FACTOR * TEMPORAL_FACTOR + 1
        if frames <= self.settings.overlap:
            return {}
        if self.settings.window_frames is not None:
            return {"window_frames": frames}
        height, width = window.job.size
        return {"max_tokens": math.ceil(frames * height * width / pixels_per_token(window.engine))}

    @hookimpl
    def plan_windows(self, job: Job) -> Sequence[Span]:
        settings = self.settings
        length = settings.window_frames or frames_for_budget(
            settings.max_tokens, *job.size, pixels_per_token(job.engine)
        )
        first = 0 if job.get("image_latent") is None else 1
        return plan_spans(job.length, length, settings.overlap, first_given=first, full=settings.full_windows)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        given = window.span.given
        if window.previous is None:
            window["given_latents"] = window.get("image_latent") if given else None
        else:
            frames = window.previous["frames"][:, :, -given:] * 2 - 1
            window["given_latents"] = encode(window.engine, frames, tiled=self.settings.tiled)

    @hookimpl
    def before_step(self, step: Step) -> None:
        overwrite(step.window)

    @hookimpl
    def after_step(self, step: Step) -> None:
        if step.is_last:
            overwrite(step.window)


def pixels_per_token(engine: Engine) -> int:
    """The pixels, of all frames together, that a token of the transformer stands for."""
    vae, (frames, rows, columns) = engine.model("vae"), engine.models.config("dit")["patch_size"]
    pixels: int = TEMPORAL_FACTOR * frames * rows * columns * vae.spatial_factor**2
    return pixels


def overwrite(window: Window) -> None:
    """Put the given latents (1 c f h w) over the first frames of the video in the window's latents."""
    given: Tensor | None = window["given_latents"]
    if given is not None:
        window.video_latents[:, :, : given.shape[2]] = given
