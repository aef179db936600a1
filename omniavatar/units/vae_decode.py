"""Decoding a window's latents to frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from omniavatar.engine.scopes import Window
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl
from omniavatar.models.tiling import DECODE_TILING


class VaeDecode(PipelineUnit):
    """Latents to pictures, as the last thing in a window."""

    name = "vae-decode"
    provides = ("frames",)
    roles = ("vae",)

    class Settings(UnitSettings):
        tiled: bool = Field(False, description="decode in overlapping tiles: less memory, two to three times the work")
        latents_per_pass: int = Field(
            4, ge=1, description="latent frames decoded at once; more is faster and takes memory"
        )

    settings: Settings

    def smaller(self, work: str, window: Window | None) -> Mapping[str, Any]:
        if work != "decode":
            return {}
        if self.settings.latents_per_pass > 1:
            return {"latents_per_pass": 1}
        return {} if self.settings.tiled else {"tiled": True}

    @hookimpl
    def end_window(self, window: Window) -> None:
        engine = window.engine
        video = engine.model("vae").decode(
            window.video_latents.to(engine.dtype),
            tiling=DECODE_TILING if self.settings.tiled else None,
            latents_per_pass=self.settings.latents_per_pass,
        )
        window["frames"] = (video.float() + 1) / 2
