"""What kind of model a GGUF file holds, and what its tensors are called elsewhere."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from omniavatar.sdk import CheckpointError, shown
from omniavatar_gguf.header import quoted

WAN = "wan"
TEXT_ENCODERS = ("t5", "t5encoder")
UNNAMED = (None, "pig", "cow")
"""Architectures of converters that do not say what they have converted."""
SIGNS = {
    WAN: ("blocks.0.self_attn.norm_q.weight", "text_embedding.2.weight", "head.modulation"),
    "t5encoder": ("token_embd.weight", "enc.blk.0.attn_rel_b.weight", "enc.output_norm.weight"),
}
"""Tensors by which a model is recognised where the file does not say what it is; a prefix may stand before them."""

_LAYERS = {
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "attn_norm": "layer.0.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
    "ffn_norm": "layer.1.layer_norm",
}
_OUTSIDE = {"token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm"}
_IN_BLOCK = re.compile(r"enc\.blk\.(\d+)\.(\w+)")


def architecture(file: Path, stated: Any, names: Collection[str]) -> str:
    """What a file holds, as it states it or, if it does not, by its names. Raises CheckpointError for other models."""
    if not isinstance(stated, str | None):
        raise CheckpointError(f"{file} is damaged: its general.architecture is {shown(stated)}, which is not a string")
    if stated == WAN or stated in TEXT_ENCODERS:
        return stated
    if stated in UNNAMED:
        for found, signs in SIGNS.items():
            if all(any(name == sign or name.endswith(f".{sign}") for name in names) for sign in signs):
                return found
        says = "names no architecture" if stated is None else f"has the architecture {quoted(stated)}"
        raise CheckpointError(f"{file} {says}, and its tensors fit none: it is neither a Wan transformer nor a T5")
    raise CheckpointError(
        f"{file} has the architecture {quoted(stated)}, which is no Wan model; "
        f"give one of {', '.join((WAN, *TEXT_ENCODERS))}"
    )


def hugging_face_name(name: str) -> str:
    """A T5 tensor's name of llama.cpp -> its name in transformers; others stay."""
    stem, _, ending = name.rpartition(".")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{ending}"
    match = _IN_BLOCK.fullmatch(stem)
    if match is None or match[2] not in _LAYERS:
        return name
    return f"encoder.block.{match[1]}.{_LAYERS[match[2]]}.{ending}"


def full_shape(name: str, rows: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a Wan tensor with the leading 1 that ggml's own writer leaves out: modulation is (1 k d)."""
    if len(rows) == 2 and name.rpartition(".")[2] in ("modulation", "emb_pos"):
        return (1, *rows)
    return rows
