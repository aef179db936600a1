"""LoRA: weight changes merged into the transformer once, so that they cost nothing per step."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import TYPE_CHECKING

from pydantic import Field

from omniavatar.engine.unit import ALL, PipelineUnit, UnitSettings
from omniavatar.errors import CheckpointError
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from omniavatar.engine.engine import Engine
    from omniavatar.models.conversion import Change, Conversion

log = logging.getLogger(__name__)


class Lora(PipelineUnit):
    """LoRA files among the models (the OmniAvatar delta is one) are merged into the transformer's weights."""

    name = "lora"
    optional_roles = ("lora", ALL)

    class Settings(UnitSettings):
        scale: float = Field(1.0, ge=-10, le=10, description="strength of the change; 0 switches it off")

    settings: Settings

    def conversion(self, engine: Engine, role: str) -> Conversion | None:
        """What the files change in a role's network, merged as it is loaded; see `engine.conversion`."""
        from omniavatar.models.conversion import Merging
        from omniavatar.models.lora import check_pairs, lora_pairs

        scale = self.settings.scale
        files = [adapter for adapter in engine.models.adapters() if adapter.target == role]

        class Files(Merging):
            """Files that are read and checked when the network is known."""

            def begin(self, network: nn.Module) -> None:
                found: dict[str, list[tuple[Change, float]]] = defaultdict(list)
                for adapter in files:
                    try:
                        pairs = lora_pairs(adapter.tensors(), adapter.alpha)
                        check_pairs(network, pairs)
                    except ValueError as error:
                        raise CheckpointError(f"LoRA {adapter.name}: {error}") from None
                    for pair in pairs:
                        found[f"{pair.module}.weight"].append((pair, scale))
                    log.info("merging %d layers of %s", len(pairs), adapter.name)
                self.of = found

        return Files({}) if files else None

    @hookimpl
    def setup(self, engine: Engine) -> None:
        """Have the networks loaded, and with them changed."""
        for adapter in engine.models.adapters():
            engine.model(adapter.target)
