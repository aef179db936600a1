"""All the model files of one engine, by role: the one thing the engine and its units ask for models.

    models = Bundle.open(["Wan2.1-T2V-1.3B/", "OmniAvatar-1.3B/", "wav2vec2-base-960h/"], Registry.builtin())
    dit = models.load("dit", device="cuda", dtype=torch.bfloat16, attention=attention)

Opening reads headers only; weights are read when a role is loaded.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniavatar.checkpoints.files import Source
from omniavatar.checkpoints.formulas import read_settings
from omniavatar.checkpoints.headers import TensorInfo
from omniavatar.checkpoints.lora_names import parts_in, places
from omniavatar.checkpoints.registry import LORA, TRANSFORMER, Component, Detection, LoraStrength, Registry
from omniavatar.errors import CheckpointError, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from omniavatar.checkpoints.lora import Lora
    from omniavatar.models.conversion import Conversions

log = logging.getLogger(__name__)

MAX_SENTENCEPIECE_BYTES = 100_000_000
SMALL = 8
"""Numbers of a tensor that is read with the header, such as an alpha or the sizes of a shape."""
OWN_SETTINGS = {"pytorch_model": "config.json", "adapter_model": "adapter_config.json"}
"""Files of a LoRA alone, by the stem of their names, to which settings in the same folder belong: those that training
writes here, as OmniAvatar did, and those of a peft folder."""


@dataclass(frozen=True)
class LoraFile:
    """One LoRA file; `read().fit(shapes)` says what it does to a network.

    branches: by role of a transformer those of what lies beside it in its files, such as audio layers.
    """

    component: Component
    branches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.component.files[0])

    @property
    def target(self) -> str:
        """The role of the network that it changes."""
        return self.component.target

    @property
    def is_named(self) -> bool:
        """Whether the user has named that role."""
        return self.component.is_named

    def places(self, experts: Sequence[str]) -> dict[str, str]:
        """The roles that it may change, each with its part of the file; see `lora_names.places`.

        experts: the roles of the transformers that take turns.
        """
        found = places(parts_in(self.component.tensors), self.target, experts, is_named=self.is_named)
        branches = {beside: part for role, part in found.items() for beside in self.branches.get(role, ())}
        return {**branches, **found}

    @property
    def strength(self) -> LoraStrength:
        """How strong the user wants it."""
        return self.component.strength

    @property
    def is_own(self) -> bool:
        """Whether it is part of a checkpoint that brings more, such as OmniAvatar's audio layers."""
        return len(self.component.row.components) > 1

    @property
    def settings(self) -> Mapping[str, Any]:
        """What lies beside the file about its alphas, if it is about this file."""
        component = self.component
        if "alpha" in component.constants:
            return {"lora_alpha": component.constants["alpha"]}
        beside = OWN_SETTINGS.get(component.files[0].stem)
        found = read_settings(component.folder / beside) if beside else {}
        is_ours = beside == "adapter_config.json" or found.get("train_architecture") == "lora"
        return found if is_ours else {}

    def read(self, *, values: bool = True) -> Lora:
        """What the file means. Raises CheckpointError if it is damaged.

        values: read all of it; without them only its header, which does for the report of what fits a network.
        """
        import torch

        from omniavatar.checkpoints.loading import read_tensors
        from omniavatar.checkpoints.lora import read_lora

        component = self.component
        if values:
            state: dict[str, Any] = component.state()
        else:
            small = {name: info for name, info in component.tensors.items() if info.numel <= SMALL}
            state = {name: torch.empty(info.shape, device="meta") for name, info in component.tensors.items()}
            state |= dict(read_tensors(small, device="cpu", dtype=None))
        return read_lora(state, metadata=component.extras, settings=self.settings, name=self.name)


