"""What quantised weights do to the pictures: `python -m benchmarks.quantised --output FILE`.

Writes the built-in avatar's transformer in every form that is read, and lets `omni bench --weights` make the same
videos with each, of faces that it was not trained on. Of every form: bytes of the file and of the loaded network,
likeness with the videos of the file as it is (PSNR, SSIM), and what the detector reads (mouth, identity). For the large
transformers it computes how large they are in each form. `--table FILE` prints the page's tables of a record.

Quantised are the matrices inside the blocks, as in published files, each number rounded to the nearest one that the
form has, without calibration. Blocks of GGUF hold 32 or 256 numbers of a row, and rows of 240 are no multiple of
either: such matrices are cut into rows of 256, as ComfyUI-GGUF's converter does it for networks of odd widths
(`comfy.gguf.orig_shape`). The gguf package makes the simple types; the k and IQ types are made by ggml's own code from
a shared library, `--ggml libggml-base.so`, which is in every build of llama.cpp or whisper.cpp, also in the wheel of
pywhispercpp.

JSON: {machine, command, work, rows: [{form, how, bits, file_mb, network_mb, psnr_db, ssim, latent_error, mouth,
identity}], not_priced: {form: why}, sizes_gb: {size: {form: GB of the transformer in memory}}}; mb and gb are
10^6 and 10^9 bytes, figures of videos medians over the seeds, and `bits` those of a number of a large matrix.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.report import publish
from benchmarks.synthetic import RandomModels
from omniavatar.bench.machine import command, machine
from omniavatar.bench.record import Combination, Record, Spread
from omniavatar.checkpoints import Bundle
from omniavatar.checkpoints.converting import QUANTISED
from omniavatar.checkpoints.formats.packing import TILE, rotation
from omniavatar.plugins import discover
from omniavatar.resources import PACKAGE

SOURCE = PACKAGE / "assets" / "tiny" / "transformer.safetensors"
RESULTS = Path(__file__).parent / "results"
ROLES = ("dit", "audio_adapter")
"""The networks of that file."""
SIZES = ("1.3b", "14b")
ROTATED = 16
"""Inputs that are rotated together: a power of 4 that divides 240 and 1056. Files of large networks have 256."""
ROW = 256
"""Numbers in the largest blocks of GGUF."""
LARGE = (256, 5120)
"""The matrix that tells how many bits a number has, scales included."""
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0, torch.int8: 127.0}
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])

Parts = dict[str, Tensor]
"""The tensors of a layer, by their endings behind its name."""


# Forms of safetensors files -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How a matrix is stored. how: in words. pack: from the weight (out in) float32.

    description: ComfyUI's of the layer. marker: the dtype of the older tensor that says that fp8 has scales.
    rest: the dtype of what is not quantised; None: its own.
    """

    how: str
    pack: Callable[[Tensor], Parts]
    description: Mapping[str, Any] = field(default_factory=dict)
    marker: torch.dtype | None = None
    rest: torch.dtype | None = None

    def state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a file."""
        made: dict[str, Tensor] = {} if self.marker is None else {"scaled_fp8": torch.empty(0, dtype=self.marker)}
        for name, tensor in state.items():
            if not is_quantised(name, tensor.shape):
                made[name] = tensor.to(self.rest)
                continue
            layer = name.removesuffix(".weight")
            parts = self.pack(tensor.float())
            if self.description:
                parts["comfy_quant"] = torch.tensor(list(json.dumps(self.description).encode()), dtype=torch.uint8)
            made |= {f"{layer}.{ending}": part.contiguous() for ending, part in parts.items()}
        return made

    def bits(self, weight: Tensor) -> float:
        return sum(part.nbytes for part in self.pack(weight).values()) * 8 / weight.numel()

    def write(self, folder: Path, name: str, state: Mapping[str, Tensor]) -> Path:
        file = folder / f"{name}.safetensors"
        save_file(self.state(state), file)
        return file


def is_quantised(name: str, shape: tuple[int, ...]) -> bool:
    """Whether published files have this weight quantised: matrices of attention and feed-forward layers."""
    return len(shape) == 2 and QUANTISED.fullmatch(name) is not None


def cast(weight: Tensor, dtype: torch.dtype) -> Parts:
    """The numbers themselves."""
    return {"weight": weight.to(dtype)}


def scaled(
    weight: Tensor,
    dtype: torch.dtype,
    *,
    rows: bool = False,
    rotate: bool = False,
    endings: tuple[str, str] = ("weight", "weight_scale"),
    scale_dtype: torch.dtype = torch.float32,
) -> Parts:
    """Numbers of 8 bits with one scale, or one for every output: the largest becomes the largest that there is."""
    weight = rotated(weight) if rotate else weight
    scale = (peak(weight, rows=rows) / LARGEST[dtype]).to(scale_dtype)
    numbers = (weight / scale.float()).clamp(-LARGEST[dtype], LARGEST[dtype])
    return {endings[0]: (numbers if dtype.is_floating_point else numbers.round()).to(dtype), endings[1]: scale}


def peak(weight: Tensor, *, rows: bool = True) -> Tensor:
    """The largest size of a number, of all or of each output (out 1); never zero."""
    largest = weight.abs().amax(dim=1, keepdim=True) if rows else weight.abs().max()
    return largest.clamp(min=1e-12)


def rotated(weight: Tensor) -> Tensor:
    """Groups of inputs times H / sqrt(group) (see packing.rotation), which spreads numbers that stand out."""
    groups: Tensor = weight.unflatten(1, (-1, ROTATED))
    return (groups @ rotation(ROTATED, weight.device)).flatten(1)


def mxfp8(weight: Tensor) -> Parts:
    """fp8 with a power of two for every 32 inputs (OCP Microscaling 1.0), rounded up so that nothing is cut off.

    Where inputs are padded, factors of 1 for them tell how many they are.
    """
    groups = padded(weight, 32).unflatten(1, (-1, 32))
    exponent = (groups.abs().amax(dim=2) / LARGEST[torch.float8_e4m3fn]).clamp(min=2.0**-127).log2().ceil()
    numbers = (groups / torch.exp2(exponent)[..., None]).flatten(1).to(torch.float8_e4m3fn)
    parts = {"weight": numbers, "weight_scale": swizzled((exponent + 127).to(torch.uint8))}
    return parts if weight.shape[1] % 32 == 0 else {**parts, "pre_quant_scale": torch.ones(weight.shape[1])}


def nvfp4(weight: Tensor) -> Parts:
    """E2M1 numbers with an fp8 scale for every 16 inputs and one for all, the first of two in the high half."""
    groups = padded(weight, 16).unflatten(1, (-1, 16))
    whole = peak(weight, rows=False) / (LARGEST[torch.float8_e4m3fn] * E2M1[-1])
    scale = (groups.abs().amax(dim=2) / E2M1[-1] / whole).to(torch.float8_e4m3fn)
    values = groups / (scale.float() * whole).clamp(min=1e-30)[..., None]
    number = torch.bucketize(values.abs(), (E2M1[1:] + E2M1[:-1]) / 2).to(torch.uint8)
    number = (number | (values < 0).to(torch.uint8) << 3).flatten(1)
    parts = {"weight": number[:, ::2] << 4 | number[:, 1::2], "weight_scale": swizzled(scale)}
    return {**parts, "weight_scale_2": whole.float()}


def int4(weight: Tensor) -> Parts:
    """Signed numbers of 4 bits with a scale for every output, of rotated inputs; the first of two in the low half."""
    weight = rotated(weight)
    scale = peak(weight) / 7
    numbers = (weight / scale).round().to(torch.int8).view(torch.uint8) & 15
    return {"weight": (numbers[:, ::2] | numbers[:, 1::2] << 4).view(torch.int8), "weight_scale": scale.flatten()}


def asym4(weight: Tensor) -> Parts:
    """Numbers of 4 bits with fp8 scales for 16 inputs each; whole numbers with a scale for every output come of it."""
    weight = rotated(weight)
    channel = peak(weight) / 127
    groups = (weight / channel).unflatten(1, (-1, 16))
    relative = (groups.abs().amax(dim=2) / 7).clamp(min=2.0**-6).to(torch.float8_e4m3fn)
    numbers = ((groups / relative.float()[..., None]).round() + 8).clamp(0, 15).to(torch.uint8).flatten(1)
    parts = {"weight": (numbers[:, ::2] | numbers[:, 1::2] << 4).view(torch.int8)}
    return {**parts, "weight_s_rel": relative, "weight_s_channel": channel.flatten()}


def padded(weight: Tensor, multiple: int) -> Tensor:
    """A matrix with zeros up to multiples."""
    down, across = (-side % multiple for side in weight.shape)
    return pad(weight, (0, across, 0, down))


def swizzled(scales: Tensor) -> Tensor:
    """Scales (rows columns) in the tiles of the tensor cores; see packing.unswizzled."""
    down, across = (-(-side // tile) for side, tile in zip(scales.shape, TILE, strict=True))
    whole = torch.zeros(down * TILE[0], across * TILE[1], dtype=torch.uint8)
    whole[: scales.shape[0], : scales.shape[1]] = scales.view(torch.uint8)
    tiles = whole.reshape(down, 4, 32, across, 4).permute(0, 3, 2, 1, 4)
    return tiles.reshape(whole.shape).view(scales.dtype)


E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
MARKED = ("weight", "scale_weight")
QUANTO = ("weight._data", "weight._scale")
CONVROT = {"convrot": True, "convrot_groupsize": ROTATED}
FORMS: dict[str, Form] = {
    "bf16": Form("bf16", partial(cast, dtype=torch.bfloat16), rest=torch.bfloat16),
    "fp8-e4m3": Form("fp8 e4m3 without scales", partial(cast, dtype=E4M3)),
    "fp8-e5m2": Form("fp8 e5m2 without scales", partial(cast, dtype=E5M2)),
    "fp8-scaled": Form("fp8 e4m3, a scale for each matrix", partial(scaled, dtype=E4M3, endings=MARKED), marker=E4M3),
    "fp8-scaled-e5m2": Form(
        "fp8 e5m2, a scale for each matrix", partial(scaled, dtype=E5M2, endings=MARKED), marker=E5M2
    ),
    "fp8-rows": Form("fp8 e4m3, a scale for each output", partial(scaled, dtype=E4M3, rows=True)),
    "comfy-fp8": Form(
        "ComfyUI's `float8_e4m3fn`, a scale for each matrix",
        partial(scaled, dtype=E4M3),
        {"format": "float8_e4m3fn"},
    ),
    "comfy-int8": Form(
        "ComfyUI's `int8_tensorwise`, a scale for each output",
        partial(scaled, dtype=torch.int8, rows=True),
        {"format": "int8_tensorwise"},
    ),
    "comfy-int8-tensor": Form(
        "ComfyUI's `int8_tensorwise`, a scale for each matrix",
        partial(scaled, dtype=torch.int8),
        {"format": "int8_tensorwise"},
    ),
    "comfy-int8-convrot": Form(
        "ComfyUI's `int8_tensorwise`, a scale for each output, rotated (`convrot`)",
        partial(scaled, dtype=torch.int8, rows=True, rotate=True),
        {"format": "int8_tensorwise", **CONVROT},
    ),
    "comfy-mxfp8": Form("ComfyUI's `mxfp8`", mxfp8, {"format": "mxfp8"}),
    "comfy-nvfp4": Form("ComfyUI's `nvfp4`", nvfp4, {"format": "nvfp4"}),
    "comfy-w4a4": Form("ComfyUI's `convrot_w4a4`", int4, {"format": "convrot_w4a4", **CONVROT}),
    "comfy-w4a8": Form("ComfyUI's `asym_w4a8_int8`", asym4, {"format": "asym_w4a8_int8", "group_size": 16, **CONVROT}),
    "quanto-int8": Form(
        "quanto's qint8",
        partial(scaled, dtype=torch.int8, rows=True, endings=QUANTO, scale_dtype=torch.float16),
    ),
    "quanto-fp8": Form(
        "quanto's qfloat8",
        partial(scaled, dtype=E4M3, rows=True, endings=QUANTO, scale_dtype=torch.float16),
    ),
}
"""By the name of the file."""


# Types of GGUF --------------------------------------------------------------------------------------------------------

TYPES = (
    *("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "MXFP4"),
    *("Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S"),
)
NOT_PRICED = {
    "quanto qint4 and qint2": "not read",
    "LightX2V's nvfp4": "the numbers of ComfyUI's nvfp4 in another order",
    "GGUF IQ2_XS, IQ2_XXS, IQ1_S, IQ1_M": "ggml makes them with an importance matrix only, and there is none here",
    "GGUF TQ1_0, TQ2_0": "three values a number, for networks that were trained so",
    "GGUF NVFP4": "not made here; its blocks are those of ComfyUI's nvfp4",
}
"""What is read, or might be asked for, and has no row: why."""


@dataclass(frozen=True)
class Ggml:
    """ggml's quantisers, from its shared library."""

    library: ctypes.CDLL

    @classmethod
    def load(cls, file: Path) -> Ggml:
        """Raises OSError if it cannot be loaded."""
        library = ctypes.CDLL(str(file.absolute()))
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
        return cls(library)

    def quantise(self, rows: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
        """The blocks (rows bytes) uint8 of rows (rows numbers) float32."""
        numbers, nbytes = gguf.GGML_QUANT_SIZES[kind]
        rows = np.ascontiguousarray(rows, np.float32)
        blocks = np.empty((len(rows), rows.shape[1] // numbers * nbytes), np.uint8)
        count = self.library.ggml_quantize_chunk(kind, rows.ctypes.data, blocks.ctypes.data, 0, *rows.shape, None)
        assert count == blocks.nbytes, f"ggml wrote {count} bytes of {kind.name}, not {blocks.nbytes}"
        return blocks


@dataclass(frozen=True)
class GgufForm:
    """One type of GGUF's blocks."""

    kind: GGMLQuantizationType
    ggml: Ggml | None

    @property
    def how(self) -> str:
        return f"GGUF {self.kind.name}"

    def blocks(self, weight: Tensor) -> np.ndarray:
        """A matrix as blocks, in its own rows or those of 256. Raises NotImplementedError for what needs ggml."""
        numbers = weight.numpy()
        rows = numbers if numbers.shape[1] % ROW == 0 else numbers.reshape(-1, ROW)
        try:
            return gguf.quants.quantize(rows, self.kind)
        except NotImplementedError:
            if self.ggml is None:
                raise
        return self.ggml.quantise(rows, self.kind)

    def bits(self, weight: Tensor) -> float:
        return self.blocks(weight).nbytes * 8 / weight.numel()

    def write(self, folder: Path, name: str, state: Mapping[str, Tensor]) -> Path:
        file = folder / f"{name}.gguf"
        writer = gguf.GGUFWriter(file, "wan")
        for key, tensor in state.items():
            if not is_quantised(key, tensor.shape):
                writer.add_tensor(key, tensor.numpy())
                continue
            if tensor.shape[1] % ROW:
                writer.add_array(f"comfy.gguf.orig_shape.{key}", list(tensor.shape))
            writer.add_tensor(key, self.blocks(tensor.float()), raw_dtype=self.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file


def forms(ggml: Ggml | None) -> dict[str, Form | GgufForm]:
    """All, by name; the types that only ggml makes are among them with it alone."""
    made: dict[str, Form | GgufForm] = dict(FORMS)
    for name in TYPES:
        form = GgufForm(GGMLQuantizationType[name], ggml)
        try:
            form.blocks(torch.zeros(1, ROW))
        except NotImplementedError:
            continue
        made[f"gguf-{name.lower()}"] = form
    return made


# Measuring ------------------------------------------------------------------------------------------------------------


def network_bytes(file: Path) -> int:
    """Bytes of the weights that a file becomes in memory, where the rest is bf16."""
    bundle = Bundle.open([file], discover().registry())
    networks = [bundle.load(role, device=torch.device("cpu"), dtype=torch.bfloat16) for role in ROLES]
    return sum(weight.nbytes for network in networks for weight in network.parameters())


def sizes(bits: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """GB of the large transformers in every form: matrices of the blocks in so many bits, the rest in bf16."""
    found = {}
    for size in SIZES:
        shapes = {name: weight.shape for name, weight in transformer(size).named_parameters()}
        quantised = sum(shape.numel() for name, shape in shapes.items() if is_quantised(name, tuple(shape)))
        rest = sum(shape.numel() for shape in shapes.values()) - quantised
        found[size] = {form: round((quantised * bit / 8 + rest * 2) / 1e9, 2) for form, bit in bits.items()}
    return found


def transformer(size: str) -> torch.nn.Module:
    """The shapes of a large one."""
    return RandomModels(size).skeleton("dit", dtype=torch.bfloat16)


def bench(files: list[Path], folder: Path, seeds: list[int], seconds: float) -> list[Record]:
    """The same videos with each file; every seed in a process of its own, all at the same time."""
    call = [sys.executable, "-m", "omniavatar", "bench", "--config", "tiny", "--units", "default", "--faces"]
    call += ["--repeats", "0", "--warmup", "0", "--seconds", str(seconds)]
    call += [argument for file in files for argument in ("--weights", str(file))]
    folders = {seed: folder / f"seed-{seed}" for seed in seeds}
    calls = [[*call, "--seed", str(seed), "--output", str(here)] for seed, here in folders.items()]
    started = [subprocess.Popen(one, stdout=sys.stderr) for one in calls]
    codes = [process.wait() for process in started]
    if any(codes):
        raise RuntimeError(f"omni bench ended with the codes {codes}; see above")
    return [Record.read(here / "bench.json") for here in folders.values()]


def figures(videos: Sequence[Combination]) -> dict[str, Any]:
    """Of the videos of a file, one for each seed: medians."""
    qualities = [one.quality for one in videos if one.quality is not None]

    def measured(name: str) -> float | None:
        return median(metric.values for one in videos for metric in one.metrics if metric.name == name)

    return {
        "psnr_db": median(one.psnr_db for one in qualities),
        "ssim": median(one.ssim for one in qualities),
        "latent_error": median(one.latent_error for one in qualities),
        "mouth": measured("mouth-correlation"),
        "identity": measured("identity-ssim"),
    }


def median(spreads: Iterable[Spread | None]) -> float | None:
    """Of the values of all; None without any."""
    values = [value for spread in spreads if spread is not None for value in spread.values]
    return round(float(np.median(values)), 4) if values else None


def rows(
    made: Mapping[str, Form | GgufForm], folder: Path, seeds: list[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """What each form costs; the file as it is comes first."""
    state = load_file(SOURCE)
    files = {name: form.write(folder, name, state) for name, form in made.items()}
    records = bench(list(files.values()), folder / "bench", seeds, seconds)
    weight = torch.randn(LARGE, generator=torch.Generator().manual_seed(0)) / 50
    all_files = {"fp16": SOURCE, **files}
    combinations = zip(*(record.combinations for record in records), strict=True)
    for (name, file), videos in zip(all_files.items(), combinations, strict=True):
        form = made.get(name)
        yield {
            "form": name,
            "how": "fp16, as it is" if form is None else form.how,
            "bits": 16.0 if form is None else round(form.bits(weight), 3),
            "file_mb": round(file.stat().st_size / 1e6, 2),
            "network_mb": round(network_bytes(file) / 1e6, 2),
            **figures(videos),
        }


# Tables ---------------------------------------------------------------------------------------------------------------


COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("file", "how", ""),
    ("bits a number", "bits", ".2f"),
    ("in memory, MB", "network_mb", ".1f"),
    ("PSNR, dB", "psnr_db", ".1f"),
    ("latent error", "latent_error", ".3f"),
    ("mouth", "mouth", ".3f"),
    ("identity", "identity", ".3f"),
)
"""Heading, key of a row, and form."""


def table(record: Mapping[str, Any]) -> list[str]:
    """The lines of a page's table: the largest first."""
    headings = [*(heading for heading, _, _ in COLUMNS), *(f"{size.upper()}, GB" for size in SIZES)]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in sorted(record["rows"], key=lambda row: -row["bits"]):
        cells = ["" if row.get(key) is None else format(row[key], form) for _, key, form in COLUMNS]
        cells += [format(record["sizes_gb"][size][row["form"]], ".2f") for size in SIZES]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


CARDS = (
    (8, "gguf-q4_k", 0),
    (8, "fp8-scaled", 0),
    (12, "fp8-scaled", 16),
    (16, "gguf-q5_k", 38),
    (16, "fp8-scaled", 28),
    (24, "fp8-scaled", 38),
    (24, "gguf-q8_0", 38),
    (32, "fp16", 38),
)
"""GiB of a card, a file that suits it, the blocks that `offload` leaves on the GPU; 38 and two places are all 40."""
LORA_RANK = 128
"""Of OmniAvatar's own LoRA, which goes to every matrix of the blocks."""
DENSE_LAYER = 0.4
"""GB of a packed layer's weight while it is used: (13824 5120) in float32 and in bf16."""


def card_table(record: Mapping[str, Any]) -> list[str]:
    """The lines of the table of cards: what the 14B transformer takes while steps run, computed but for activations.

    What it takes beside weights, at 720x400x105, is that of benchmarks/results/memory-14b.json, all on the GPU.
    """
    measured = json.loads((RESULTS / "memory-14b.json").read_text())["rows"][0]["steps_peak"]["allocated_gb"]
    shapes = {name: weight.shape for name, weight in transformer("14b").named_parameters()}
    blocks = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    outside = sum(shape.numel() for name, shape in shapes.items() if not name.startswith("blocks.")) * 2 / 1e9
    lora = sum(LORA_RANK * sum(shape) * 2 for name, shape in shapes.items() if is_quantised(name, tuple(shape))) / 1e9
    sizes_gb = record["sizes_gb"]["14b"]
    hows = {row["form"]: row["how"] for row in record["rows"]}
    lines = ["| card | file | plan | GPU memory | host memory |", "|---|---|---|---|---|"]
    for card, form, resident in CARDS:
        is_packed = form not in ("fp16", "bf16")
        weights = sizes_gb[form] + (lora if is_packed else 0)
        here = outside + (weights - outside) * (resident + 2) / blocks
        total = here + measured - sizes_gb["fp16"] + (DENSE_LAYER if is_packed else 0)
        how = hows[form] if is_packed else "bf16 or fp16"
        plan = f"`+offload(resident={resident})`" if resident else "`+offload`"
        lines.append(f"| {card} GB | {how} | {plan} | {total:.1f} GB | {weights:.1f} GB |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="forms whose names begin with one of these")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2], help="a video each")
    parser.add_argument("--seconds", type=float, default=1.96, help="of a video")
    parser.add_argument("--ggml", type=Path, help="ggml's shared library, for the k and IQ types of GGUF")
    parser.add_argument("--folder", type=Path, help="where files and videos are kept")
    parser.add_argument("--output", type=Path)
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="print the tables of this record and do nothing else"
    )
    arguments = parser.parse_args()
    if arguments.table:
        record = json.loads(arguments.table.read_text())
        print("\n".join([*table(record), "", *card_table(record)]))
        return
    available = forms(Ggml.load(arguments.ggml) if arguments.ggml else None)
    made = {name: form for name, form in available.items() if name.startswith(tuple(arguments.only))}
    missing = {f"GGUF {name}": "needs --ggml" for name in TYPES if f"gguf-{name.lower()}" not in available}
    folder = arguments.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = list(rows(made, folder, arguments.seeds, arguments.seconds))
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    result = {
        "machine": machine(torch.device("cpu")),
        "command": command("benchmarks.quantised"),
        "work": {"seeds": arguments.seeds, "seconds": arguments.seconds, "config": "tiny", "units": "default"},
        "rows": found,
        "not_priced": {**NOT_PRICED, **missing},
        "sizes_gb": sizes({row["form"]: row["bits"] for row in found}),
    }
    publish(result, arguments.output)


if __name__ == "__main__":
    main()
