"""All the model files of one engine, by role: the one thing the engine and its units ask for models.

    models = Bundle.open(["Wan2.1-T2V-1.3B/", "OmniAvatar-1.3B/", "wav2vec2-base-960h/"], Registry.builtin())
    dit = models.load("dit", device="cuda", dtype=torch.bfloat16, attention=attention)

Opening reads headers only; weights are read when a role is loaded.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniavatar.checkpoints.files import Source
from omniavatar.checkpoints.registry import Component, Detection, Registry
from omniavatar.errors import CheckpointError, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


LORA = "lora"
"""Under this role are bare tensor sets, which change networks and are none."""


@dataclass(frozen=True)
class LoraFile:
    """One LoRA: pairs `<module>.lora_A.weight` (rank in), `<module>.lora_B.weight` (out rank), maybe `<module>.alpha`.

    The scale of a pair is alpha / rank; `alpha` holds where the file has no tensor for it, `rank` is the first pair's.
    """

    component: Component

    @property
    def name(self) -> str:
        return str(self.component.files[0])

    @property
    def target(self) -> str:
        """The role of the network that it changes."""
        return self.component.target

    @property
    def alpha(self) -> float:
        return float(self.component.constants["alpha"])

    @property
    def rank(self) -> int:
        return int(self.component.constants["rank"])

    def tensors(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Read the pairs; `dtype` None keeps the file's."""
        return self.component.state(device, dtype)


class Bundle:
    """Components by role: one base network with any number of overlays, or any number of bare tensor sets (LoRA)."""

    def __init__(self, detections: Iterable[Detection]) -> None:
        self.detections = tuple(detections)
        by_role: dict[str, list[Component]] = defaultdict(list)
        for detection in self.detections:
            for component in detection.components:
                by_role[component.role].append(component)
        self._by_role = {role: _ordered(role, components) for role, components in by_role.items()}

    @classmethod
    def open(cls, sources: Iterable[Source], registry: Registry, roles: Iterable[str | None] = ()) -> Bundle:
        """Recognise everything that the sources name (files, lists of shards, patterns, folders).

        roles: for each source the role of its transformer, or of the one that its LoRA changes; None: "dit".
        """
        return cls(
            detection if role is None else detection.with_role(role)
            for source, role in zip_longest(sources, roles)
            for detection in registry.detect_all(source)
        )

    @property
    def roles(self) -> frozenset[str]:
        return frozenset(self._by_role)

    def __contains__(self, role: object) -> bool:
        """Whether the files have a network of this role; LoRA files are none."""
        return role != LORA and role in self._by_role

    def components(self, role: str) -> tuple[Component, ...]:
        """What the files provide for a role, the base first; overlays and tensor sets in the order given."""
        if role not in self._by_role:
            raise CheckpointError(f"no model file given has the role '{role}'{nearest(role, self._by_role)}")
        return self._by_role[role]

    def config(self, role: str) -> dict[str, Any]:
        """Constructor arguments of the role's network, overlays included."""
        return {key: value for component in self.components(role) for key, value in component.config.items()}

    def constants(self, role: str) -> dict[str, Any]:
        """Facts about the role's checkpoint, such as `feature_dim` of an audio encoder."""
        return {key: value for component in self.components(role) for key, value in component.constants.items()}

    def settings(self) -> dict[str, dict[str, Any]]:
        """Settings of units that suit these checkpoints, by unit."""
        merged: dict[str, dict[str, Any]] = {}
        for detection in self.detections:
            for unit, values in detection.row.settings.items():
                merged.setdefault(unit, {}).update(values)
        return merged

    def beside(self, role: str, path: Path | str) -> Path:
        """A path relative to the folder of the role's (base) files; an absolute one stays as it is."""
        return self.components(role)[0].folder.absolute() / path

    def identity(self, role: str) -> str:
        """A fingerprint of the role's files: names, shapes, sizes, and a part of their content."""
        from omniavatar.checkpoints.hashing import content_sample

        content = hashlib.blake2b(digest_size=16)
        for component in self.components(role):
            content.update(repr([(name, tuple(info.shape)) for name, info in component.tensors.items()]).encode())
            for path in sorted({info.file for info in component.tensors.values()}):
                content.update(content_sample(path))
        return content.hexdigest()

    def adapters(self) -> tuple[LoraFile, ...]:
        """The LoRA files, in the order given; none is fine."""
        return tuple(LoraFile(component) for component in self._by_role.get(LORA, ()))

    def load(
        self,
        role: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        overrides: Mapping[str, Any] | None = None,
        blocks: bool = True,
        **offered: Any,
    ) -> nn.Module:
        """Build and fill the role's network (see `load_network`)."""
        from omniavatar.checkpoints.loading import load_network

        return load_network(
            self.components(role), device=device, dtype=dtype, overrides=overrides, blocks=blocks, **offered
        )

    def read_into(self, role: str, targets: Mapping[str, Tensor]) -> None:
        """Read some of the role's tensors, by the network's names, into memory of their shape (see `load_network`)."""
        from omniavatar.checkpoints.loading import read_into

        read_into(self.components(role), targets)

    def skeleton(self, role: str, *, dtype: torch.dtype, **offered: Any) -> nn.Module:
        """The role's network without its weights, on the meta device, as `load` would make it."""
        import torch

        from omniavatar.checkpoints import loading

        components = self.components(role)
        base = components[0]
        if base.spec.network is None:
            raise CheckpointError(
                f"{base.files[0]} holds only an overlay on the role '{role}'; give the base model as well"
            )
        path = base.spec.network
        dtype = getattr(torch, base.spec.dtype) if base.spec.dtype is not None else dtype
        if base.spec.loader == "folder":
            kind: Any = loading.import_network(path)
            network: nn.Module = kind.from_config(base.folder)
        else:
            config = loading.merged_config(components) | loading.accepted(path, offered)
            network = loading.build_on_meta(path, config)
        return network.to(dtype).eval().requires_grad_(False)

    def weights(
        self,
        role: str,
        patterns: Iterable[str],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        """The weights of the role's network whose names fit one of the patterns."""
        from omniavatar.checkpoints.loading import read_tensors
        from omniavatar.checkpoints.names import matches

        wanted = list(patterns)
        sources = {
            name: info
            for component in self.components(role)
            for name, info in component.tensors.items()
            if matches(name, wanted)
        }
        return dict(read_tensors(sources, device=device, dtype=dtype))


def _ordered(role: str, components: list[Component]) -> tuple[Component, ...]:
    """The base before its overlays; two bases are an error that names both.

    What a delta brings along whole, such as audio layers, replaces that of files before it.
    """
    bases = [component for component in components if component.spec.network is not None]
    if len(bases) > 1 and all(base.row.is_delta for base in bases[1:]):
        bases = bases[-1:]
    if len(bases) > 1:
        files = " and ".join(f"{base.files[0]} ({base.row.name})" for base in bases)
        raise CheckpointError(
            f"two models for the role '{role}': {files}; give one of them, or name the second ROLE=FILE"
        )
    return (*bases, *(component for component in components if component.spec.network is None))
