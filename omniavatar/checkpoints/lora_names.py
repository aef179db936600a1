"""The names inside LoRA files: what a tensor is by its ending, and which layer of a network it belongs to.

Importing this does not import torch: recognising a file needs names only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from omniavatar.checkpoints.names import Rename, rename, undo

WORD = r"(?:\.(?!weight$|bias$)\w+)?"
"""The adapter's name, which peft puts inside of a key: `.lora_A.default.weight`."""
PARTS: tuple[tuple[str, str], ...] = (
    (rf"\.lora_(?:A|down){WORD}\.weight", "down"),
    (rf"\.lora_(?:B|up){WORD}\.weight", "up"),
    (rf"\.lora_B{WORD}\.bias", "up_bias"),
    (r"(?:\.lora|_lora|\.lora_linear_layer)\.down\.weight", "down"),
    (r"(?:\.lora|_lora|\.lora_linear_layer)\.up\.weight", "up"),
    (r"\.lora(?:\.|_)A(?:\.weight)?", "down"),
    (r"\.lora(?:\.|_)B(?:\.weight)?", "up"),
    (r"\.alpha", "alpha"),
    (r"\.dora_scale", "dora_scale"),
    (rf"\.lora_magnitude_vector{WORD}(?:\.weight)?", "magnitude"),
    (r"\.reshape_weight", "reshape"),
    (r"\.diff", "diff"),
    (r"\.diff_b", "diff_b"),
    (r"\.diff_m", "diff_m"),
    (r"\.set_weight", "set"),
    (r"\.w_norm", "diff"),
    (r"\.b_norm", "diff_b"),
    (r"\.(hada_w[12]_[ab])", ""),
    (r"\.(lokr_w[12](?:_[ab])?)", ""),
)
"""Ending of a key -> what it is; an empty word stands for the ending's own."""
REFUSED: tuple[tuple[str, str], ...] = (
    (r"\.oft_(?:blocks|diag)|\.oft_R(?:\.\w+)?(?:\.weight)?", "OFT"),
    (r"\.boft_\w+(?:\.\w+)?", "BOFT"),
    (r"\.on_input|\.ia3_l(?:\.\w+)?", "IA3"),
    (r"\.lora_mid\.weight|\.hada_t[12]|\.lokr_t2", "Tucker decomposition (lora_mid, hada_t, lokr_t2)"),
)
"""Ending of a key -> a kind of change that is not supported."""
ENDING = re.compile(r"(?P<stem>.+?)(?:" + "|".join(f"(?P<p{i}>{p})" for i, (p, _) in enumerate(PARTS)) + ")")
UNSUPPORTED = re.compile(r".+?(?:" + "|".join(f"(?P<p{i}>{p})" for i, (p, _) in enumerate(REFUSED)) + ")")
LONGEST = 1000
"""Letters of a key; longer ones are no names of layers."""

PREFIXES = (
    "model.diffusion_model.",
    "diffusion_model.",
    "pipe.dit.",
    "base_model.model.",
    "transformer.",
    "unet.",
    "model.",
)
"""What stands in front of a network's own names."""
UNDERSCORED = ("lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_")
"""What stands in front of names whose dots are underscores."""
OF_TEXT_ENCODERS = ("text_encoder", "lora_te", "text_model", "conditioner", "lycoris_te")

