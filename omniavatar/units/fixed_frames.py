"""Fixed frames: what makes one long video of many windows, and the picture its first frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from omniavatar.engine.geometry import Geometry, Patch
from omniavatar.engine.pictures import encode
from omniavatar.engine.residency import IdleInSteps
from omniavatar.engine.saving import SavesMemory
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.engine.windows import check_windows, plan_spans
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.draft import Draft
    from omniavatar.engine.scopes import Job, Step, Window
    from omniavatar.engine.windows import Span


class FixedFrames(PipelineUnit, IdleInSteps, SavesMemory):
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
        window_frames: int | None = Field(None, ge=2, description="frames of a window, 4n+1, instead of max_tokens")
        full_windows: bool = Field(
            False, description="denoise the last window in full length, as the first OmniAvatar program does"
        )

        tiled: bool = Field(False, description="encode in overlapping tiles: less memory, twice the work")

    settings: Settings

    def smaller(self, work: str, window: Window | None) -> Mapping[str, Any]:
        if work == "prepare" and window is not None and not self.settings.tiled:
            return {"tiled": True}
        if work != "denoise" or window is None:
            return {}
        geometry = window.engine.geometry
        frames = geometry.rounded_down(window.span.frames * 2 // 3)
        if frames <= self.settings.overlap:
            return {}
        if self.settings.window_frames is not None:
            return {"window_frames": frames}
        height, width = window.job.size
        return {"max_tokens": math.ceil(frames * height * width / math.prod(geometry.token))}

    @hookimpl
    def check_request(self, draft: Draft) -> None:
        geometry, settings = draft.geometry, self.settings
        if geometry is None:
            return
        if settings.window_frames is not None:
            check_windows(settings.window_frames, settings.overlap, geometry)
        elif draft.size is not None:
            check_windows(self._frames_at(draft.size, geometry), settings.overlap, geometry)

    def _frames_at(self, size: tuple[int, int], geometry: Geometry) -> int:
        """How long the windows of a video of this height and width are. Raises PlanError if that is too short."""
        tokens, token = self.settings.max_tokens, geometry.token
        shortest = geometry.rounded_up(self.settings.overlap + 1)
        frames = geometry.frames_for(tokens, *size)
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
        settings, geometry = self.settings, job.engine.geometry
        length = settings.window_frames or self._frames_at(job.size, geometry)
        first = 0 if job.get("image_latent") is None else 1
        return plan_spans(job.length, length, settings.overlap, geometry, first_given=first, full=settings.full_windows)

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


def largest_size(size: tuple[int, int], pixels: int, token: Patch) -> tuple[int, int] | None:
    """The largest height and width of about the shape of `size` with so many pixels; None if a token is too large."""
    scale = math.sqrt(pixels / math.prod(size))
    height, width = (math.floor(side * scale / step) * step for side, step in zip(size, token[1:], strict=True))
    return (height, width) if height and width else None


def overwrite(window: Window) -> None:
    """Put the given latents (1 c f h w) over the first frames of the video in the window's latents."""
    given: Tensor | None = window["given_latents"]
    if given is not None:
        window.video_latents[:, :, : given.shape[2]] = given
