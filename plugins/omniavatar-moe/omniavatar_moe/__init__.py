"""Experts for high and low noise for omniavatar: the units `moe` and `moe-guidance`, and a preset for Wan 2.2 T2V."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from omniavatar.sdk import hookimpl

if TYPE_CHECKING:
    from omniavatar.sdk import PipelineUnit

OMNIAVATAR_API = 1
# Steps, shift and scales as published with the model.
WAN_T2V_A14B = (
    "prompt+fixed-frames+moe+moe-guidance(scale=4, low_scale=3)+schedule(steps=40, shift=12)+euler"
    "+transformer+lora+vae-decode+soundtrack+write-video"
)


@hookimpl
def omni_units() -> Sequence[type[PipelineUnit]]:
    from omniavatar_moe.guidance import MoeGuidance
    from omniavatar_moe.unit import Moe

    return [Moe, MoeGuidance]


@hookimpl
def omni_presets() -> Mapping[str, str]:
    return {"wan-t2v-a14b": WAN_T2V_A14B}
