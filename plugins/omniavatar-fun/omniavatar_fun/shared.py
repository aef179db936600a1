"""What the units share: the condition channels that a network has room for, parts of a second transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omniavatar_i2v.condition import TEMPORAL_FACTOR

from omniavatar.sdk import CheckpointError, InputError, PlanError

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.sdk import Draft, Window

OTHER_CHANNELS = "Fun models take the channels that image-to-video makes"
"""Why they go with no other unit for pictures."""
NO_END = "this transformer takes no end picture; leave --end-image out"


def picture_channels(window: Window, before: int, *, grey: bool = False) -> Tensor:
    """What the condition (1 4+z t h w), behind leading frames, says of known pictures, in as many channels as fit.

    Those are what the transformer takes beside the latents and `before` others: mask and latents, or, in the first
    models, latents alone. Then frames that are not known are zeros; with `grey` they stay latents of a grey video.
    Raises PlanError if neither fits, InputError if latents alone were to show an end picture.
    """
    engine = window.engine
    condition: Tensor = window["condition"][:, :, window.job.leading :]
    latent_channels = engine.model("vae").z_dim
    if takes_mask(engine.model("dit").in_dim, latent_channels, before):
        return condition
    mask, latents = condition.split([TEMPORAL_FACTOR, latent_channels], dim=1)
    return latents if grey else known_latents(mask, latents)


def takes_mask(taken: int, latent_channels: int, before: int) -> bool:
    """Whether a transformer that takes so many channels has room for the mask; `before` stand beside the latents.

    Raises PlanError if it takes neither so many nor as many as without it.
    """
    with_mask, without = 2 * latent_channels + before + TEMPORAL_FACTOR, 2 * latent_channels + before
    if taken not in (with_mask, without):
        raise PlanError(
            f"the transformer takes {taken} channels, and this plan makes {without} or {with_mask}; "
            "give a Fun model of the kind that the plan is for"
        )
    return taken == with_mask


def tell_channels(draft: Draft, *, is_controlled: bool, grey: bool = False) -> None:
    """Say how many channels stand beside the latents, with those of a control video or without; see `picture_channels`.

    Raises PlanError if the transformer takes another number, InputError for an end picture that it has no place for.
    """
    taken, channels = draft.config("dit").get("in_dim"), draft.latent_channels
    draft.condition = None
    if taken is None or channels is None:
        return
    draft.condition = taken - channels
    has_mask = takes_mask(taken, channels, channels * is_controlled)
    if not (has_mask or grey) and draft.given("end_image") is not None:
        raise InputError(NO_END)


def known_latents(mask: Tensor, latents: Tensor) -> Tensor:
    """The latents (1 z t h w) of the frames at the beginning that the mask (1 4 t h w) knows, zeros behind them."""
    known = mask.amin(dim=1, keepdim=True).cumprod(dim=2)
    if (mask > known).any():
        raise InputError(NO_END)
    return latents * known


def check_width(draft: Draft, role: str) -> None:
    """Raise CheckpointError unless the parts of this kind, of all experts, have the transformer's width."""
    width = draft.config("dit").get("dim")
    for part in draft.engine.companions(role):
        made = draft.config(part).get("dim")
        if made != width:
            raise CheckpointError(
                f"'{part}' makes tokens of width {made} and the transformer takes {width}; give both from one file"
            )
