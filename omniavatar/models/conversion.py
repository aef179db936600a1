"""What units make of weights while a network is loaded: in one place, whatever loads, keeps or reads them again.

A unit answers `conversion(engine, role)` with a `Conversion`. For every weight, as it comes from its file,

1. each conversion that changes it (LoRA) is given it dense, in float32, on the device that computes;
2. it is rounded once to the precision of the network,
3. or, by the one conversion that stores it in another form (fp8), to that; a packed weight that nobody changes can be
   kept as it is.

`load_network`, `disk-offload` (at each reading) and networks that exist already go through the same `Conversions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from omniavatar.models.packed import PackedLayer, PackedLinear, is_linear
from omniavatar.models.packed_tensor import PackedTensor

Weight = Tensor | PackedTensor


class Conversion:
    """What one unit makes of the weights of one network. This one makes nothing of them."""

    def begin(self, network: nn.Module) -> None:
        """See the network before any weight is converted; its weights may be on the meta device.

        Raises an OmniError for what does not fit: nothing is changed yet.
        """

    def changes(self, name: str) -> bool:
        """Whether the values of this weight change."""
        return False

    def change(self, name: str, weight: Tensor) -> Tensor:
        """The changed weight; both float32, dense, on the device that computes."""
        return weight

    def leaves(self, name: str) -> bool:
        """Whether it leaves this weight as it is after all, since it is packed; asked of packed ones that change."""
        return False

    def stores(self, name: str) -> bool:
        """Whether this weight of a linear layer is to be kept in another form. One conversion of a network may."""
        return False

    def store(self, name: str, weight: Weight) -> PackedTensor:
        """The weight in that form, computed where it is; the meta device included."""
        raise NotImplementedError

    def layer(self, name: str, packed: PackedTensor, bias: Tensor | None) -> PackedLayer:
        """The layer that keeps a weight that this conversion stores."""
        return PackedLinear(packed, bias)


class Change(Protocol):
    """What is done to one weight, such as a LoRA."""

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The changed weight; float32, as the given one is, and on its device."""
        ...


class Merging(Conversion):
    """Changes added to weights, computed in float32.

    changes: for each weight, by name, what is done to it one after the other, and how strongly. A change has
    `apply(weight, strength)`, which gives the changed weight, float32 as the one it is given, on its device.
    """

    def __init__(self, changes: Mapping[str, Sequence[tuple[Change, float]]]) -> None:
        self.of = changes

    def changes(self, name: str) -> bool:
        return name in self.of

    def change(self, name: str, weight: Tensor) -> Tensor:
        for change, strength in self.of[name]:
            weight = change.apply(weight, strength)
        return weight


