"""Borders between chunks: the jump in colour and edges is removed where the picture is static."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl
from omniavatar.lazy import functional, torch

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.scopes import Frames, Window


class SmoothBorders(PipelineUnit):
    """Remove the jump in colour and edges at chunk borders where the picture is static, and fade the correction out.

    The frames that a chunk takes over pass through the VAE once more, which changes colours and edges, and the first
    new frame does not quite continue them: it should differ from the last as the second does from it. Both are put
    back in the first new frame, and a little less in each that follows: all of the former, of the latter what is small;
    large differences are motion. The next chunk continues from the frames as they were.
    """

    name = "smooth-borders"
    needs = ("frames", "previous.border_frame")
    provides = ("border_frame",)

    class Settings(UnitSettings):
        fade: int = Field(12, ge=1, le=100, description="frames until the difference is gone")
        still: float = Field(
            8, ge=0, le=255, description="grey levels of 255 by which nothing moves; from twice as much on it is motion"
        )

    settings: Settings

    @hookimpl
    def postprocess_frames(self, window: Window, frames: Frames) -> None:
        """Correct the first new frames of a window, and keep the last one as it is shown."""
        before, first = window.previous, window.span.start + window.span.given
        if before is not None and window.span.given and frames.start < first + self.settings.fade:
            self._correct(window, frames, before["border_frame"], first)
        if frames.stop == window.span.stop:
            window["border_frame"] = frames.pixels[:, :, -1].clone()

    def _correct(self, window: Window, frames: Frames, last: Tensor, first: int) -> None:
        """The new frames of a group, of which `first` is the window's first; `last` was shown before it (1 3 h w)."""
        seen: list[Tensor] = window.once("smooth-borders.seen", list)
        for number in (first - 1, first, first + 1):
            if frames.start <= number < frames.stop:
                seen.append(frames.pixels[:, :, number - frames.start].clone())
        new = max(0, first - frames.start)
        count = min(self.settings.fade, window.span.stop - first)
        if new >= frames.pixels.shape[2] or not count:
            return
        wrong = window.once("smooth-borders.wrong", lambda: self._wrong(last, seen, count))
        place = torch.arange(frames.start + new - first, frames.stop - first, device=wrong.device)
        part = (1 - place / self.settings.fade).clamp(min=0) * (place < count)
        corrected = frames.pixels[:, :, new:] + wrong.unsqueeze(2) * part.view(-1, 1, 1)
        frames.pixels = torch.cat([frames.pixels[:, :, :new], corrected.clamp(0, 1)], dim=2)

    def _wrong(self, last: Tensor, seen: Sequence[Tensor], count: int) -> Tensor:
        """What is to be added to the first new frame (1 3 h w).

        seen: the last frame once more, as this window decodes it, and its first and second new frames.
        """
        again, first = seen[0], seen[1]
        second = seen[2] if count > 1 and len(seen) > 2 else first
        wrong = last - again
        expected = last + second - first
        return wrong + without_motion(expected - first - wrong, self.settings.still / 255)


def without_motion(difference: Tensor, still: float) -> Tensor:
    """Of a difference of pictures (b c h w), what is around pixels that differ by up to `still`; none from twice on."""
    size = functional.avg_pool2d(
        difference.abs().amax(1, keepdim=True), 5, stride=1, padding=2, count_include_pad=False
    )
    return difference * (2 - size / max(still, 1e-6)).clamp(0, 1)
