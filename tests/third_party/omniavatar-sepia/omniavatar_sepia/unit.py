"""The unit and its network."""

import torch
from pydantic import Field
from torch import nn

from omniavatar.sdk import PipelineUnit, UnitInputs, UnitSettings, hookimpl

BROWN = (1.0, 0.8, 0.6)


class Tone(nn.Module):
    """The colour that grey becomes."""

    def __init__(self):
        super().__init__()
        self.colour = nn.Parameter(torch.tensor(BROWN))


class Sepia(PipelineUnit):
    """Old-film colours.

    Changes what is written, not what the next window continues from.
    """

    name = "sepia"
    needs = ("frames",)
    optional_roles = ("tone",)

    class Settings(UnitSettings):
        strength: float = Field(1.0, ge=0, le=1, description="0 leaves the colours, 1 replaces them")

    class Inputs(UnitInputs):
        film: str = Field("plain", description="kind of film: plain or dark")

    @hookimpl
    def postprocess_frames(self, window, frames):
        tone = torch.tensor(BROWN)
        if "tone" in window.engine.models:
            tone = window.engine.model("tone").colour
        tone = tone * (0.5 if window.job.inputs(self).film == "dark" else 1.0)
        grey = frames.pixels.mean(dim=1, keepdim=True)
        frames.pixels = torch.lerp(frames.pixels, grey * tone.view(1, 3, 1, 1, 1), self.settings.strength)
