"""Changes of weights, such as LoRA (Hu et al. 2021, arXiv:2106.09685), merged into a network or added as it runs.

What a file changes comes from `omniavatar.checkpoints.lora`; here are the two ways to apply it:

    weight.data = merged(weight, [(change, 0.7), (other, 1.0)]).to(weight.dtype)      # once, nothing to pay later
    WithBeside(layer, Beside([(change, 0), (other, 1)], [], strengths, dtype, device))  # strengths can be changed

The second is for layers whose weights are packed, and for strengths that depend on the step. Weights of other layers,
such as norms, are then changed whenever they are read:

    change_when_read(norm, {"weight": [(change, 0)]}, strengths, device)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from omniavatar.models.packed import PackedLayer
from omniavatar.models.wrapped import Wrapped

BESIDE = "lora"
"""The name, inside of a layer, of what is added to it."""


class Change(Protocol):
    """A change of one weight.

    is_additive: whether what it adds is the strength times `delta()`, whatever the weight. factors: (up, down, scale),
    if the delta is scale * up @ down. parts: its tensors; with_parts: the same change with these moved.
    """

    @property
    def is_additive(self) -> bool: ...

    @property
    def factors(self) -> tuple[Tensor, Tensor, float] | None: ...

    @property
    def parts(self) -> Mapping[str, Tensor]: ...

    def with_parts(self, parts: Mapping[str, Tensor]) -> Self: ...

    def delta(self, device: torch.device | str | None = None) -> Tensor: ...

    def made(self) -> tuple[int, ...]: ...

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor: ...


@torch.no_grad()
def merged(weight: Tensor, changes: Iterable[tuple[Change, float]], device: torch.device | str | None = None) -> Tensor:
    """A weight with changes of these strengths, one after the other, float32 on `device`, default where it is."""
    value = weight.to(device or weight.device, torch.float32)
    for change, strength in changes:
        value = change.apply(value, strength)
    return value


class Strengths:
    """The strengths of the LoRA files of an engine at the moment, by number.

    tensor: on the device, so that compiled code takes new ones without being compiled again. numbers: the same.
    """

    def __init__(self, numbers: Sequence[float], device: torch.device | str) -> None:
        self.numbers = list(numbers)
        with torch.inference_mode(mode=False):
            self.tensor = torch.tensor(self.numbers, dtype=torch.float32, device=device)

    def set(self, numbers: Sequence[float]) -> bool:
        """Take other strengths; whether they are others."""
        if list(numbers) == self.numbers:
            return False
        self.numbers[:] = numbers
        self.tensor.copy_(torch.tensor(self.numbers, dtype=torch.float32))
        return True


class Keeping(nn.Module):
    """Keeps the tensors of changes as parameters, so that what moves weights moves them too."""

    def __init__(self, strengths: Strengths) -> None:
        super().__init__()
        self.strengths = strengths

    def _keep(
        self, index: int, parts: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | str
    ) -> dict[str, str]:
        """Make parameters of tensors; returns their names."""
        names = {part: f"{part}_{index}" for part in parts}
        for part, name in names.items():
            value = parts[part].detach().to(device, dtype).contiguous()
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))
        return names

    def _moved(self, change: Change, names: Mapping[str, str]) -> Change:
        """A change with its tensors where this module has them."""
        return change.with_parts({part: getattr(self, name) for part, name in names.items()})


class Beside(Keeping):
    """What a linear layer gets beside its weight and bias, in the precision of the network.

    weights, biases: the changes with the numbers of their files. A product of two factors is applied factor by factor;
    any other delta is computed at each use, and what depends on the weight is given the dense weight.
    """

    def __init__(
        self,
        weights: Sequence[tuple[Change, int]],
        biases: Sequence[tuple[Change, int]],
        strengths: Strengths,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__(strengths)
        self.is_additive = all(change.is_additive for change, _ in weights)
        self.pairs: list[tuple[str, str, int]] = []
        self.others: list[tuple[Change, dict[str, str], int]] = []
        self.biases: list[tuple[str, int]] = []
        for change, file in weights:
            index = len(self.pairs) + len(self.others)
            if self.is_additive and change.factors is not None:
                up, down, scale = change.factors
                names = self._keep(index, {"up": up.flatten(1).float() * scale, "down": down.flatten(1)}, dtype, device)
                self.pairs.append((names["up"], names["down"], file))
            else:
                self.others.append((change, self._keep(index, change.parts, dtype, device), file))
        for number, (change, file) in enumerate(biases):
            names = self._keep(number, {"bias": change.delta().flatten()}, dtype, device)
            self.biases.append((names["bias"], file))

    def forward(self, layer: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """The output of the changed layer, given its input (... in) and its own output (... out)."""
        strengths = self.strengths.tensor
        if not self.is_additive:
            output = self._with_weight(layer, x)
        else:
            for up, down, file in self.pairs:
                low = functional.linear(x, self._part(down, x))
                output = output + functional.linear(low * strengths[file].to(x.dtype), self._part(up, x))
            for change, names, file in self.others:
                delta = self._moved(change, names).delta(x.device).to(x.dtype).reshape(output.shape[-1], x.shape[-1])
                output = output + functional.linear(x * strengths[file].to(x.dtype), delta)
        for name, file in self.biases:
            output = output + (strengths[file] * self.get_parameter(name).float()).to(output.dtype)
        return output

    def _with_weight(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The output with the whole weight made anew."""
        changes = ((self._moved(change, names), self.strengths.numbers[file]) for change, names, file in self.others)
        weight = merged(dense_weight(layer), changes).to(x.dtype)
        bias: Tensor | None = getattr(layer, "bias", None)
        return functional.linear(x, weight, None if bias is None else bias.to(x.dtype))

    def _part(self, name: str, x: Tensor) -> Tensor:
        part: Tensor = getattr(self, name)
        return part.to(x.dtype)


