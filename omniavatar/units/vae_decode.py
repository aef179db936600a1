"""Decoding a window's latents to frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from omniavatar.engine.saving import SavesMemory
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.hookspecs import hookimpl
from omniavatar.models.tiling import DECODE_TILING

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.scopes import Window

GROUP = 16
"""Frames that are made float32 at once."""


class VaeDecode(PipelineUnit, SavesMemory):
    """VAE decoding: the latents of a chunk to frames, group by group.

    Where chunks go on in the latents of the one before (`Span.first_latent`), the decoder keeps what it remembers.
    """

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
        per_pass, past = self.settings.latents_per_pass, history(window)
        if self.settings.tiled:
            decoded = iter([vae.decode(latents, tiling=DECODE_TILING, latents_per_pass=per_pass, **past)])
        else:
            decoded = vae.decode_frames(latents, per_pass, **past)
        for frames in decoded:
            for group in frames.split(GROUP, dim=2):
                yield (group.float() + 1) / 2


def history(window: Window) -> dict[str, Any]:
    """What `decode_frames` gets beside the latents: the past of the decoder if the latents go on, none otherwise.

    Without it any VAE will do, also one that cannot decode in pieces.
    """
    job = window.job
    following = job.spans[window.index + 1 : window.index + 2]
    if not any(span.first_latent for span in (window.span, *following)):
        return {}
    past = job.memory(VaeDecode.autoencoder, ())
    if not window.span.first_latent:
        past.clear()
    return {"history": past}
