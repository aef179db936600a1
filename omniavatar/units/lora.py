"""LoRA: weight changes merged into the transformer once, so that they cost nothing per step."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pydantic import Field

from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.errors import CheckpointError
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine

log = logging.getLogger(__name__)


class Lora(PipelineUnit):
    """LoRA files among the models (the OmniAvatar delta is one) are merged into the transformer's weights."""

    name = "lora"
    roles = ("dit",)
    optional_roles = ("lora",)

    class Settings(UnitSettings):
        scale: float = Field(1.0, ge=-10, le=10, description="strength of the change; 0 switches it off")

    settings: Settings

    @hookimpl
    def setup(self, engine: Engine) -> None:
        from omniavatar.models.lora import lora_pairs, merge_lora, unknown_modules

        for adapter in engine.models.adapters():
            try:
                pairs = lora_pairs(adapter.tensors(), adapter.alpha)
                network = engine.model(adapter.target)
                unknown = unknown_modules(network, pairs)
                if unknown:
                    raise ValueError(
                        f"{len(unknown)} of its {len(pairs)} layers are not in the transformer, such as '{unknown[0]}'"
                    )
                merge_lora(network, pairs, self.settings.scale, engine.device)
            except ValueError as error:
                raise CheckpointError(f"LoRA {adapter.name}: {error}") from None
            log.info("merged %d layers of %s", len(pairs), adapter.name)
