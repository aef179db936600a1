"""LoRA files: from their tensors to changes of a network's weights, in every dialect of the field.

    lora = read_lora(state, metadata=header.metadata, name="style.safetensors")
    fit = lora.fit({name: weight.shape for name, weight in network.state_dict().items()})
    for name, changes in fit.changes.items():
        for change in changes:
            weights[name] = change.apply(weights[name].float(), 0.7)
    print(fit)                     # 720 of 760 tensors used; 40 left out: image branch: this network has no layer ...

W' = W + strength * alpha / rank * up @ down (Hu et al. 2021, arXiv:2106.09685), all in float32; without an alpha the
factor is the strength alone. Nothing is applied by halves: what does not fit is found before anything is changed.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from omniavatar.checkpoints.lora_names import (
    MAIN,
    SECOND,
    TEXT,
    Key,
    Layers,
    elsewhere,
    meaning,
    parsed,
    unsupported,
    why_no_layer,
)
from omniavatar.errors import CheckpointError, parsing, shortened, shown

Shape = tuple[int, ...]
State = Mapping[str, Tensor]
Shapes = Mapping[str, Sequence[int]]
METADATA = "lora_adapter_metadata"
"""Entry of a safetensors header in which diffusers writes what peft has in adapter_config.json."""
PREFIX_OF = {MAIN: "transformer.", SECOND: "transformer_2.", TEXT: "text_encoder."}
"""By network, what stands in front of the settings there."""
LONGEST_METADATA = 10_000_000
CHANNELS = "the file's patch embedding has other input channels than this network"
PATCHES = "patch_embedding.weight"
LARGEST = 1e9
"""Of an alpha in settings."""
LITERAL = re.compile(r"\^?[\w.\\-]+\$?")
"""A pattern of peft that is only a name, or the end of one."""
DELTAS = ("diff", "diff_b", "diff_m")
"""Parts that are a delta of a weight, of which there is one."""
MAX_CHANNELS = 4096
"""Of a patch embedding that a file asks to be made larger."""


# What a file does to one weight --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """A change of one weight."""

    @property
    def is_additive(self) -> bool:
        """Whether what it adds, `strength * delta()`, does not depend on the weight."""
        return True

    @property
    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        """(up, down, scale), where the delta is scale * up @ down with all but the first dimension of each joined."""
        return None

    @property
    def parts(self) -> dict[str, Tensor]:
        """The tensors that it consists of."""
        found: dict[str, Tensor] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Change):
                found |= {f"{entry.name}_{name}": part for name, part in value.parts.items()}
            elif isinstance(value, tuple):
                found |= {f"{entry.name}_{i}": part for i, part in enumerate(value) if isinstance(part, Tensor)}
            elif isinstance(value, Tensor):
                found[entry.name] = value
        return found

    def with_parts(self, parts: Mapping[str, Tensor]) -> Self:
        """The same change with its tensors elsewhere."""
        changed: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            own = {name.removeprefix(f"{entry.name}_"): part for name, part in parts.items()}
            if isinstance(value, Change):
                changed[entry.name] = value.with_parts({name: own[name] for name in value.parts})
            elif isinstance(value, tuple) and all(isinstance(part, Tensor) for part in value):
                changed[entry.name] = tuple(parts[f"{entry.name}_{i}"] for i in range(len(value)))
            elif isinstance(value, Tensor):
                changed[entry.name] = parts[entry.name]
        return replace(self, **changed)

    def delta(self, device: torch.device | str | None = None) -> Tensor:
        """What it adds at strength 1, float32; of the weight's shape, or of as many numbers in the same order."""
        raise NotImplementedError

    def made(self) -> Shape:
        """The shape of the delta as (out, inputs), or that of the whole weight."""
        raise NotImplementedError

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The changed weight, float32 where the weight is; strength 0 changes nothing."""
        if strength == 0:
            return weight
        return weight.float() + strength * self.delta(weight.device).reshape(weight.shape)


@dataclass(frozen=True)
class Pair(Change):
    """scale * up @ down: up (out rank), down (rank in); convolutions have further dimensions."""

    up: Tensor
    down: Tensor
    scale: float = 1.0

    @property
    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        return self.up, self.down, self.scale

    def delta(self, device: torch.device | str | None = None) -> Tensor:
        up, down = (as_float(half, device).flatten(1) for half in (self.up, self.down))
        return (up @ down) * self.scale

    def made(self) -> Shape:
        return self.up.shape[0], math.prod(self.down.shape[1:])


@dataclass(frozen=True)
class Hadamard(Change):
    """LoHa (Hyeon-Woo et al. 2022, arXiv:2108.06098): (w1_a @ w1_b) * (w2_a @ w2_b), element by element."""

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    scale: float = 1.0

    def delta(self, device: torch.device | str | None = None) -> Tensor:
        w1_a, w1_b, w2_a, w2_b = (as_float(w, device).flatten(1) for w in (self.w1_a, self.w1_b, self.w2_a, self.w2_b))
        return (w1_a @ w1_b) * (w2_a @ w2_b) * self.scale

    def made(self) -> Shape:
        return self.w1_a.shape[0], math.prod(self.w1_b.shape[1:])


@dataclass(frozen=True)
class Kronecker(Change):
    """LoKr (Yeh et al. 2024, arXiv:2309.14859): the Kronecker product of two factors, each whole or a product."""

    w1: tuple[Tensor, ...]
    w2: tuple[Tensor, ...]
    scale: float = 1.0

    def delta(self, device: torch.device | str | None = None) -> Tensor:
        w1, w2 = (self._factor(parts, device) for parts in (self.w1, self.w2))
        return torch.kron(w1, w2) * self.scale

    @staticmethod
    def _factor(parts: tuple[Tensor, ...], device: torch.device | str | None) -> Tensor:
        first, *others = (as_float(part, device).flatten(1) for part in parts)
        return first @ others[0] if others else first

    def made(self) -> Shape:
        rows = self.w1[0].shape[0] * self.w2[0].shape[0]
        return rows, math.prod(self.w1[-1].shape[1:]) * math.prod(self.w2[-1].shape[1:])


@dataclass(frozen=True)
class Delta(Change):
    """A whole delta, never with alpha; `scale` is that of a bias beside a pair."""

    value: Tensor
    scale: float = 1.0

    def delta(self, device: torch.device | str | None = None) -> Tensor:
        return as_float(self.value, device) * self.scale

    def made(self) -> Shape:
        return tuple(self.value.shape)


@dataclass(frozen=True)
class Replaced(Change):
    """The weight becomes this one, whatever the strength, unless that is 0."""

    value: Tensor

    @property
    def is_additive(self) -> bool:
        return False

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        return weight if strength == 0 else as_float(self.value, weight.device).reshape(weight.shape)

    def made(self) -> Shape:
        return tuple(self.value.shape)


@dataclass(frozen=True)
class Padded(Change):
    """The weight grows to this shape, with zeros at the end of each dimension."""

    shape: Shape

    @property
    def is_additive(self) -> bool:
        return False

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        if strength == 0 or tuple(weight.shape) == self.shape:
            return weight
        larger = torch.zeros(self.shape, device=weight.device)
        larger[tuple(slice(size) for size in weight.shape)] = weight.float()
        return larger

    def made(self) -> Shape:
        return self.shape


@dataclass(frozen=True)
class Dora(Change):
    """DoRA (Liu et al. 2024, arXiv:2402.09353) as LyCORIS and as peft compute it.

    LyCORIS (`dora_scale`): V = W + delta; W' = V * (strength * (magnitude / |V| - 1) + 1), the norm being that of each
    row, or of each column for a magnitude of shape (1, in). peft: V = W + strength * delta; W' = V * magnitude / |V|.
    """

    inner: Change
    magnitude: Tensor
    is_peft: bool

    @property
    def is_additive(self) -> bool:
        return False

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        if strength == 0:
            return weight
        moved = self.inner.apply(weight, strength if self.is_peft else 1.0)
        rows = moved.flatten(1)
        magnitude = as_float(self.magnitude, weight.device).reshape(self._along(rows))
        norm = torch.linalg.vector_norm(rows, dim=1 if magnitude.shape[0] == len(rows) else 0, keepdim=True)
        ratio = magnitude / norm.clamp(min=torch.finfo(torch.float32).tiny)
        factor = ratio if self.is_peft else strength * (ratio - 1) + 1
        changed: Tensor = (rows * factor).reshape(weight.shape)
        return changed

    def _along(self, rows: Tensor) -> Shape:
        """(out 1), or (1 in) if it has a number for every input."""
        by_input = self.magnitude.ndim > 1 and self.magnitude.shape[0] == 1 and self.magnitude.numel() == rows.shape[1]
        return (1, rows.shape[1]) if by_input else (rows.shape[0], 1)

    def made(self) -> Shape:
        return self.inner.made()


def as_float(tensor: Tensor, device: torch.device | str | None) -> Tensor:
    """A tensor in float32, on a device or where it is."""
    return tensor.to(device or tensor.device, torch.float32)


# What became of a file -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Used:
    """A key of a file that changes a weight."""

    to: str


@dataclass(frozen=True)
class LeftOut:
    """A key of a file that changes nothing, and why. is_elsewhere: it is for another network than the one changed."""

    reason: str
    is_elsewhere: bool = False


@dataclass(frozen=True)
class Fit:
    """What a LoRA does to one network: changes by weight name, in their order, and what became of each key."""

    name: str
    changes: dict[str, list[Change]]
    report: dict[str, Used | LeftOut]
    notes: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise CheckpointError if it changes nothing."""
        if not self.changes:
            some = ", ".join(f"'{shortened(key)}'" for key in list(self.report)[:3])
            why = "; ".join(reason for reason, _ in self.reasons.most_common(3))
            raise CheckpointError(
                f"LoRA {self.name}: none of its {len(self.report)} keys names a layer of this network, such as {some} "
                f"({why}); it is made for another model"
            )

    def beside(self, other: Fit) -> Fit:
        """What the same file does to this network and to another one with it: a key is left out if both lack it."""
        report = {}
        for key, entry in self.report.items():
            also = other.report[key]
            is_ours = isinstance(entry, Used) or (isinstance(also, LeftOut) and not entry.is_elsewhere)
            report[key] = entry if is_ours else also
        return Fit(self.name, {**other.changes, **self.changes}, report, self.notes)

    @property
    def reasons(self) -> Counter[str]:
        """How many keys are left out for each reason."""
        return Counter(entry.reason for entry in self.report.values() if isinstance(entry, LeftOut))

    @property
    def used(self) -> int:
        """How many keys change a weight."""
        return len(self.report) - self.reasons.total()

    def __str__(self) -> str:
        line = f"{self.used} of {len(self.report)} tensors used"
        reasons = self.reasons
        if reasons:
            each = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
            only = next(iter(reasons))
            line += f"; {reasons.total()} left out: {only if len(reasons) == 1 else each}"
        return "; ".join([line, *self.notes])

    def facts(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "used": self.used,
            "tensors": len(self.report),
            "left_out": dict(self.reasons),
            "weights": len(self.changes),
            **({"notes": list(self.notes)} if self.notes else {}),
        }


