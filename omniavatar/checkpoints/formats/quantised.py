"""Which weights of a safetensors file are quantised, how, and which tensors beside them belong to them.

The names and dtypes of the header decide, with the layer descriptions of ComfyUI where there are some: the header entry
`_quantization_metadata` and tensors `<layer>.comfy_quant`. Scales and the like vanish into their weight, which keeps
the name and the shape that it has in the file it was made from. packing.py makes the packed weights.

Read are fp8 and int8 with scales (ComfyUI, kijai, musubi-tuner, LightX2V, ModelOpt), quanto, and ComfyUI's float8,
int8_tensorwise, mxfp8, nvfp4, convrot_w4a4 and asym_w4a8_int8; LightX2V's nvfp4.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from omniavatar.checkpoints.formats.base import TensorInfo
from omniavatar.errors import CheckpointError, parsing, shortened, shown

MAX_DESCRIPTION = 65_536
"""Bytes of the description of a layer."""
DESCRIPTIONS = "_quantization_metadata"
DESCRIPTION = ".comfy_quant"
MARKER = "scaled_fp8"
FP8 = ("float8_e4m3fn", "float8_e5m2")
SCALES = (".scale_weight", ".weight_scale")
"""What a scale of a weight is called after its layer."""
OF_INPUT = (".scale_input", ".input_scale")
"""Scales of inputs, which belong to a fast matrix multiplication and never to a weight."""
QUANTO = "._data"
ROTATED = 256
"""Inputs that are rotated together unless a description says otherwise."""

FOREIGN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("an SVDQuant (nunchaku) file", (".wscales", ".smooth_factor", ".smooth", ".proj_down")),
    ("a bitsandbytes file", (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4", ".SCB")),
    ("a GPTQ or AWQ file", (".qzeros",)),
    ("a TurboDiffusion int8 file", (".int8_weight",)),
)
"""Files that are not read: what they are, and an ending of a tensor by which they are known."""


@dataclass(frozen=True)
class Packing:
    """How one weight is stored.

    kind: which of packing.py's classes keeps it. parts: the names of its tensors, by what they are to it; files: where
    each of them lies. settings: further arguments of the class.
    """

    info: TensorInfo
    kind: str
    parts: Mapping[str, str]
    files: Mapping[str, Path]
    settings: Mapping[str, Any] = field(default_factory=dict)


def packings(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[Path, Mapping[str, Any]], read: Callable[[TensorInfo], bytes]
) -> dict[str, Packing | TensorInfo]:
    """The weights of a file, or of the shards of one checkpoint, by logical names, packed or plain.

    metadata: that of each file. read: gives the bytes of a small tensor.

    Raises CheckpointError for a quantised file that is not complete or not read.
    """
    refuse_foreign(tensors)
    found = Layers(tensors)
    for layer, description in descriptions(tensors, metadata, read).items():
        found.take_described(layer, description)
    found.take_quanto()
    found.take_nvfp4_of_lightx2v()
    found.take_scaled()
    return found.all_weights()


def refuse_foreign(tensors: Mapping[str, TensorInfo]) -> None:
    """Raise CheckpointError for a quantised file of a kind that is not read."""
    for what, endings in FOREIGN:
        for name, info in tensors.items():
            if name.endswith(endings):
                raise CheckpointError(
                    f"{info.file} is {what} (by '{shortened(name)}'), which is not read; "
                    "take the model in fp8, in GGUF or unquantised"
                )


def descriptions(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[Path, Mapping[str, Any]], read: Callable[[TensorInfo], bytes]
) -> dict[str, dict[str, Any]]:
    """What ComfyUI says of each quantised layer."""
    found: dict[str, dict[str, Any]] = {}
    for file, entries in metadata.items():
        for layer, description in described_layers(file, entries):
            if f"{layer}.weight" not in tensors:
                raise CheckpointError(
                    f"{file}: its {DESCRIPTIONS} describes the layer '{shortened(layer)}', which the file lacks"
                )
            found[layer] = description
    for name, info in tensors.items():
        if name.endswith(DESCRIPTION):
            layer = name.removesuffix(DESCRIPTION)
            found[layer] = described(layer, info, read)
    return found


def described_layers(file: Path, metadata: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The descriptions in the header of one file."""
    if DESCRIPTIONS not in metadata:
        return []
    with parsing(lambda _: CheckpointError(f"{file}: its {DESCRIPTIONS} is not JSON; it must describe layers")):
        content = json.loads(str(metadata[DESCRIPTIONS]))
    layers = content.get("layers") if isinstance(content, dict) else None
    if not isinstance(layers, dict) or not all(isinstance(layer, dict) for layer in layers.values()):
        raise CheckpointError(
            f'{file}: in its {DESCRIPTIONS}, "layers" must be an object of objects, not {shown(layers)}'
        )
    return list(layers.items())