class Bundle:
    """Components by role: one base network with any number of overlays, or any number of bare tensor sets (LoRA)."""

    def __init__(self, detections: Iterable[Detection], folders: Iterable[Path] = ()) -> None:
        self.detections = tuple(detections)
        self.folders = tuple(folders)
        by_role: dict[str, list[Component]] = defaultdict(list)
        for detection in self.detections:
            for component in detection.components:
                by_role[component.role].append(component)
        self._by_role = {role: _ordered(role, components) for role, components in by_role.items()}

    @classmethod
    def open(
        cls,
        sources: Iterable[Source],
        registry: Registry,
        roles: Iterable[str | None] = (),
        instead: Iterable[bool] = (),
        strengths: Iterable[LoraStrength | None] = (),
        folders: Iterable[Path] = (),
    ) -> Bundle:
        """Recognise everything that the sources name (files, lists of shards, patterns, folders).

        roles: for each source the role of its transformer, or of the one that its LoRA changes; None: "dit".
        instead: for each source whether its networks take the place of those of other sources.
        strengths: for each source that of its LoRA; None: 1, and it need not have one.
        folders: where things may lie that belong beside a file, if they do not.
        """
        given = []
        for source, role, replaces, strength in zip_longest(sources, roles, instead, strengths):
            for found in registry.detect_all(source):
                detection = found if role is None else found.with_role(role)
                given.append((detection if strength is None else detection.with_strength(strength), bool(replaces)))
        return cls(with_replaced(given), folders)

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
        """A path relative to the folder of the role's (base) files, or to the first further folder that has it.

        An absolute one stays as it is.
        """
        own = self.components(role)[0].folder.absolute() / path
        elsewhere = (folder.absolute() / path for folder in self.folders)
        return own if own.exists() else next((place for place in elsewhere if place.exists()), own)

    def tokenizer(self, role: str) -> Callable[[], Any] | None:
        """What makes the tokenizer that lies in the role's file, if one does.

        Calling it raises CheckpointError if the tokenizer is damaged.
        """
        found = self.components(role)[0].extras.get("tokenizer")
        if isinstance(found, TensorInfo):
            return partial(sentencepiece_of, found)
        return found if callable(found) else None

    def shapes(self, role: str) -> dict[str, tuple[int, ...]]:
        """The shapes of the role's weights by the network's names, as the files have them."""
        return {name: info.shape for part in self.components(role) for name, info in part.tensors.items()}

    def identity(self, role: str) -> str:
        """A fingerprint of the role's files: names, shapes, sizes, and a part of their content."""
        from omniavatar.checkpoints.hashing import content_sample

        content = hashlib.blake2b(digest_size=16)
        for component in self.components(role):
            if component.spec.overlay and component.spec.network is not None:
                content.update(component.spec.network.encode())
            content.update(repr([(name, tuple(info.shape)) for name, info in component.tensors.items()]).encode())
            for path in sorted({info.file for info in component.tensors.values()}):
                content.update(content_sample(path))
        return content.hexdigest()

    def adapters(self) -> tuple[LoraFile, ...]:
        """The LoRA files, in the order given; none is fine."""
        branches = {role: tuple(self._beside(role)) for role in self._by_role}
        return tuple(LoraFile(part, branches) for part in self._by_role.get(LORA, ()))

    def _beside(self, role: str) -> Iterator[str]:
        """The roles of what comes from files that also hold, or go with, the transformer of this role."""
        for other, components in self._by_role.items():
            goes_with = any(part.target == role and TRANSFORMER in part.row.components for part in components)
            if other not in (role, LORA) and goes_with:
                yield other

    def load(
        self,
        role: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        overrides: Mapping[str, Any] | None = None,
        blocks: bool = True,
        conversions: Conversions | None = None,
        **offered: Any,
    ) -> nn.Module:
        """Build and fill the role's network (see `load_network`)."""
        from omniavatar.checkpoints.loading import load_network

        return load_network(
            self.components(role),
            device=device,
            dtype=dtype,
            overrides=overrides,
            blocks=blocks,
            conversions=conversions,
            **offered,
        )

    def read_into(self, role: str, targets: Mapping[str, Tensor], conversions: Conversions | None = None) -> None:
        """Read some of the role's weights into memory of their shapes (see `loading.read_into`)."""
        from omniavatar.checkpoints.loading import read_into

        read_into(self.components(role), targets, conversions)

    def skeleton(
        self, role: str, *, dtype: torch.dtype, conversions: Conversions | None = None, **offered: Any
    ) -> nn.Module:
        """The role's network without its weights, on the meta device, as `load` would make it."""
        import torch

        from omniavatar.checkpoints import loading
        from omniavatar.models.conversion import Conversions

        components = self.components(role)
        base = components[0]
        dtype = getattr(torch, base.spec.dtype) if base.spec.dtype is not None else dtype
        network = loading.skeleton(components, **offered).requires_grad_(False)
        names = network.state_dict().keys()
        conversions = conversions or Conversions()
        loading.convert_into(network, components, conversions, device="meta", dtype=dtype, left=names)
        return network.eval()

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


def sentencepiece_of(info: TensorInfo) -> Any:
    """The tokenizer whose sentencepiece model is a tensor of bytes."""
    from omniavatar.checkpoints.loading import read_tensors
    from omniavatar.checkpoints.sentencepiece import tokenizer

    check_sentencepiece(info)
    (tensor,) = dict(read_tensors({"model": info}, device="cpu", dtype=None)).values()
    return tokenizer(tensor.numpy().tobytes(), f"{info.file}: '{info.name}'")


def check_sentencepiece(info: TensorInfo) -> None:
    """Raise CheckpointError for a tensor that cannot be a sentencepiece model by its type and size."""
    if info.dtype not in ("uint8", "int8") or info.numel > MAX_SENTENCEPIECE_BYTES:
        raise CheckpointError(
            f"{info.file}: '{info.name}' is no sentencepiece model ({info.dtype}, {info.numel} numbers)"
        )


def with_replaced(found: Iterable[tuple[Detection, bool]]) -> list[Detection]:
    """The detections without the networks whose place others take: those of detections that come with True.

    What a network is told to go without, such as its row's settings, goes with it; LoRA and overlays stay.
    """
    found = list(found)
    new: dict[str, Detection] = {
        component.role: detection
        for detection, replaces in found
        for component in detection.components
        if replaces and component.spec.is_base and not detection.row.is_delta
    }
    kept: list[Detection] = []
    for detection, replaces in found:
        gone = [
            component
            for component in detection.components
            if not replaces and component.spec.is_base and component.role in new
        ]
        for component in gone:
            log.warning(
                "%s takes the place of %s as '%s'", new[component.role].files[0], detection.files[0], component.role
            )
        components = tuple(component for component in detection.components if component not in gone)
        if components:
            kept.append(replace(detection, components=components) if gone else detection)
    return kept


def _ordered(role: str, components: list[Component]) -> tuple[Component, ...]:
    """The base before its overlays; two bases are an error that names both.

    What a delta brings along whole, such as audio layers, replaces that of files before it.
    """
    bases = [component for component in components if component.spec.is_base]
    if len(bases) > 1 and all(base.row.is_delta for base in bases[1:]):
        bases = bases[-1:]
    if len(bases) > 1:
        files = " and ".join(f"{base.files[0]} ({base.row.name})" for base in bases)
        raise CheckpointError(
            f"two models for the role '{role}': {files}; give one of them, or name the second ROLE=FILE"
        )
    return (*bases, *(component for component in components if not component.spec.is_base))
