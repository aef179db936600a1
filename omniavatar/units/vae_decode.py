"""Decoding a window's latents to frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl
from omniavatar.models.tiling import DECODE_TILING

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.scopes import Window

GROUP = 16
"""Frames that are made float32 at once."""


class VaeDecode(PipelineUnit):
    """VAE decoding: the latents of a chunk to frames, group by group."""

    name = "vae-decode"
    provides = ("frames",)
    roles = ("vae",)
    autoencoder = "vae"

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
    def decode_latents(self, window: Window) -> Iterator[Tensor]:
        vae, latents = window.engine.model(self.autoencoder), window.video_latents.to(window.engine.dtype)
        if self.settings.tiled:
            per_pass = self.settings.latents_per_pass
            decoded = iter([vae.decode(latents, tiling=DECODE_TILING, latents_per_pass=per_pass)])
        else:
            decoded = vae.decode_frames(latents, self.settings.latents_per_pass)
        for frames in decoded:
            for group in frames.split(GROUP, dim=2):
                yield (group.float() + 1) / 2