@dataclass
class Layer:
    """What a file has for one layer: tensors by what they are, and the keys they stand under."""

    stem: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    scale: float = 1.0

    @property
    def part(self) -> str:
        """The network that it is for, as the file says."""
        return meaning(self.stem).part


@dataclass(frozen=True)
class Lora:
    """A LoRA file that has been read and checked, but for how it fits a network.

    name: what messages call it. layers: by the names in the file. others: keys that are no kind of change.
    """

    name: str
    layers: tuple[Layer, ...]
    others: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def fit(self, shapes: Shapes, *, partial: bool = False, part: str = MAIN, is_named: bool = False) -> Fit:
        """What it changes in a network with weights of these (official) names and shapes.

        partial: it may be for another network alone. part: which of the networks that its keys name this one is.
        is_named: whether the file is given for this one alone. Raises CheckpointError for a layer that exists and has
        another shape, for two names of one layer, and unless `partial` if no key names a layer of the network.
        """
        network = Layers(tuple(shapes))
        changes: dict[str, list[Change]] = defaultdict(list)
        report: dict[str, Used | LeftOut] = {key: LeftOut("no known kind of change") for key in self.others}
        owners: dict[tuple[str, str], str] = {}
        for layer in self.layers:
            if layer.part != part:
                reason = elsewhere(layer.part, is_named=is_named)
                report |= dict.fromkeys(layer.keys.values(), LeftOut(reason, is_elsewhere=True))
                continue
            name = network.find(layer.stem)
            if name is None:
                report |= dict.fromkeys(layer.keys.values(), LeftOut(why_no_layer(layer.stem)))
                continue
            for kind, key in layer.keys.items():
                other = owners.setdefault((name, kind), key)
                if other != key:
                    raise self._error(f"'{other}' and '{key}' both mean the layer '{name}'; remove one of them")
            for weight, kind, key, change in changes_of(layer, name, shapes):
                if weight not in shapes:
                    report[key] = LeftOut(f"this network's layer has no {weight.rpartition('.')[2]}")
                elif is_of_other_channels(weight, change, shapes[weight]) and isinstance(change, Delta):
                    report[key] = LeftOut(CHANNELS)
                elif kind in DELTAS and owners.setdefault((weight, "delta"), key) != key:
                    raise self._error(
                        f"'{owners[weight, 'delta']}' and '{key}' both are the delta of '{weight}'; remove one of them"
                    )
                else:
                    self._check(weight, kind, change, changes[weight], shapes[weight])
                    changes[weight].append(change)
                    report[key] = Used(weight)
            settle_rest(layer, name, report)
        fit = Fit(self.name, {name: some for name, some in changes.items() if some}, report, self.notes)
        if not partial:
            fit.check()
        return fit

    def facts(self) -> dict[str, Any]:
        """What the file has, as JSON values."""
        ranks = sorted({rank for layer in self.layers if (rank := rank_of(layer)) is not None})
        scales = sorted({round(layer.scale, 4) for layer in self.layers if rank_of(layer) is not None})
        kinds = Counter(kind_of(layer) for layer in self.layers)
        return {"layers": len(self.layers), "kinds": dict(kinds), "ranks": ranks, "scales": scales}

    def _check(self, weight: str, part: str, change: Change, before: Sequence[Change], shape: Sequence[int]) -> None:
        """See that a change fits a weight, as those before leave it."""
        shape = next((one.shape for one in reversed(before) if isinstance(one, Padded)), tuple(shape))
        made = change.made()
        if isinstance(change, Padded):
            fits = len(made) == len(shape) and all(new >= old for new, old in zip(made, shape, strict=True))
        elif isinstance(change, Delta | Replaced):
            fits = made == shape or (math.prod(made) == math.prod(shape) and squeezed(made) == squeezed(shape))
        else:
            fits = made == (shape[0], math.prod(shape[1:])) if shape else False
        if fits and isinstance(change, Dora):
            sides = ((shape[0], 1), (1, math.prod(shape[1:])))
            if squeezed(change.magnitude.shape) not in map(squeezed, sides):
                raise self._error(
                    f"the magnitude (DoRA) of the layer '{weight.removesuffix('.weight')}' has the shape "
                    f"{list(change.magnitude.shape)}, for this weight it is {list(sides[0])} or {list(sides[1])}"
                )
        if not fits:
            layer = weight.removesuffix(".weight")
            what = {"diff": "delta", "diff_b": "bias delta", "up_bias": "bias delta", "diff_m": "modulation delta"}.get(
                part, "change"
            )
            raise self._error(
                f"the {what} of the layer '{layer}' has the shape {list(made)}, the network's weight '{weight}' has "
                f"{list(shape)}; the LoRA is made for another base model"
            )

    def _error(self, reason: str) -> CheckpointError:
        return CheckpointError(f"LoRA {self.name}: {reason}")


