"""A video before anything is loaded: what its request, the settings and the headers of files tell of it.

    engine.check_request(request)    # raises the OmniError that the run would end with, before weights are read

`Engine.start` does it first, and so does everything that makes or estimates videos. What is found is the units'
business: see `hookspecs.Pipeline.check_request`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omniavatar.engine.geometry import Geometry
from omniavatar.engine.plan import Plan, hooks_of
from omniavatar.errors import InputError

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.scopes import Request
    from omniavatar.engine.unit import PipelineUnit


class Draft:
    """What is known of a video, for `check_request`; units add what they will give it in `begin_job`.

    height, width: pixels, None while nobody has said it. has_length: whether something sets the length.
    leading: latent frames in front of the video's. condition: channels beside the latents, None while not known.
    `engine` has not loaded anything; do not ask it for networks.
    """

    def __init__(self, engine: Engine, plan: Plan, request: Request) -> None:
        self.engine = engine
        self.plan = plan
        self.request = request
        self.inputs_by_unit = plan.parse_inputs(request.inputs)
        self.fps = request.fps
        self.height = request.height
        self.width = request.width
        self.has_length = request.seconds is not None
        self.leading = 0
        self.condition = None if any("condition" in unit.provides for unit in plan.units) else 0

    def inputs(self, unit: PipelineUnit) -> Any:
        """The validated `Inputs` of this unit."""
        return self.inputs_by_unit[unit.name]

    def given(self, name: str) -> Any:
        """The input of this name, whichever unit takes it; None without one."""
        return next((getattr(values, name) for values in self.inputs_by_unit.values() if hasattr(values, name)), None)

    def config(self, role: str) -> Mapping[str, Any]:
        """The numbers of this role's network, such as `in_dim`; nothing without a model."""
        models = self.engine.models
        return models.config(role) if role in models else {}

    @property
    def is_complete(self) -> bool:
        """Whether every unit that may change the video when it begins has a say here too."""
        return not any(stays_silent(type(unit)) for unit in self.plan.units)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in pixels, once they are certain."""
        if self.height is None or self.width is None:
            return None
        return (self.height, self.width) if self.request.height is not None or self.is_complete else None

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
        """Raise InputError for what nobody has said and nobody will."""
        if not self.is_complete:
            return
        if self.height is None or self.width is None:
            raise InputError("the size of the video is unknown; give its height and width (--size)")
        if not self.has_length:
            raise InputError(
                "no audio is given, so the length of the video is unknown; give one (--audio FILE), or seconds for a "
                "video without sound (--seconds NUMBER)"
                if "audio" in self.plan.input_fields
                else "the length of the video is unknown; give seconds (--seconds NUMBER)"
            )


def stays_silent(unit_class: type[PipelineUnit]) -> bool:
    """Whether a unit begins jobs in a way of its own and says nothing of it in `check_request`."""
    defined = {"begin_job": -1, "check_request": -1}
    for attribute, options in hooks_of(unit_class).items():
        hook = options["specname"] or attribute
        if hook in defined:
            place = next(index for index, kind in enumerate(unit_class.__mro__) if attribute in vars(kind))
            defined[hook] = max(defined[hook], len(unit_class.__mro__) - place)
    return defined["check_request"] < defined["begin_job"]
