"""The unit: which colours the video has."""

from typing import Annotated

import torch
from pydantic import BeforeValidator, Field

from omniavatar.sdk import CheckpointError, InputKind, PipelineUnit, UnitInputs, UnitSettings, hookimpl, listed

COLOUR = r"^#[0-9a-fA-F]{6}$"


class Palette(PipelineUnit):
    """The colours that a video is made of.

    It needs a transformer with palette layers: a base model and the file with the layers beside it.
    """

    name = "palette"
    provides = ("palette_colours",)
    roles = ("dit",)

    class Settings(UnitSettings):
        strength: float = Field(1.0, ge=0, le=4, description="how far colours are from grey; 1 as they are given")

    class Inputs(UnitInputs):
        palette: Annotated[
            tuple[Annotated[str, Field(pattern=COLOUR)], ...], BeforeValidator(listed), InputKind("#rrggbb|[...]")
        ] = Field((), description="colours of the video, one or [several]")

    def check(self, plan, models):
        if "colour_dim" not in models.config("dit"):
            raise CheckpointError("the transformer has no palette layers; add their file, or leave '-palette' out")

    @hookimpl
    def check_request(self):
        """Colours change neither the size of a video nor its length."""

    @hookimpl
    def begin_job(self, job):
        colours = [list(bytes.fromhex(text[1:])) for text in job.inputs(self).palette]
        job["palette_colours"] = None
        if colours:
            values = torch.tensor(colours, dtype=torch.float32, device=job.engine.device)[None] / 127.5 - 1
            job["palette_colours"] = values * self.settings.strength

    @hookimpl
    def embed(self, forward):
        if forward["palette_colours"] is not None:
            forward.conditions["palette"] = forward.memory.once(
                "palette.tokens", lambda: forward.stacked(lambda branch: tokens(forward, branch))
            )


def tokens(forward, branch):
    """What the blocks attend to in a guidance branch (b n d): grey where it drops the palette."""
    return forward.network.embed_palette(branch["palette_colours"] * (not branch.drops("palette")))