def squeezed(shape: Sequence[int]) -> Shape:
    """A shape without its sides of 1."""
    return tuple(size for size in shape if size != 1)


def is_of_other_channels(weight: str, change: Change, shape: Sequence[int]) -> bool:
    """Whether this is a delta of a patch embedding for other input channels."""
    made, own = change.made(), tuple(shape)
    return weight.endswith(PATCHES) and len(made) == len(own) == 5 and made[1] != own[1] and made[2:] == own[2:]


def changes_of(layer: Layer, name: str, shapes: Shapes) -> Iterator[tuple[str, str, str, Change]]:
    """What a layer's tensors do: (weight, part, key, change), in the order in which it is done."""
    found, keys, scale = layer.tensors, layer.keys, layer.scale
    weight = name if name in shapes else f"{name}.weight"
    if "reshape" in found:
        yield weight, "reshape", keys["reshape"], Padded(sizes_in(found["reshape"]))
    if "set" in found:
        yield weight, "set", keys["set"], Replaced(found["set"])
    change: Change | None = None
    first = ""
    if "down" in found:
        change, first = Pair(found["up"], found["down"], scale), "down"
    elif "hada_w1_a" in found:
        w1_a, w1_b, w2_a, w2_b = (found[f"hada_{part}"] for part in ("w1_a", "w1_b", "w2_a", "w2_b"))
        change, first = Hadamard(w1_a, w1_b, w2_a, w2_b, scale), "hada_w1_a"
    elif any(part.startswith("lokr") for part in found):
        w1, w2 = (tuple(found[part] for part in kronecker(side, found)) for side in (1, 2))
        change, first = Kronecker(w1, w2, scale), kronecker(1, found)[0]
    for part, is_peft in (("dora_scale", False), ("magnitude", True)):
        if part in found and change is not None:
            change = Dora(change, found[part], is_peft)
    if change is not None:
        yield weight, first, keys[first], change
    for part, target, factor in (
        ("diff", weight, 1.0),
        ("diff_b", f"{name}.bias", 1.0),
        ("up_bias", f"{name}.bias", scale),
        ("diff_m", f"{name}.modulation", 1.0),
    ):
        if part in found:
            yield target, part, keys[part], Delta(found[part], factor)


