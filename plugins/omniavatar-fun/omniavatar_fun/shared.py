"""What the units share: the condition channels that a network has room for, parts of a second transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omniavatar.engine.windows import TEMPORAL_FACTOR
from omniavatar.errors import CheckpointError, InputError, PlanError

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.engine import Engine
    from omniavatar.engine.scopes import Forward, Window

OTHER_CHANNELS = "Fun models take the channels that image-to-video makes"
"""Why they go with no other unit for pictures."""


def picture_channels(window: Window, before: int, *, grey: bool = False) -> Tensor:
    """What the condition (1 4+z t h w), behind leading frames, says of known pictures, in as many channels as fit.

    Those are what the transformer takes beside the latents and `before` others: mask and latents, or, in the first
    models, latents alone. Then frames that are not known are zeros; with `grey` they stay latents of a grey video.
    Raises PlanError if neither fits, InputError if latents alone were to show an end picture.
    """
    engine = window.engine
    condition: Tensor = window["condition"][:, :, window.job.leading :]
    latent_channels = engine.model("vae").z_dim
    taken = engine.model("dit").in_dim
    room = taken - latent_channels - before
    if room == TEMPORAL_FACTOR + latent_channels:
        return condition
    if room != latent_channels:
        fitting = [latent_channels + before + count for count in (latent_channels, condition.shape[1])]
        raise PlanError(
            f"the transformer takes {taken} channels, and this plan makes {fitting[0]} or {fitting[1]}; "
            "give a Fun model of the kind that the plan is for"
        )
    mask, latents = condition.split([TEMPORAL_FACTOR, latent_channels], dim=1)
    return latents if grey else known_latents(mask, latents)


def known_latents(mask: Tensor, latents: Tensor) -> Tensor:
    """The latents (1 z t h w) of the frames at the beginning that the mask (1 4 t h w) knows, zeros behind them."""
    known = mask.amin(dim=1, keepdim=True).cumprod(dim=2)
    if (mask > known).any():
        raise InputError("this transformer takes no end picture; leave --end-image out")
    return latents * known


def role_for(forward: Forward, role: str) -> str:
    """The role of the part that belongs to the transformer of a call: `role2`, if given, beside any but `dit`."""
    second = f"{role}2"
    is_second = second in forward.engine.models and forward.network is not forward.engine.model("dit")
    return second if is_second else role


def check_width(engine: Engine, role: str) -> None:
    """Raise CheckpointError unless the parts `role` and `role2`, as far as given, have the transformer's width."""
    width = engine.models.config("dit")["dim"]
    for part in (role, f"{role}2"):
        if part not in engine.models:
            continue
        made = engine.models.config(part)["dim"]
        if made != width:
            raise CheckpointError(
                f"'{part}' makes tokens of width {made} and the transformer takes {width}; give both from one file"
            )