class WithBeside(Wrapped):
    """A linear layer, packed or not, and what is added to its output. (Compiled code would not notice a hook.)"""

    def __init__(self, layer: nn.Module, beside: Beside) -> None:
        super().__init__(layer)
        self.add_module(BESIDE, beside)

    def forward(self, x: Tensor) -> Tensor:
        """(... in_features) -> (... out_features)."""
        changed: Tensor = self.lora(self.block, x, self.block(x))
        return changed


class WhenRead(Keeping):
    """Changes of a module's own weights, each made when the weight is read; in float32, rounded once.

    changes: by the weight's name in the module, with the numbers of their files.
    """

    def __init__(
        self, changes: Mapping[str, Sequence[tuple[Change, int]]], strengths: Strengths, device: torch.device | str
    ) -> None:
        super().__init__(strengths)
        self.changes: dict[str, list[tuple[Change, dict[str, str], int]]] = {}
        count = 0
        for own, numbered in changes.items():
            for change, file in numbered:
                names = self._keep(count, change.parts, torch.float32, device)
                self.changes.setdefault(own, []).append((change, names, file))
                count += 1

    @torch.no_grad()
    def forward(self, own: str, weight: Tensor) -> Tensor:
        """The weight of this name at the strengths of the moment, in its precision."""
        value = weight.float()
        for change, names, file in self.changes[own]:
            moved = self._moved(change, names)
            if moved.is_additive:
                delta = moved.delta(value.device).reshape(value.shape)
                value = value + self.strengths.tensor[file] * delta
            else:
                value = moved.apply(value, self.strengths.numbers[file])
        return value.to(weight.dtype)


def change_when_read(
    module: nn.Module,
    changes: Mapping[str, Sequence[tuple[Change, int]]],
    strengths: Strengths,
    device: torch.device | str,
) -> None:
    """Have whoever reads these weights of a module find them changed.

    As parameters, by which they are found, read from files and moved, they stay as they are.
    """
    while isinstance(module, Wrapped):
        module = module.block
    module.add_module(BESIDE, WhenRead(changes, strengths, device))
    module.__class__ = changing(type(module), tuple(changes))


KINDS: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}
"""By kind of module and names of weights, the class of modules of that kind of which these weights change."""


def changing(kind: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """The class of modules of a kind of which these weights change; one class, so that compiled code serves all."""

    def reader(own: str) -> property:
        def read(module: Any) -> Tensor:
            weight: Tensor = module._parameters[own]
            if not weight.numel() or hasattr(weight, "full_tensor"):
                return weight  # it is elsewhere, or a rank's part of a weight: nobody computes with it
            try:
                changed: Tensor = module._modules[BESIDE](own, weight)
            except AttributeError as error:  # which would have `nn.Module.__getattr__` give the weight as it is
                raise RuntimeError(f"'{own}' cannot be changed: {error}") from error
            return changed

        return property(read)

    if (kind, names) not in KINDS:
        KINDS[kind, names] = type(kind.__name__, (kind,), {own: reader(own) for own in names})
    return KINDS[kind, names]


def dense_weight(layer: nn.Module) -> Tensor:
    """The weight (out in) of a linear layer, packed or not, float32."""
    weight: Tensor = layer.dense_weight() if isinstance(layer, PackedLayer) else layer.weight  # type: ignore[assignment]
    return weight.float()
