"""Models that are those of others but for something: what is not said otherwise is asked of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import nn

    from omniavatar.engine.engine import Adapter, Models

Inner = TypeVar("Inner", bound="Models")


class DelegatingModels(Generic[Inner]):
    """An `engine.engine.Models` around another one, `models`; a subclass overrides what is different."""

    def __init__(self, models: Inner) -> None:
        self.models = models

    def __contains__(self, role: object) -> bool:
        return role in self.models

    def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        """The network of this role."""
        return self.models.load(role, device=device, dtype=dtype, **constructor)

    def config(self, role: str) -> Mapping[str, Any]:
        """The numbers of the role's network."""
        return self.models.config(role)

    def beside(self, role: str, path: Path) -> Path:
        """The path beside the role's files."""
        return self.models.beside(role, path)

    def tokenizer(self, role: str) -> Callable[[], Any] | None:
        """What makes the tokenizer that lies in the role's file, if one does."""
        return self.models.tokenizer(role)

    def adapters(self) -> Sequence[Adapter]:
        """The LoRA files."""
        return self.models.adapters()