def settle_rest(layer: Layer, name: str, report: dict[str, Used | LeftOut]) -> None:
    """Give the keys that belong to a pair or product the fate of its first."""
    factors = [key for part, key in layer.keys.items() if part in ("down", "hada_w1_a") or part.startswith("lokr_w1")]
    fate = next((report[key] for key in factors if key in report), None)
    for key in layer.keys.values():
        report.setdefault(key, fate or LeftOut("it belongs to a change that the file does not have"))


def sizes_in(tensor: Tensor) -> Shape:
    """The shape that a tensor holds as numbers."""
    return tuple(int(size) for size in tensor.flatten().tolist())


def kronecker(side: int, found: Mapping[str, Any]) -> list[str]:
    """The parts that one factor of a Kronecker product is stored in: one whole, or two that are multiplied."""
    whole = f"lokr_w{side}"
    return [whole] if whole in found else [f"{whole}_a", f"{whole}_b"]


def rank_of(layer: Layer) -> int | None:
    """The rank of a layer's product; None if nothing of it is one."""
    for part in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if part in layer.tensors:
            return max(1, layer.tensors[part].shape[0])
    return None


def kind_of(layer: Layer) -> str:
    """What people call the main thing that a layer has."""
    found = layer.tensors
    kinds = {"LoRA": "down", "LoHa": "hada_w1_a", "LoKr": kronecker(1, found)[0]}
    kind = next((name for name, part in kinds.items() if part in found), "delta")
    return f"DoRA ({kind})" if {"dora_scale", "magnitude"} & found.keys() else kind


