"""Fixed frames: what makes one long video of many windows, and the picture its first frame."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from omniavatar.engine.pictures import encode
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.engine.windows import TEMPORAL_FACTOR, check_windows, frames_for_budget, plan_spans
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.draft import Draft
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.scopes import Job, Step, Window
    from omniavatar.engine.windows import Span

Extent = tuple[int, int, int]
"""Frames, and height and width in pixels."""


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
        return {"max_tokens": math.ceil(frames * height * width / math.prod(token_extent(window.engine)))}

    @hookimpl(wrapper=True)
    def check_request(self, draft: Draft) -> Iterator[None]:
        """When the size is known."""
        yield
        if self.settings.window_frames is not None:
            check_windows(self.settings.window_frames, self.settings.overlap)
        elif draft.size is not None and draft.latent_pixels is not None and draft.patch is not None:
            self._frames_at(draft.size, extent(draft.patch, draft.latent_pixels))

    def _frames_at(self, size: tuple[int, int], token: Extent) -> int:
        """How long the windows of a video of this height and width are. Raises PlanError if that is too short."""
        tokens, shortest = self.settings.max_tokens, self.settings.overlap + TEMPORAL_FACTOR
        frames = frames_for_budget(tokens, *size, math.prod(token))
        if frames < shortest:
            largest = largest_size(size, tokens * math.prod(token) // shortest, token)
            roomy = max(shortest, 2 * self.settings.overlap - 1)
            raise PlanError(
                f"size {size[1]}x{size[0]} is too large for this model: {tokens} tokens hold {max(0, frames)} frames a "
                f"chunk, {shortest} are needed; use {f'{largest[1]}x{largest[0]} or less, or ' if largest else ''}"
                f"fixed-frames.max_tokens={math.ceil(roomy * size[0] * size[1] / math.prod(token))}"
            )
        return frames

    @hookimpl
    def plan_windows(self, job: Job) -> Sequence[Span]:
        settings = self.settings
        length = settings.window_frames or self._frames_at(job.size, token_extent(job.engine))
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


def token_extent(engine: Engine) -> Extent:
    """What a token of the transformer stands for."""
    return extent(engine.models.config("dit")["patch_size"], engine.model("vae").spatial_factor)


def extent(patch: Sequence[int], latent_pixels: int) -> Extent:
    """What a patch (frames, rows, columns) of latents stands for, of which each covers so many pixels of a side."""
    frames, rows, columns = patch
    return TEMPORAL_FACTOR * frames, latent_pixels * rows, latent_pixels * columns


def largest_size(size: tuple[int, int], pixels: int, token: Extent) -> tuple[int, int] | None:
    """The largest height and width of about the shape of `size` with so many pixels; None if a token is too large."""
    scale = math.sqrt(pixels / math.prod(size))
    height, width = (math.floor(side * scale / step) * step for side, step in zip(size, token[1:], strict=True))
    return (height, width) if height and width else None


def overwrite(window: Window) -> None:
    """Put the given latents (1 c f h w) over the first frames of the video in the window's latents."""
    given: Tensor | None = window["given_latents"]
    if given is not None:
        window.video_latents[:, :, : given.shape[2]] = given
