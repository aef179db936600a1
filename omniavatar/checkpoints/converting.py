"""Model files for other programs: the same weights under other names, in 8 bits, or as GGUF.

    conversion = Conversion.plan(Path("Wan2_1_VAE_bf16.safetensors"), "diffusers", registry)
    conversion.write(Path("vae/diffusion_pytorch_model.safetensors"))

Names come from the tables of dialects, whose rules are read backwards; what comes out is read forwards again before
anything is written. Of the weights one at a time is in memory. LoRA files are named by converting_lora.py, and a folder
for diffusers or transformers gets the config.json of configs.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniavatar.checkpoints.bundle import check_sentencepiece
from omniavatar.checkpoints.configs import folder_config
from omniavatar.checkpoints.derived import Derived, parts_of
from omniavatar.checkpoints.dialects import Dialect
from omniavatar.checkpoints.formats import BITS, Format, PackedTensor, TensorInfo
from omniavatar.checkpoints.formats.safetensors import DTYPES
from omniavatar.checkpoints.headers import Header
from omniavatar.checkpoints.names import matches
from omniavatar.checkpoints.registry import Detection, Registry
from omniavatar.checkpoints.tables import Row
from omniavatar.errors import CheckpointError, OutputError, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Show = Callable[[int, int], None]
"""Takes how many tensors are written, and of how many."""
FORMS = {
    "comfy": "ComfyUI's names",
    "diffusers": "the names of diffusers and transformers",
    "omniavatar": "the names of Wan's and OmniAvatar's own files",
    "fp8-scaled": "ComfyUI's 8-bit weights with a scale each; own names",
    "gguf": "for ComfyUI-GGUF and others; own names",
}
DIALECTS = {
    ("diffusers", "dit"): "diffusers",
    ("diffusers", "vae"): "AutoencoderKLWan of diffusers",
    ("diffusers", "text_encoder"): "UMT5 of Hugging Face",
    ("comfy", "text_encoder"): "UMT5 of Hugging Face",
    ("diffusers", "image_encoder"): "CLIP of Hugging Face",
    ("comfy", "image_encoder"): "CLIP of Hugging Face",
}
"""By form and role: the dialect of the tables; without one, official names stay."""
PREFIXES = {("comfy", "dit"): "model.diffusion_model."}
FURTHER = {"diffusers": {"vace"}}
"""By form: the layers beside the transformer in its file that have names; others have them for all."""
ROLES = ("dit", "vae", "text_encoder", "image_encoder")
"""Networks whose names other programs' files are known for."""
TOKENIZER = "spiece_model"
"""The tensor of a text encoder's file that is the model of its tokenizer, as ComfyUI has it."""
TOKENIZER_FILE = "spiece.model"
TOKENIZER_PLACES = tuple(
    f"{folder}{TOKENIZER_FILE}" for folder in ("google/umt5-xxl/", "", "tokenizer/", "../tokenizer/")
)
"""Where it lies beside other files."""
CONFIG = "config.json"
WEIGHTS = {"dit": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors"}
"""By role: the name of the weights in a folder; others are called model.safetensors."""
DENSE = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""What weights of packed formats can become."""
SUFFIX = {"gguf": ".gguf"}
"""Endings that are not .safetensors."""
QUANTISED = re.compile(r"(?:\w*blocks\.\d+\.)(?!.*(?:norm|modulation|pos_embedding)).*\.weight")
"""The matrices that become 8-bit: those of attention and feed-forward layers inside the blocks."""
FP8 = "float8_e4m3fn"
CODES = {name: code for code, name in DTYPES.items()}
MARKER = "scaled_fp8"


@dataclass(frozen=True)
class Written:
    """A tensor of the file that is to be written: where its values come from, and what they become."""

    source: TensorInfo
    dtype: str

    @property
    def nbytes(self) -> int:
        return self.source.numel * BITS[self.dtype] // 8


@dataclass(frozen=True)
class Conversion:
    """What is to be written.

    row: what the source is. role: of its network. tensors: by their names in the new file. dense: the dtype of what was
    packed. metadata: entries of the new file's header. config: of a folder; None: it cannot be one. tokenizer: the
    model of the tokenizer that goes along.
    """

    source: str
    form: str
    row: Row
    role: str
    tensors: Mapping[str, Written]
    dense: str
    writer: Format | None = None
    quantisation: str = "Q8_0"
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    tokenizer: TensorInfo | None = None

    @classmethod
    def plan(
        cls, source: Path, form: str, registry: Registry, *, dense: str = "bf16", quantisation: str = "Q8_0"
    ) -> Conversion:
        """What a conversion would do; only headers are read. Raises CheckpointError for what is not possible.

        dense: what packed weights become: bf16, fp16 or fp32. quantisation: the type of GGUF's blocks.
        """
        if form not in FORMS:
            raise CheckpointError(f"there is no form '{form}'{nearest(form, FORMS)}")
        found = registry.detect(source)
        if found.row.lora:
            from omniavatar.checkpoints.converting_lora import renamed_lora

            named, metadata = renamed_lora(found, form, registry)
            written = {name: Written(info, info.dtype) for name, info in named.items()}
            return cls(str(source), form, found.row, "lora", written, DENSE[dense], metadata=metadata)
        writer = gguf_writer(registry) if form == "gguf" else None
        role, header = network_in(found, source, registry, form)
        dialect = dialect_of(registry, form, role)
        weights = needed_weights(found, role, header, dialect)
        foreign = weights if dialect is None else dialect.foreign(weights)
        foreign = {PREFIXES.get((form, role), "") + name: info for name, info in foreign.items()}
        check_names(foreign, weights, header, registry, f"{source} ({found.row.name})", form)
        tensors = {name: Written(info, written_dtype(name, info, form, DENSE[dense])) for name, info in foreign.items()}
        tokenizer = tokenizer_of(header) if role == "text_encoder" and form in ("comfy", "diffusers") else None
        if tokenizer is not None and form == "comfy":
            tensors[TOKENIZER] = Written(tokenizer, tokenizer.dtype)
        config = folder_config(found, role) if form == "diffusers" else None
        return cls(
            str(source),
            form,
            found.row,
            role,
            tensors,
            DENSE[dense],
            writer,
            quantisation,
            config=config,
            tokenizer=tokenizer,
        )

    @property
    def nbytes(self) -> int:
        """About so many bytes will be written."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def files(self) -> set[Path]:
        """The files that are read."""
        return {part.file.resolve() for tensor in self.tensors.values() for part in parts_of(tensor.source)}

    def file(self, target: Path) -> Path:
        """The file of the weights: the target, or in it if it is to be a folder."""
        if self.config is None or target.suffix == ".safetensors":
            return target
        return target / WEIGHTS.get(self.role, "model.safetensors")

    def check(self, target: Path, *, force: bool = False) -> None:
        """Raise OutputError if the file cannot be written there."""
        suffix = SUFFIX.get(self.form, ".safetensors")
        target = self.file(target)
        if target.suffix != suffix:
            raise OutputError(f"{target}: files of this form end in {suffix}; name it {target.with_suffix(suffix)}")
        if target.resolve() in self.files:
            raise OutputError(f"{target} is what is to be converted; name another file")
        if target.exists() and not force:
            raise OutputError(f"{target} is there already; name another file, or replace it with --force")
        folder = next(path for path in target.absolute().parents if path.exists())
        free = shutil.disk_usage(folder).free
        if free < self.nbytes:
            raise OutputError(f"{target} takes {self.nbytes / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free")

    def write(self, target: Path, *, force: bool = False, show: Show = lambda done, total: None) -> None:
        """Write the file under a name of its own beside the target, and then give it the target's.

        A target that is no .safetensors file, where there is a config.json for it, becomes a folder with both.
        """
        self.check(target, force=force)
        file = self.file(target)
        with published(file) as part:
            if self.writer is None:
                self._write_safetensors(part, show)
            else:
                weights = Weights(self.tensors, show)
                self.writer.write(part, weights, quantisation=self.quantisation)  # type: ignore[attr-defined]
        if file != target and self.config is not None:
            with published(target / CONFIG) as part:
                part.write_text(json.dumps(self.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            if self.tokenizer is not None:
                with published(target / TOKENIZER_FILE) as part:
                    part.write_bytes(bytes_of(self.tokenizer))

    def _write_safetensors(self, part: Path, show: Show) -> None:
        layout = Layout.of(self._stored(), self.metadata)
        with part.open("wb") as file:
            file.write(layout.header)
            file.truncate(layout.length)
            sources = {name: tensor.source for name, tensor in self.tensors.items()}
            for number, (name, weight) in enumerate(read(sources), start=1):
                for stored, value in self._values(name, weight):
                    file.seek(layout.places[stored])
                    file.write(raw(value))
                show(number, len(sources))
            file.flush()
            os.fsync(file.fileno())

    def _stored(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of every tensor of the file."""
        stored = {name: (tensor.dtype, tensor.source.shape) for name, tensor in self.tensors.items()}
        if self.form == "fp8-scaled":
            stored |= {scale_of(name): ("float32", ()) for name, tensor in self.tensors.items() if tensor.dtype == FP8}
            stored[MARKER] = (FP8, (0,))
        return stored

    def _values(self, name: str, weight: Tensor | PackedTensor) -> Iterator[tuple[str, Tensor]]:
        """What is stored of a weight."""
        import torch

        dtype: torch.dtype = getattr(torch, self.tensors[name].dtype)
        if self.form == "fp8-scaled" and dtype == torch.float8_e4m3fn:
            number, scale = scaled(weight.dense() if isinstance(weight, PackedTensor) else weight.float())
            yield name, number
            yield scale_of(name), scale
        else:
            yield name, weight.dense(dtype) if isinstance(weight, PackedTensor) else weight.to(dtype)


class Weights(Mapping[str, "Tensor"]):
    """Weights that are read when they are asked for, one at a time."""

    def __init__(self, tensors: Mapping[str, Written], show: Show) -> None:
        self.tensors, self.show, self.asked = tensors, show, 0

    def __getitem__(self, name: str) -> Tensor:
        import torch

        tensor = self.tensors[name]
        ((_, weight),) = read({name: tensor.source})
        self.asked += 1
        self.show((self.asked + 1) // 2, len(self.tensors))  # each is asked for twice: for the header, and for itself
        dtype: torch.dtype = getattr(torch, tensor.dtype)
        return weight.dense(dtype) if isinstance(weight, PackedTensor) else weight.to(dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


@dataclass(frozen=True)
class Layout:
    """Where the tensors of a safetensors file lie, as the library itself would write it: large elements first."""

    entries: Mapping[str, Any]
    start: int = 0

    @classmethod
    def of(cls, stored: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None) -> Layout:
        """The layout of tensors of these dtypes and shapes, with further entries of the header."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
        position = 0
        codes = list(DTYPES)
        order = sorted(stored, key=lambda name: (-BITS[stored[name][0]], -codes.index(CODES[stored[name][0]]), name))
        for name in order:
            dtype, shape = stored[name]
            end = position + BITS[dtype] // 8 * count(shape)
            entries[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [position, end]}
            position = end
        return cls(entries)

    @cached_property
    def header(self) -> bytes:
        """Everything in front of the data."""
        text = json.dumps(self.entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @cached_property
    def places(self) -> dict[str, int]:
        """Where each tensor begins in the file."""
        start = len(self.header)
        return {
            name: start + entry["data_offsets"][0] for name, entry in self.entries.items() if name != "__metadata__"
        }

    @property
    def length(self) -> int:
        """Bytes of the file."""
        ends = [entry["data_offsets"][1] for name, entry in self.entries.items() if name != "__metadata__"]
        return len(self.header) + max(ends, default=0)


# --- what is in the source, and how it is called elsewhere


def network_in(found: Detection, source: Path, registry: Registry, form: str) -> tuple[str, Header]:
    """The role and the header, under official names, of the one network in a file, shards or a folder.

    Further layers of a transformer belong to it, where the form has names for them.
    """
    roles = [component.role for component in found.components]
    is_whole = all(component.spec.network is not None for component in found.components)
    role = next((role for role in ROLES if role in roles), None)
    further = {one for one in roles if one != role}
    if role is None or not is_whole or (further and not (role == "dit" and further <= FURTHER.get(form, further))):
        raise CheckpointError(
            f"{source} is {found.row.name} ({' and '.join(roles)}), which cannot be written as '{form}'; "
            f"LoRA files and whole networks can: {', '.join(ROLES)}"
        )
    return role, registry.official(found.header)


def needed_weights(found: Detection, role: str, header: Header, dialect: Dialect | None) -> dict[str, TensorInfo]:
    """The weights to write: without those that the row ignores, and those that no rule names and no network needs.

    Without a dialect all of them are written.
    """
    if dialect is None:
        return dict(header.tensors)
    spec = next(component.spec for component in found.components if component.role == role)
    needless = [pattern for pattern in spec.optional if not dialect.names(pattern)]
    left_out = (*found.row.ignore, *needless)
    return {name: info for name, info in header.tensors.items() if not matches(name, left_out)}


def dialect_of(registry: Registry, form: str, role: str) -> Dialect | None:
    """The names of a form. Raises CheckpointError if none are known for a network."""
    name = DIALECTS.get((form, role))
    if name is None:
        return None
    return next(dialect for dialect in registry.names.dialects if dialect.name == name)


def check_names(
    foreign: Mapping[str, TensorInfo],
    weights: Mapping[str, TensorInfo],
    header: Header,
    registry: Registry,
    what: str,
    form: str,
) -> None:
    """Raise CheckpointError unless the new names lead back to the weights that they are for."""
    entries = {name: info.shape for name, info in foreign.items()}
    back = registry.official(Header(header.files, foreign, entries)).tensors
    wrong = [
        name
        for name, info in weights.items()
        if name not in back or back[name].shape != info.shape or stored_as(back[name]) != stored_as(info)
    ]
    if wrong or len(back) != len(weights):
        odd = wrong or [name for name in back if name not in weights]
        raise CheckpointError(f"{what}: '{odd[0]}' has no name in the form '{form}'; choose another form")


def stored_as(info: TensorInfo) -> list[tuple[Path, str]]:
    """The tensors of files that a weight comes from in the end."""
    if not isinstance(info, Derived):
        return [(info.file, info.name)]
    return list(dict.fromkeys(place for part in info.parts for place in stored_as(part)))


def written_dtype(name: str, info: TensorInfo, form: str, dense: str) -> str:
    """The dtype that a weight gets: its own, unless it is packed, or becomes an 8-bit one."""
    if form == "fp8-scaled" and len(info.shape) == 2 and QUANTISED.fullmatch(name):
        return FP8
    if any(part.packing is not None for part in parts_of(info)):
        return dense
    return dense if form == "gguf" and info.dtype not in DENSE.values() else info.dtype


def tokenizer_of(header: Header) -> TensorInfo | None:
    """The tokenizer's model, in a text encoder's file or beside it; None: there is none.

    It is written as it is. Raises CheckpointError for what cannot be one.
    """
    found = header.extras.get("tokenizer")
    if not isinstance(found, TensorInfo):
        folder = header.files[0].parent
        file = next((folder / place for place in TOKENIZER_PLACES if (folder / place).is_file()), None)
        if file is None:
            return None
        found = TensorInfo(TOKENIZER, (file.stat().st_size,), "uint8", file, format=Whole())
    check_sentencepiece(found)
    return found


class Whole(Format):
    """A file of any kind as one tensor of bytes."""

    name = "bytes"
    suffixes = (".model",)

    def read(self, file: Path, names: Iterable[str], device: torch.device | str) -> Iterator[tuple[str, Tensor]]:
        """See `Format.read`: its bytes, whatever it is asked for."""
        import torch

        for name in names:
            yield name, torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8).to(device)


def gguf_writer(registry: Registry) -> Format:
    """What writes GGUF. Raises CheckpointError if it is not installed."""
    writer = next((known for known in registry.formats.formats if ".gguf" in known.suffixes), None)
    if writer is None or not hasattr(writer, "write"):
        raise CheckpointError("GGUF is read and written by the package omniavatar-gguf; install it")
    return writer


# --- values


def read(sources: Mapping[str, TensorInfo]) -> Iterator[tuple[str, Tensor | PackedTensor]]:
    """The weights as they are stored, one after another."""
    from omniavatar.checkpoints.loading import stored_tensors

    yield from stored_tensors(sources, "cpu")


def scaled(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 weight as 8-bit numbers and their scale: the largest number becomes the largest that there is."""
    import torch

    largest = torch.finfo(torch.float8_e4m3fn).max
    peak = weight.abs().max() if weight.numel() else weight.new_tensor(0.0)
    scale = torch.where(peak > 0, peak / largest, torch.ones_like(peak))
    return (weight / scale).clamp(-largest, largest).to(torch.float8_e4m3fn), scale


def scale_of(name: str) -> str:
    """The name of a weight's scale."""
    return f"{name.removesuffix('.weight')}.scale_weight"


def bytes_of(info: TensorInfo) -> bytes:
    """The content of a tensor of bytes."""
    ((_, tensor),) = read({"": info})
    return bytes(raw(tensor.dense() if isinstance(tensor, PackedTensor) else tensor))


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def count(shape: tuple[int, ...]) -> int:
    """Elements of a tensor."""
    number = 1
    for side in shape:
        number *= side
    return number


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """A name beside the target to write to; at the end the file gets the target's name, or is gone if that failed."""
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