class Conversions:
    """The conversions of one network, in the order of the plan.

    device: where to compute. keeps_packed: whether a packed weight that nobody changes may stay so; not in training.
    network: what is converted, once that has begun. layers: those that keep packed weights, by the name of the weight.
    """

    def __init__(
        self, steps: Sequence[Conversion] = (), device: torch.device | str | None = None, *, keeps_packed: bool = True
    ) -> None:
        self.steps = tuple(steps)
        self.device = device
        self.keeps_packed = keeps_packed
        self.network: nn.Module | None = None
        self.layers: dict[str, PackedLayer] = {}

    def begin(self, network: nn.Module) -> None:
        """Prepare for this network: see `Conversion.begin`."""
        self.network = network
        for step in self.steps:
            step.begin(network)

    def concern(self, name: str) -> bool:
        """Whether any conversion makes something of this weight."""
        return any(step.changes(name) or step.stores(name) for step in self.steps)

    def renews(self, name: str, packing: str | None) -> bool:
        """Whether this weight gets other numbers; packed ones that are stored in another form mostly keep theirs."""
        return any(step.changes(name) or (step.stores(name) and packing is None) for step in self.steps)

    @torch.no_grad()
    def apply(self, name: str, weight: Weight, dtype: torch.dtype | None, *, linear: bool) -> Weight:
        """What becomes of a weight, on the device where it is.

        dtype: that of the network, for floating-point weights that end up dense; None: that of the file, of packed ones
        float32. linear: whether it is that of a linear layer, which can be packed.
        """
        place = place_of(weight)
        packed = linear and self.keeps_packed and (isinstance(weight, PackedTensor) or is_fp8(weight))
        changing = [step for step in self.steps if step.changes(name) and not (packed and step.leaves(name))]
        storing = next((step for step in self.steps if linear and step.stores(name)), None)
        if (changing or storing) and self.device is not None and place.type != "meta":
            weight = weight.to(self.device)
        if changing:
            kept = weight.dtype if isinstance(weight, Tensor) and not is_fp8(weight) else None
            value = dense(weight)
            if place.type != "meta":
                for step in changing:
                    value = step.change(name, value)
            weight = value if storing or dtype is not None or kept is None else value.to(kept)
        if storing:
            return storing.store(name, weight).to(place)
        if not isinstance(weight, Tensor) or is_fp8(weight):
            if linear and self.keeps_packed:
                return (weight if isinstance(weight, PackedTensor) else RawFp8.of(weight)).to(place)
            weight = dense(weight, dtype)
        return weight.to(place, dtype if weight.is_floating_point() else None)

    def keep(self, name: str, packed: PackedTensor) -> None:
        """Put a layer that keeps the packed weight of this name in the place of the network's linear layer."""
        assert self.network is not None
        place = name.removesuffix(".weight")
        before = self.network.get_submodule(place)
        storing = next((step for step in self.steps if step.stores(name)), None)
        bias = getattr(before, "bias", None)
        layer = storing.layer(name, packed, bias) if storing else PackedLinear(packed, bias)
        layer.train(before.training)
        self.network.set_submodule(place, layer)
        self.layers[name] = layer

    def owner(self, name: str) -> str:
        """The name of the weight, as files have it, to which a parameter of the network belongs."""
        place, _, own = name.rpartition(".")
        weight = f"{place}.weight"
        return weight if weight in self.layers and own != "bias" else name

    def pieces(self, name: str, weight: Weight) -> Iterator[tuple[str, Tensor]]:
        """The parameters of the network that keep a converted weight, by name."""
        if isinstance(weight, Tensor):
            yield name, weight
            return
        place = name.removesuffix(".weight")
        for own, part in self.layers[name].kept(weight).items():
            yield f"{place}.{own}", part

    @torch.no_grad()
    def convert(self, network: nn.Module) -> None:
        """Convert a network whose weights are there already, in place; those on the meta device are left alone."""
        self.begin(network)
        for place, module in list(network.named_modules()):
            if isinstance(module, PackedLayer):
                self._convert_packed(f"{place}.weight", module)
                continue
            for own, weight in list(module.named_parameters(recurse=False)):
                name = f"{place}.{own}" if place else own
                if weight.is_meta or not self.concern(name):
                    continue
                made = self.apply(name, weight.data, weight.dtype, linear=own == "weight" and is_linear(module))
                if isinstance(made, PackedTensor):
                    self.keep(name, made)
                elif self.device is None or weight.device.type == torch.device(self.device).type:
                    weight.copy_(made)
                else:  # written into a weight that is mapped from a file, it would take memory beside the file's
                    weight.data = made

    def _convert_packed(self, name: str, layer: PackedLayer) -> None:
        """Convert a layer that is packed already, if its values change."""
        if not any(step.changes(name) for step in self.steps) or next(layer.parameters()).is_meta:
            return
        if self.keeps_packed and all(step.leaves(name) for step in self.steps if step.changes(name)):
            return
        dtype = layer.bias.dtype if layer.bias is not None else None
        made = self.apply(name, layer.packed(), dtype, linear=True)
        if isinstance(made, PackedTensor):
            self.keep(name, made)
            return
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(made, requires_grad=False)
        plain.bias = layer.bias  # type: ignore[assignment]
        assert self.network is not None
        self.network.set_submodule(name.removesuffix(".weight"), plain)


class RawFp8(PackedTensor):
    """Numbers in an fp8 type, without a scale."""

    @classmethod
    def of(cls, weight: Tensor) -> RawFp8:
        """A tensor (out in) of such numbers."""
        return cls(tuple(weight.shape), {"weight": weight})

    def as_fp8(self) -> tuple[Tensor, None]:
        return self.parts["weight"], None

    def dense(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        return self.parts["weight"].to(device).to(dtype or torch.float32)


def place_of(weight: Weight) -> torch.device:
    """The device that a weight is on."""
    return weight.device if isinstance(weight, Tensor) else next(iter(weight.parts.values())).device


def is_fp8(weight: Tensor) -> bool:
    """Whether a tensor has fp8 numbers, with which nothing but a matrix multiplication computes."""
    return weight.dtype in (torch.float8_e4m3fn, torch.float8_e5m2)


def dense(weight: Weight, dtype: torch.dtype | None = None) -> Tensor:
    """The numbers of a weight in `dtype`, default float32, where it is."""
    return weight.to(dtype or torch.float32) if isinstance(weight, Tensor) else weight.dense(dtype)