DIFFUSERS: tuple[Rename, ...] = tuple(
    Rename(file, network)
    for file, network in (
        ("*blocks.*.attn1.to_{q,k,v}", "*blocks.*.self_attn.{q,k,v}"),
        ("*blocks.*.attn2.to_{q,k,v}", "*blocks.*.cross_attn.{q,k,v}"),
        ("*blocks.*.{attn1,attn2}.to_out.0", "*blocks.*.{self_attn,cross_attn}.o"),
        ("*blocks.*.attn2.add_{k,v}_proj", "*blocks.*.cross_attn.{k,v}_img"),
        ("*blocks.*.attn2.norm_added_k", "*blocks.*.cross_attn.norm_k_img"),
        ("*blocks.*.{attn1,attn2}.norm_{q,k}", "*blocks.*.{self_attn,cross_attn}.norm_{q,k}"),
        ("*blocks.*.norm2", "*blocks.*.norm3"),
        ("*blocks.*.ffn.net.0.proj", "*blocks.*.ffn.0"),
        ("*blocks.*.ffn.net.2", "*blocks.*.ffn.2"),
        ("vace_blocks.*.proj_in", "vace_blocks.*.before_proj"),
        ("vace_blocks.*.proj_out", "vace_blocks.*.after_proj"),
        ("condition_embedder.text_embedder.linear_{1,2}", "text_embedding.{0,2}"),
        ("condition_embedder.time_embedder.linear_{1,2}", "time_embedding.{0,2}"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("condition_embedder.image_embedder.{norm1,ff.net.0.proj,ff.net.2,norm2}", "img_emb.proj.{0,1,3,4}"),
        ("proj_out", "head.head"),
        ("*blocks.*.scale_shift_table", "*blocks.*.modulation"),
        ("scale_shift_table", "head.modulation"),
    )
)
"""Names of layers in diffusers' Wan transformers -> official ones."""
IMAGE_BRANCH = re.compile(
    r"(?:^|[._])(?:k_img|v_img|norm_k_img|img_emb|add_k_proj|add_v_proj|norm_added_k|image_embedder)\b"
)
IMAGE_WORDS = ("_k_img", "_v_img", "img_emb_", "_add_k_proj", "_add_v_proj", "_norm_added_k", "image_embedder_")
NO_LAYER = "this network has no layer of this name"


@dataclass(frozen=True)
class Key:
    """A key of a LoRA file: the layer's name as the file has it, and what the tensor is to it."""

    text: str
    stem: str
    part: str


def parsed(key: str) -> Key | None:
    """What a key means; None if it has no known ending."""
    match = ENDING.fullmatch(key) if len(key) <= LONGEST else None
    if match is None:
        return None
    index = next(i for i in range(len(PARTS)) if match[f"p{i}"] is not None)
    return Key(key, match["stem"], PARTS[index][1] or match[f"p{index}"].lstrip("."))


def unsupported(key: str) -> str | None:
    """The kind of change that a key is part of, if it is one that is not supported."""
    match = UNSUPPORTED.fullmatch(key) if len(key) <= LONGEST else None
    return None if match is None else next(name for i, (_, name) in enumerate(REFUSED) if match[f"p{i}"] is not None)


def is_lora(names: Iterable[str]) -> bool:
    """Whether these are the names of a LoRA file; an alpha alone does not make one."""
    keys = ((name, parsed(name)) for name in names)
    return any(key.part != "alpha" if key is not None else unsupported(name) is not None for name, key in keys)


class Layers:
    """The layers of a network, found under any of the names that LoRA files have for them.

    weights: the names of the network's weights, official ones.
    """

    def __init__(self, weights: Collection[str]) -> None:
        self.names = {owner for name in weights for owner in owners(name)}
        self.underscored: Mapping[str, str] = {
            spelling.replace(".", "_"): name for name in self.names for spelling in (undo(name, DIFFUSERS), name)
        }

    def find(self, stem: str) -> str | None:
        """The official name of the layer that a file calls so; None if the network has none."""
        for prefix in UNDERSCORED:
            if stem.startswith(prefix):
                found = self.underscored.get(stem.removeprefix(prefix))
                if found is not None:
                    return found
        for name in spellings(stem):
            if name in self.names:
                return name
        return None


def owners(weight: str) -> list[str]:
    """What a key may name to mean this weight: its layer; a parameter that is no weight or bias also by itself."""
    layer, _, own = weight.rpartition(".")
    return [layer] if layer and own in ("weight", "bias") else [name for name in (layer, weight) if name]


@lru_cache(maxsize=65536)
def spellings(stem: str) -> tuple[str, ...]:
    """The official names that a stem with dots may mean: as it is, and without what stands in front."""
    found = [stem, rename(stem, DIFFUSERS)]
    while (prefix := next((prefix for prefix in PREFIXES if stem.startswith(prefix)), None)) is not None:
        stem = stem.removeprefix(prefix)
        found += [stem, rename(stem, DIFFUSERS)]
    return tuple(found)


def why_no_layer(stem: str) -> str:
    """Why a network lacks the layer of this name."""
    plain = spellings(stem)[-1]
    if IMAGE_BRANCH.search(plain) or (stem.startswith(UNDERSCORED) and any(word in f"{stem}_" for word in IMAGE_WORDS)):
        return f"image branch: {NO_LAYER}"
    if stem.startswith(OF_TEXT_ENCODERS):
        return f"text encoder: {NO_LAYER}"
    if plain.startswith("vace_blocks.") or "_vace_blocks_" in f"_{stem}":
        return f"VACE blocks: {NO_LAYER}"
    return NO_LAYER