# Reading -------------------------------------------------------------------------------------------------------------


def read_lora(
    state: State,
    *,
    metadata: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    name: str = "",
) -> Lora:
    """What the tensors of a LoRA file mean.

    state: by the names in the file. Tensors on the meta device are taken by their shapes: so a header can be examined.
    metadata: the header's entries, in which diffusers writes ranks and alphas. settings: the adapter_config.json of a
    peft folder, `{"lora_alpha": 8, "use_rslora": true, ...}`. name: for messages.
    Raises CheckpointError for what is no LoRA, incomplete, or has values that are no numbers.
    """
    reader = Reader(name, metadata or {}, settings or {})
    return reader.read({key: tensor if isinstance(tensor, Tensor) else tensor.dense() for key, tensor in state.items()})


class Reader:
    """Reads one file."""

    def __init__(self, name: str, metadata: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        self.name = name
        self.settings = dict.fromkeys(PREFIX_OF, settings) if settings else self._of_diffusers(metadata)
        for of_part in self.settings.values():
            for key in ("rank_pattern", "alpha_pattern"):
                self._check_patterns(key, of_part)

    def error(self, reason: str) -> CheckpointError:
        return CheckpointError(f"LoRA {self.name}: {reason}")

    def read(self, state: State) -> Lora:
        if not state:
            raise self.error("the file holds no tensors; download it again")
        layers: dict[str, Layer] = {}
        others = []
        for key, tensor in state.items():
            kind = unsupported(key)
            if kind is not None:
                raise self.error(f"{kind} is not supported ('{shortened(key)}'); convert the file to a plain LoRA")
            found = parsed(key)
            if found is None:
                others.append(key)
                continue
            self._check_numbers(found, tensor)
            self._add(layers, found, tensor)
        for layer in layers.values():
            self._check_complete(layer)
            layer.scale = self._scale(layer)
        if all(layer.tensors.keys() <= {"alpha"} for layer in layers.values()):
            some = ", ".join(f"'{shortened(key)}'" for key in list(state)[:3])
            raise self.error(
                f"none of its {len(state)} tensors is part of a LoRA, such as {some}; is it a whole model?"
            )
        return Lora(self.name, tuple(layers.values()), tuple(others), self._notes(layers))

    def _add(self, layers: dict[str, Layer], key: Key, tensor: Tensor) -> None:
        layer = layers.setdefault(key.stem, Layer(key.stem))
        if key.part in layer.tensors:
            raise self.error(f"'{layer.keys[key.part]}' and '{key.text}' both mean the layer '{key.stem}'; remove one")
        layer.tensors[key.part], layer.keys[key.part] = tensor, key.text

    def _check_numbers(self, key: Key, tensor: Tensor) -> None:
        """Refuse what would make every frame black, and numbers that only stand for others."""
        text = key.text
        is_number = key.part in ("alpha", "reshape") and tensor.dtype != torch.bool
        if tensor.is_complex() or not (tensor.is_floating_point() or is_number):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise self.error(f"the tensor '{text}' has {kind} numbers without a scale; take another file of this LoRA")
        if not tensor.is_meta and tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            if key.part == "alpha":
                raise self.error(f"the alpha '{text}' is no finite number; the file is damaged")
            raise self.error(f"the tensor '{text}' holds values that are no finite numbers (NaN); the file is damaged")

    def _check_complete(self, layer: Layer) -> None:
        """Halves and factors all there, of ranks that agree; numbers where one number is expected."""
        found, stem = layer.tensors, layer.stem
        for part, other, missing in (("down", "up", "lora_up (lora_B)"), ("up", "down", "lora_down (lora_A)")):
            if part in found and other not in found:
                raise self.error(
                    f"the layer '{stem}' has no {missing}, only '{layer.keys[part]}'; the file is incomplete"
                )
        families = [part.partition("_")[0] for part in found if part.startswith(("hada", "lokr"))]
        if "down" in found:
            families.append("lora")
        if len(set(families)) > 1:
            raise self.error(
                f"the layer '{stem}' has both {' and '.join(sorted(set(families)))}; give them in two files"
            )
        self._check_factors(layer)
        if "down" in found:
            down, up = found["down"], found["up"]
            if down.ndim < 2 or up.ndim < 2 or math.prod(up.shape[2:]) != 1:
                raise self.error(f"the pair of '{stem}' has the shapes {list(up.shape)} and {list(down.shape)}")
            if down.shape[0] != up.shape[1]:
                ranks = [
                    f"{rank} in '{layer.keys[part]}'" for rank, part in ((down.shape[0], "down"), (up.shape[1], "up"))
                ]
                raise self.error(f"the pair of '{stem}' has two ranks: {' and '.join(ranks)}; the file is damaged")
        if any(not tensor.numel() for tensor in found.values()):
            empty = next(key for part, key in layer.keys.items() if part in found and not found[part].numel())
            raise self.error(f"the tensor '{empty}' is empty; the file is damaged")
        if "alpha" in found and found["alpha"].numel() != 1:
            key = layer.keys["alpha"]
            raise self.error(f"the alpha '{key}' is no single number but has the shape {list(found['alpha'].shape)}")
        if "reshape" in found:
            self._check_reshape(layer)

    def _check_reshape(self, layer: Layer) -> None:
        key, sizes = layer.keys["reshape"], layer.tensors["reshape"]
        if sizes.ndim != 1 or not 1 <= len(sizes) <= 8:
            raise self.error(f"'{key}' is no list of sizes")
        if sizes.is_meta:
            del layer.tensors["reshape"]
        elif not bool((sizes == sizes.round()).all()):
            raise self.error(f"'{key}' is no list of whole numbers")
        elif any(not 1 <= size <= 1_000_000 for size in sizes_in(sizes)) or sizes_in(sizes)[-1:] > (MAX_CHANNELS * 64,):
            raise self.error(f"'{key}' asks for the shape {shown(list(sizes_in(sizes)))}")

    def _check_factors(self, layer: Layer) -> None:
        """All factors of a LoHa or LoKr are there and can be multiplied."""
        found, stem = layer.tensors, layer.stem
        if any(part.startswith("hada") for part in found):
            products = [["hada_w1_a", "hada_w1_b"], ["hada_w2_a", "hada_w2_b"]]
        elif any(part.startswith("lokr") for part in found):
            products = [kronecker(side, found) for side in (1, 2)]
        else:
            return
        for parts in products:
            for part in parts:
                if part not in found:
                    raise self.error(f"the layer '{stem}' has no {part}; the file is incomplete")
                if found[part].ndim < 2:
                    raise self.error(
                        f"'{layer.keys[part]}' has the shape {list(found[part].shape)}, it should be a matrix"
                    )
            first, last = found[parts[0]], found[parts[-1]]
            if len(parts) == 2 and math.prod(first.shape[1:]) != last.shape[0]:
                raise self.error(
                    f"'{layer.keys[parts[0]]}' {list(first.shape)} and '{layer.keys[parts[1]]}' {list(last.shape)} "
                    "cannot be multiplied: they have two ranks"
                )
        if "hada_w1_a" in found:
            one, two = ((found[a].shape[0], math.prod(found[b].shape[1:])) for a, b in products)
            if one != two:
                raise self.error(f"the two products of '{stem}' have the shapes {list(one)} and {list(two)}")

    # Strength of a layer

    def _scale(self, layer: Layer) -> float:
        """alpha / rank: of the tensor beside it, else as the settings say, else 1."""
        rank = rank_of(layer)
        if rank is None:
            return 1.0
        if "alpha" in layer.tensors:
            alpha = layer.tensors["alpha"]
            return 1.0 if alpha.is_meta else float(alpha.float().item()) / rank
        settings = self.settings.get(layer.part, {})
        given = self._setting(layer, "alpha_pattern", "lora_alpha", settings)
        if given is None:
            return 1.0
        return given / (math.sqrt(rank) if settings.get("use_rslora") else rank)

    def _setting(self, layer: Layer, pattern: str, default: str, settings: Mapping[str, Any]) -> float | None:
        """A number of the settings for a layer."""
        names = meaning(layer.stem).names
        patterns = (settings.get(pattern) or {}).items()
        value = next((number for one, number in patterns if any(fits_name(one, name) for name in names)), None)
        if value is None:
            value = settings.get(default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise self.error(f"its settings have {default} = {shown(value)}, which is no number that an alpha can be")
        return float(value)

    def _check_patterns(self, name: str, settings: Mapping[str, Any]) -> None:
        is_stabilised = settings.get("use_rslora")
        if not isinstance(is_stabilised, bool | None):
            raise self.error(f"its settings have use_rslora = {shown(is_stabilised)}, which is neither true nor false")
        patterns = settings.get(name) or {}
        if not isinstance(patterns, Mapping):
            raise self.error(f"its settings have {name} = {shown(patterns)}, which is no mapping of layers to numbers")
        strange = next((key for key in patterns if not LITERAL.fullmatch(str(key))), None)
        if strange is not None:
            raise self.error(f"its {name} has {shown(strange)}; only names of layers, or ends of them, are understood")

    def _of_diffusers(self, metadata: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """What diffusers' entry of the header says of each network."""
        text = metadata.get(METADATA)
        if not text:
            return {}
        with parsing(lambda reason: self.error(f"its header's entry {METADATA} is not readable JSON ({reason})")):
            if len(text) > LONGEST_METADATA:
                raise ValueError("too long")
            content = json.loads(text)
            if not isinstance(content, dict):
                raise ValueError("no object")
        return {
            part: {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}
            for part, prefix in PREFIX_OF.items()
        }

    def _notes(self, layers: Mapping[str, Layer]) -> tuple[str, ...]:
        """What a user should know of the strength."""
        bare = [layer for layer in layers.values() if "down" in layer.tensors and "alpha" not in layer.tensors]
        if (
            bare
            and any(layer.stem.startswith("base_model.") for layer in bare)
            and "lora_alpha" not in self.settings.get(MAIN, {})
        ):
            return (
                "it says no alpha, so its scale is 1; if it was trained with another, keep adapter_config.json beside "
                "adapter_model.safetensors, or give alpha / rank as its strength",
            )
        return ()


def fits_name(pattern: str, layer: str) -> bool:
    """Whether a layer's name is what a pattern of peft names, or ends in it."""
    name = pattern.replace("\\", "").rstrip("$")
    if name.startswith("^"):
        return layer == name[1:]
    return layer == name or layer.endswith(f".{name}")