def described(layer: str, info: TensorInfo, read: Callable[[TensorInfo], bytes]) -> dict[str, Any]:
    """The description that a tensor holds as text."""
    problem = CheckpointError(f"{info.file}: the description of the layer '{shortened(layer)}' is not a JSON object")
    if info.dtype != "uint8" or info.nbytes > MAX_DESCRIPTION:
        raise problem
    with parsing(lambda _: problem):
        content = json.loads(read(info))
    if not isinstance(content, dict):
        raise problem
    return content


class Layers:
    """The tensors of one checkpoint, sorted into weights and what belongs to them; what belongs together may lie apart.

    packed: by logical names. taken: the names in the file of what belongs to these.
    """

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self.tensors = tensors
        self.packed: dict[str, Packing] = {}
        self.taken: set[str] = set()
        self.markers = list(filter(is_marker, tensors))

    # Kinds of files ---------------------------------------------------------------------------------------------------

    def take_described(self, layer: str, description: Mapping[str, Any]) -> None:
        """A layer that ComfyUI describes."""
        if f"{layer}.weight" not in self.tensors:
            self.refuse(layer, "is described and has no weight")
        kind = description.get("format")
        take = COMFY.get(kind) if isinstance(kind, str) else None
        if take is None:
            self.refuse(layer, f"has the format {shown(kind)}, which is not known; known are {', '.join(COMFY)}")
        self.taken.add(f"{layer}{DESCRIPTION}")
        take(self, layer, description)

    def take_quanto(self) -> None:
        """Weights of optimum-quanto: `X.weight._data` and `X.weight._scale`."""
        for name, info in self.tensors.items():
            if not name.endswith(QUANTO):
                continue
            weight = name.removesuffix(QUANTO)
            layer = weight.removesuffix(".weight")
            if info.dtype not in (*FP8, "int8") or f"{weight}._shift" in self.tensors:
                self.refuse(layer, f"is packed by quanto as {info.dtype}; read are its qint8 and qfloat8")
            scale = self.needed(layer, f"{weight}._scale")
            self.taken |= {f"{layer}.output_scale"}
            self.pack(layer, weight, "scaled", info.shape, info.dtype, {"weight": name, "scale": scale})
            self.check_scale(layer, scale, info.shape)
        for name, info in self.tensors.items():
            if name.endswith("._scale") and name not in self.taken:
                raise CheckpointError(f"{info.file}: the scale '{shortened(name)}' belongs to no weight")

    def take_nvfp4_of_lightx2v(self) -> None:
        """4-bit weights of LightX2V, with the numbers of calibration beside them."""
        for name, _ in self.plain_weights("uint8"):
            layer = name.removesuffix(".weight")
            globals_ = {
                part: f"{layer}.{part}"
                for part in ("alpha", "input_global_scale", "weight_global_scale")
                if f"{layer}.{part}" in self.tensors
            }
            if not (globals_.keys() >= {"alpha", "input_global_scale"} or "weight_global_scale" in globals_):
                continue
            self.taken |= {f"{layer}.input_absmax"}
            self.pack_nvfp4(layer, globals_, low_first=True)

    def take_scaled(self) -> None:
        """8-bit weights with a scale, with ComfyUI's older marker or without, and the accidents of such files."""
        for name, scale in self.tensors.items():
            for ending in SCALES:
                if name.endswith(ending) and name not in self.taken:
                    layer = name.removesuffix(ending)
                    if f"{layer}.weight" not in self.tensors:
                        raise CheckpointError(f"{scale.file}: the scale '{shortened(name)}' belongs to no weight")
                    if self.tensors[f"{layer}.weight"].dtype not in (*FP8, "int8", *FLOATS):
                        self.refuse(
                            layer, f"has {self.tensors[f'{layer}.weight'].dtype} numbers that nothing describes"
                        )
                    self.take_scaled_layer(layer, {})
        for name, info in self.plain_weights(*FP8):
            prefix = next((marker for marker in self.markers if name.startswith(marker.removesuffix(MARKER))), None)
            if prefix is not None and len(info.shape) == 2:
                self.refuse(name.removesuffix(".weight"), f"has no scale, although '{prefix}' says that fp8 is scaled")
        for name, info in self.plain_weights("int8"):
            self.refuse(name.removesuffix(".weight"), f"has int8 numbers {list(info.shape)} without a scale")
        for name, info in self.plain_weights("uint8"):
            self.refuse(
                name.removesuffix(".weight"), f"is packed (uint8 {list(info.shape)}), and nothing describes how"
            )
        self.taken |= {*self.markers}

    # Kinds of layers --------------------------------------------------------------------------------------------------

    def take_scaled_layer(self, layer: str, description: Mapping[str, Any]) -> None:
        """Numbers of 8 bits times a scale, maybe with rotated inputs; without a scale only if that is described."""
        weight = self.tensors[f"{layer}.weight"]
        wanted = DESCRIBED_AS.get(str(description.get("format")), (weight.dtype,))
        if weight.dtype not in wanted:
            self.refuse(layer, f"is described as {description['format']}, its weight is {weight.dtype}")
        parts = {"weight": weight.name}
        scales = [f"{layer}{ending}" for ending in SCALES if f"{layer}{ending}" in self.tensors]
        if scales:
            parts["scale"] = scales[0]
            self.check_scale(layer, scales[0], weight.shape)
            self.taken |= {*scales}
        elif weight.dtype == "int8":
            self.needed(layer, f"{layer}{SCALES[1]}")
        settings: dict[str, Any] = {"is_weight_only": self.is_weight_only(layer, description)}
        if told(description, "convrot", False):
            settings["rotated"] = self.rotation(layer, description, weight.shape)
        self.pack(layer, weight.name, "scaled", weight.shape, weight.dtype, parts, settings)

    def take_mxfp8(self, layer: str, description: Mapping[str, Any]) -> None:
        """fp8 with a power of two for every 32 inputs."""
        weight = self.tensors[f"{layer}.weight"]
        scale = self.needed(layer, f"{layer}.weight_scale")
        if weight.dtype not in FP8 or len(weight.shape) != 2 or weight.shape[1] % 32:
            self.refuse(layer, f"cannot be mxfp8: {weight.dtype} of the shape {list(weight.shape)}, 32 inputs a scale")
        self.check_swizzled(layer, scale, weight.shape, 32, ("uint8", "float8_e8m0fnu"))
        parts = {"weight": weight.name, "scale": scale}
        self.pack(layer, weight.name, "mxfp8", weight.shape, "mxfp8", parts, multiple=32)

    def take_nvfp4(self, layer: str, description: Mapping[str, Any]) -> None:
        """E2M1 numbers with a scale for every 16 inputs and one for all."""
        self.pack_nvfp4(layer, {"weight_scale_2": self.needed(layer, f"{layer}.weight_scale_2")}, low_first=False)

    def pack_nvfp4(self, layer: str, scales: Mapping[str, str], *, low_first: bool) -> None:
        weight, shape = self.nibbles(layer, "uint8")
        scale = self.needed(layer, f"{layer}.weight_scale")
        if shape[1] % 16:
            stored = f"{list(weight.shape)} bytes with scales {list(self.tensors[scale].shape)}"
            self.refuse(layer, f"cannot be nvfp4: {stored}, where 8 bytes of a row share a scale")
        self.check_swizzled(layer, scale, shape, 16, ("float8_e4m3fn",))
        for name in scales.values():
            self.check_single(layer, name)
        parts = {"weight": weight.name, "scale": scale, **scales}
        self.pack(layer, weight.name, "nvfp4", shape, "nvfp4", parts, {"low_first": low_first}, multiple=16)

    def take_convrot_w4a4(self, layer: str, description: Mapping[str, Any]) -> None:
        """Signed 4-bit numbers with a scale for every output, with rotated inputs."""
        weight, shape = self.nibbles(layer, "int8")
        scale = self.needed(layer, f"{layer}.weight_scale")
        self.check_scale(layer, scale, shape)
        settings = {"rotated": self.rotation(layer, description, shape)}
        parts = {"weight": weight.name, "scale": scale}
        self.pack(layer, weight.name, "int4", shape, "int4", parts, settings)

    def take_asym_w4a8(self, layer: str, description: Mapping[str, Any]) -> None:
        """Unsigned 4-bit numbers, a scale for each group of inputs, then whole numbers with a scale for each output."""
        weight, shape = self.nibbles(layer, "int8")
        group = told(description, "group_size", 16)
        groups, channel = (self.needed(layer, f"{layer}.weight_s_{part}") for part in ("rel", "channel"))
        if type(group) is not int or group < 1 or shape[1] % group:
            self.refuse(layer, f"has groups of {shown(group)} inputs, which must divide its {shape[1]} inputs")
        for name, wanted in ((groups, (shape[0], shape[1] // group)), (channel, (shape[0],))):
            if self.tensors[name].shape not in (wanted, (*wanted, 1)):
                found = list(self.tensors[name].shape)
                self.refuse(layer, f"has the scales '{shortened(name)}' {found}, where {list(wanted)} are needed")
        parts = {"weight": weight.name, "groups": groups, "channel": channel}
        codebook = f"{layer}.weight_codebook"
        if codebook in self.tensors:
            if self.tensors[codebook].numel != 16:
                self.refuse(layer, f"has a codebook of {self.tensors[codebook].numel} numbers; 4 bits tell 16 apart")
            parts["codebook"] = codebook
        settings = {"rotated": self.rotation(layer, description, shape)}
        self.pack(layer, weight.name, "asym4", shape, "int4", parts, settings)

    # For these --------------------------------------------------------------------------------------------------------

    def pack(
        self,
        layer: str,
        stored: str,
        kind: str,
        shape: tuple[int, ...],
        dtype: str,
        parts: Mapping[str, str],
        settings: Mapping[str, Any] | None = None,
        multiple: int = 1,
    ) -> None:
        """Note a packed weight. multiple: of what its stored sides are multiples; a bias tells the true first side."""
        name = stored.removesuffix(QUANTO)
        parts = dict(parts)
        if (factor := f"{layer}.pre_quant_scale") in self.tensors:
            if self.tensors[factor].numel != shape[-1] and multiple == 1:
                self.refuse(layer, f"has {self.tensors[factor].numel} factors for its {shape[-1]} inputs")
            parts["pre_quant_scale"] = factor
        multiples = (multiple,) * len(shape) if multiple > 1 else ()
        if multiples:
            told_by = (self.tensors.get(f"{layer}.bias"), self.tensors.get(factor))
            true = [one.numel if one is not None else 0 for one in told_by]
            known = [-(-side // multiple) * multiple == stored for side, stored in zip(true, shape, strict=True)]
            shape = tuple(
                side if is_known else stored for side, stored, is_known in zip(true, shape, known, strict=True)
            )
            multiples = tuple(1 if is_known else multiple for is_known in known)
        nbytes = sum(self.tensors[part].nbytes for part in parts.values())
        info = TensorInfo(
            name,
            shape,
            dtype,
            self.tensors[parts["weight"]].file,
            packing=kind,
            stored_bytes=nbytes,
            multiples=multiples,
        )
        files = {part: self.tensors[own].file for part, own in parts.items()}
        self.packed[name] = Packing(info, kind, parts, files, dict(settings or {}))
        self.taken |= {stored, *parts.values()}
        self.taken |= {f"{layer}{ending}" for ending in OF_INPUT}

    def plain_weights(self, *dtypes: str) -> list[tuple[str, TensorInfo]]:
        """The matrices of these dtypes that nothing has been found to belong to."""
        return [
            (name, info)
            for name, info in self.tensors.items()
            if name.endswith(".weight") and info.dtype in dtypes and len(info.shape) > 1 and name not in self.taken
        ]

    def nibbles(self, layer: str, dtype: str) -> tuple[TensorInfo, tuple[int, int]]:
        """A weight of two numbers in a byte, and its shape in numbers."""
        weight = self.tensors[f"{layer}.weight"]
        if weight.dtype not in ("uint8", dtype) or len(weight.shape) != 2:
            self.refuse(layer, f"is described as 4 bits in bytes, its weight is {weight.dtype} {list(weight.shape)}")
        return weight, (weight.shape[0], 2 * weight.shape[1])

    def rotation(self, layer: str, description: Mapping[str, Any], shape: tuple[int, ...]) -> int:
        """How many inputs are rotated together."""
        group = told(description, "convrot_groupsize", ROTATED)
        is_power = type(group) is int and group >= 4 and group.bit_count() == 1 and group.bit_length() % 2 == 1
        if not is_power or len(shape) != 2 or shape[1] % group:
            self.refuse(
                layer,
                f"is rotated in groups of {shown(group)} inputs; the group must be a power of 4 that divides "
                f"its {shape[-1] if shape else 0} inputs",
            )
        return int(group)

    def is_weight_only(self, layer: str, description: Mapping[str, Any]) -> bool:
        """Whether the input must not be rounded to 8 bits: said of the layer, or by two elements of the marker."""
        if told(description, "full_precision_matrix_mult", False):
            return True
        return any(
            self.tensors[marker].numel == 2 for marker in self.markers if layer.startswith(marker.removesuffix(MARKER))
        )

    def needed(self, layer: str, name: str) -> str:
        """The name of a tensor without which the layer cannot be read."""
        if name not in self.tensors:
            self.refuse(layer, f"lacks '{shortened(name)}', without which its numbers mean nothing")
        return name

    def check_scale(self, layer: str, name: str, shape: tuple[int, ...]) -> None:
        """A scale must be one number, one for each output, or one for each block."""
        scale = self.tensors[name]
        if scale.dtype not in FLOATS or scale_grid(scale.shape, shape) is None:
            self.refuse(
                layer,
                f"has the scale '{shortened(name)}' {scale.dtype} {list(scale.shape)}, which does not fit its weight "
                f"{list(shape)}",
            )

    def check_swizzled(
        self, layer: str, name: str, shape: tuple[int, ...], group: int, dtypes: tuple[str, ...]
    ) -> None:
        """Scales of groups of inputs, padded to tiles of 128 x 4."""
        wanted = (-(-shape[0] // 128) * 128, -(-(shape[1] // group) // 4) * 4)
        scale = self.tensors[name]
        if scale.numel != math.prod(wanted) or scale.dtype not in dtypes:
            self.refuse(
                layer,
                f"has the scales '{shortened(name)}' {scale.dtype} {list(scale.shape)}; its weight {list(shape)} needs "
                f"{dtypes[-1]} {list(wanted)}",
            )

    def check_single(self, layer: str, name: str) -> None:
        """A scale for all of a weight."""
        if self.tensors[name].numel != 1 or self.tensors[name].dtype not in FLOATS:
            self.refuse(layer, f"has '{shortened(name)}' {list(self.tensors[name].shape)}, which must be one number")

    def refuse(self, layer: str, reason: str) -> NoReturn:
        own = (info for name, info in self.tensors.items() if name.startswith(f"{layer}."))
        file = (self.tensors.get(f"{layer}.weight") or next(own)).file
        raise CheckpointError(f"{file}: the layer '{shortened(layer)}' {reason}; take another file of this model")

    def all_weights(self) -> dict[str, Packing | TensorInfo]:
        """Everything in the file's order, packed weights under their logical names."""
        weights: dict[str, Packing | TensorInfo] = {}
        stored = {packing.parts["weight"]: packing for packing in self.packed.values()}
        for name, info in self.tensors.items():
            if name in stored:
                if stored[name].info.name in weights:
                    raise CheckpointError(f"{info.file} has '{shortened(stored[name].info.name)}' packed and plain")
                weights[stored[name].info.name] = stored[name]
            elif name not in self.taken:
                if name in weights:
                    raise CheckpointError(f"{info.file} has '{shortened(name)}' packed and plain")
                weights[name] = info
        return weights


FLOATS = ("float16", "bfloat16", "float32", "float64")
DESCRIBED_AS: dict[str, tuple[str, ...]] = {
    "float8_e4m3fn": FP8,
    "float8_e5m2": FP8,
    "int8_tensorwise": ("int8",),
}
"""Dtypes that a weight of a described format may have; of the two kinds of fp8 its own dtype tells which."""
COMFY: dict[str, Callable[[Layers, str, Mapping[str, Any]], None]] = {
    "float8_e4m3fn": Layers.take_scaled_layer,
    "float8_e5m2": Layers.take_scaled_layer,
    "int8_tensorwise": Layers.take_scaled_layer,
    "mxfp8": Layers.take_mxfp8,
    "nvfp4": Layers.take_nvfp4,
    "convrot_w4a4": Layers.take_convrot_w4a4,
    "asym_w4a8_int8": Layers.take_asym_w4a8,
}
"""ComfyUI's formats of layers."""


def is_marker(name: str) -> bool:
    """Whether a tensor says that the fp8 weights with its prefix are scaled."""
    return name.rpartition(".")[2] == MARKER


def told(description: Mapping[str, Any], key: str, default: Any) -> Any:
    """What a description says, itself or in its `params`."""
    params = description.get("params")
    return description.get(key, params.get(key, default) if isinstance(params, dict) else default)


def scale_grid(scale: tuple[int, ...], weight: tuple[int, ...]) -> tuple[int, int] | None:
    """How many scales a weight (out in) has along its two sides, each for an equal share; None if they do not fit.

    One number; (out) or (out, 1); (out, blocks) and (out, blocks, 1); (rows, blocks). Of a weight with more dimensions
    the others count as inputs.
    """
    if math.prod(scale) == 1:
        return (1, 1)
    if len(weight) < 2 or not weight[0] or not scale or not math.prod(scale):
        return None
    if len(scale) == 1:
        return (scale[0], 1) if scale[0] == weight[0] else None
    if math.prod(scale[2:]) != 1:
        return None
    rows, columns = scale[:2]
    return (rows, columns) if weight[0] % rows == 0 and math.prod(weight[1:]) % columns == 0 else None
