"""The names inside LoRA files: what a tensor is by its ending, and which layer of a network it belongs to.

Importing this does not import torch: recognising a file needs names only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
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
    *(
        "state_dict.",
        "model_state_dict.",
        "model_state.",
        "module.",
        "lora.",
        "lora_state_dict.",
        "adapter.",
        "network.",
    ),
    *("params.", "params_ema.", "ema.", "generator.", "generator_ema.", "weights.", "_orig_mod."),
    "model.diffusion_model.",
    "diffusion_model.",
    "pipe.dit.",
    "dit.",
    "high_noise_model.",
    "high_noise.",
    "base_model.model.",
    "transformer.",
    "unet.",
    "model.",
)
"""What stands in front of a network's own names, entries around the state dict of a pickle included."""
MAIN, SECOND, TEXT = "transformer", "second transformer", "text encoder"
"""Which network a key is for: the one that the file is given for, or another that its name says."""
OF_SECOND = ("transformer_2.", "pipe.dit2.", "dit2.", "low_noise_model.", "low_noise.")
"""What stands in front of names of a second transformer, such as that for low noise of Wan 2.2."""
OF_TEXT = re.compile(r"text_encoders?(?:_\d+)?\.(?:\w+\.transformer\.)?")
"""The same of the text encoder: diffusers' `text_encoder.`, ComfyUI's `text_encoders.umt5xxl.transformer.`."""
T5 = re.compile(r"(?:^|[._])encoder[._]block[._]\d+[._]layer[._]\d|(?:^|[._])encoder[._]final_layer_norm$")
"""Names that no transformer has, but the text encoder in transformers."""
UNDERSCORED = (
    (re.compile(r"(?:lora|lycoris)_(?:te\d*|text_encoders?\d*)_+"), TEXT),
    (re.compile(r"(?:lora_transformer|lycoris_transformer|lora_unet)_2_+"), SECOND),
    (re.compile(r"lora_(?:unet|transformer)_+|lycoris_"), MAIN),
)
"""What stands in front of names whose dots are underscores, and the network that it means."""
TEXT_ENCODER = "text_encoder"
"""The role of the network that keys of the text encoder change."""

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
UMT5: tuple[Rename, ...] = (
    Rename("encoder.embed_tokens", "token_embedding"),
    Rename("shared", "token_embedding"),
    Rename("encoder.block.*.layer.0.SelfAttention.{q,k,v,o}", "blocks.*.attn.{q,k,v,o}"),
    Rename("encoder.block.*.layer.0.SelfAttention.relative_attention_bias", "blocks.*.pos_embedding.embedding"),
    Rename("encoder.block.*.layer.{0,1}.layer_norm", "blocks.*.norm{1,2}"),
    Rename("encoder.block.*.layer.1.DenseReluDense.{wi_0,wi_1,wo}", "blocks.*.ffn.{gate.0,fc1,fc2}"),
    Rename("encoder.final_layer_norm", "norm"),
)
"""Names of layers in transformers' UMT5 -> those of Wan's text encoder."""
OF_OTHER_ENCODERS = ("text_model", "conditioner")
"""What stands in front of names of text encoders that Wan does not have."""
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
            spelling.replace(".", "_"): name
            for name in self.names
            for spelling in (undo(name, DIFFUSERS), undo(name, UMT5), name)
        }

    def find(self, stem: str) -> str | None:
        """The official name of the layer that a file calls so; None if the network has none."""
        found = meaning(stem)
        if found.underscored:
            return self.underscored.get(found.underscored)
        return next((name for name in found.names if name in self.names), None)


def owners(weight: str) -> list[str]:
    """What a key may name to mean this weight: its layer; a parameter that is no weight or bias also by itself."""
    layer, _, own = weight.rpartition(".")
    return [layer] if layer and own in ("weight", "bias") else [name for name in (layer, weight) if name]


@dataclass(frozen=True)
class Meaning:
    """What a stem says: for which network it is, and the names that the layer may have there.

    names: as it is, and without what stands in front. underscored: without that, of a stem with underscores for dots.
    official: the layer of a Wan transformer that it is, if it is of one.
    """

    part: str
    names: tuple[str, ...] = ()
    underscored: str = ""
    official: str = ""


@lru_cache(maxsize=65536)
def meaning(stem: str) -> Meaning:
    """What a stem says, whatever the network has."""
    for start, part in UNDERSCORED:
        if match := start.match(stem):
            rest = stem[match.end() :]
            return Meaning(TEXT if part == MAIN and T5.search(rest) else part, underscored=rest)
    part, rest = MAIN, stem
    names = [rest]
    while True:
        if match := OF_TEXT.match(rest):
            part, length = TEXT, match.end()
        elif prefix := next((prefix for prefix in OF_SECOND if rest.startswith(prefix)), ""):
            part, length = SECOND, len(prefix)
        else:
            length = len(next((prefix for prefix in PREFIXES if rest.startswith(prefix)), ""))
        if not length:
            break
        rest = rest[length:]
        names.append(rest)
    if T5.search(rest):
        part = TEXT
    spelled = tuple(other for name in names for other in (name, rename(name, DIFFUSERS), rename(name, UMT5)))
    return Meaning(part, spelled, official=rename(rest, DIFFUSERS))


def parts_in(keys: Iterable[str]) -> frozenset[str]:
    """The networks that a file with these keys is for."""
    found = (parsed(key) for key in keys)
    return frozenset(meaning(key.stem).part for key in found if key is not None)


def places(parts: Collection[str], target: str, experts: Sequence[str], *, is_named: bool) -> dict[str, str]:
    """The roles that a file with keys for these networks changes, each with the network as the file calls it.

    target: the role that it is given for; is_named: by the user, and so it changes no other one. experts: the roles of
    the transformers that take turns. A file for one network does not say which; one for several says so of the second
    transformer and the text encoder.
    """
    others = {**dict.fromkeys(experts[1:2], SECOND), TEXT_ENCODER: TEXT}
    if is_named:
        own = others.get(target, MAIN)
        return {target: own if own in parts else MAIN}
    found = {role: part for role, part in others.items() if part in parts}
    return {target: MAIN, **found} if MAIN in parts or not found else found


def why_no_layer(stem: str) -> str:
    """Why a network lacks the layer of this name."""
    found = meaning(stem)
    plain, underscored = found.names[-1] if found.names else "", f"_{found.underscored}_"
    if found.part != MAIN:
        return f"{found.part}: {NO_LAYER}"
    if IMAGE_BRANCH.search(plain) or any(word in underscored for word in IMAGE_WORDS):
        return f"image branch: {NO_LAYER}"
    if stem.startswith(OF_OTHER_ENCODERS):
        return f"text encoder: {NO_LAYER}"
    if plain.startswith("vace_blocks.") or underscored.startswith("_vace_blocks_"):
        return f"VACE blocks: {NO_LAYER}"
    return NO_LAYER


def elsewhere(part: str, *, is_named: bool) -> str:
    """Why a key for another network than the one that is changed is left out."""
    return f"{part}: the file is given for another network" if is_named else f"{part}: there is none that works here"
