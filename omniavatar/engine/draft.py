"""A video before anything is loaded: what its request, the settings and the headers of files tell of it.

    engine.check_request(request)    # raises the OmniError that the run would end with, before weights are read

`Engine.start` does it first, and so does everything that makes or estimates videos. What is found is the units'
business: see `hookspecs.Pipeline.check_request`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omniavatar.engine.geometry import Geometry
from omniavatar.engine.outline import Outline, settle_size
from omniavatar.engine.plan import Plan
from omniavatar.errors import InputError

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.hooks import Hooks
    from omniavatar.engine.scopes import Request


class Draft(Outline):
    """What is known of a video before loading, for `check_request`; units add what they will give it in `begin_job`.

    has_length: whether something sets the length; `frames` is what is asked for, if anything is.
    leading: latent frames in front of the video's. condition: channels beside the latents, None while not known.
    `engine` has not loaded anything; do not ask it for networks.
    """

    def __init__(self, engine: Engine, plan: Plan, request: Request) -> None:
        self.engine = engine
        self.plan = plan
        self._ask(request, plan.parse_inputs(request.inputs))
        self.has_length = self.frames is not None
        self.leading = 0
        self.condition = None if any("condition" in unit.provides for unit in plan.units) else 0

    def settle(self, hooks: Hooks) -> None:
        """Let the units say size and length, as far as that can be told now."""
        settle_size(hooks, self)
        self.has_length |= bool(hooks.plan_length(self))

    def config(self, role: str) -> Mapping[str, Any]:
        """The numbers of this role's network, such as `in_dim`; nothing without a model."""
        models = self.engine.models
        return models.config(role) if role in models else {}

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in pixels, if they are known."""
        return None if self.height is None or self.width is None else (self.height, self.width)

    @property
    def latent_channels(self) -> int | None:
        """Channels of the VAE's latents."""
        return self._of_vae("z_dim")

    @property
    def latent_pixels(self) -> int | None:
        """Pixels of a side that a latent covers."""
        return self._of_vae("spatial_factor")

    @property
    def geometry(self) -> Geometry | None:
        """What latents and tokens stand for, if all of it is known."""
        channels, frames, pixels = self.latent_channels, self._of_vae("temporal_factor"), self.latent_pixels
        patch = self.engine.foreseen(self.plan.experts[0], "patch_size")
        if channels is None or frames is None or pixels is None or patch is None:
            return None
        return Geometry(channels, frames, pixels, tuple(patch))

    def _of_vae(self, name: str) -> int | None:
        number: int | None = self.engine.foreseen(self.plan.autoencoder, name)
        return number

    def check_complete(self) -> None:
        """Raise InputError for what nobody has said."""
        if self.height is None or self.width is None:
            raise InputError("the size of the video is unknown; give its height and width (--size)")
        if not self.has_length:
            raise InputError(
                "no audio is given, so the length of the video is unknown; give one (--audio FILE), or seconds for a "
                "video without sound (--seconds NUMBER)"
                if "audio" in self.plan.input_fields
                else "the length of the video is unknown; give seconds (--seconds NUMBER)"
            )
