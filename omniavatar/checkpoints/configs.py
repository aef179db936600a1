"""The config.json of a folder for diffusers or transformers, from the numbers of a network here.

Fields and values are those that these libraries write themselves (diffusers 0.42, transformers 5.23).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from omniavatar.checkpoints.registry import Detection

Numbers = Mapping[str, Any]


def folder_config(found: Detection, role: str) -> dict[str, Any] | None:
    """What config.json says of a network; None if those libraries have no class for it, or its heads are not known."""
    by_role = {component.role: component for component in found.components}
    make = {"dit": transformer, "vae": vae, "text_encoder": text_encoder, "image_encoder": image_encoder}[role]
    numbers = {**by_role[role].config, "names": by_role[role].tensors.keys()}
    if numbers.get("num_heads") == 0:
        return None
    if by_role.keys() == {"dit", "vace"}:
        return {**transformer(numbers), **vace(by_role["vace"].config)}
    kind = str(by_role[role].spec.network).rpartition(":")[2]
    return make(numbers) if kind in KINDS and by_role.keys() == {role} else None


KINDS = ("WanDiT", "ImageDiT", "WanVAE", "UMT5Encoder", "ClipImageEncoder")
"""Networks that are those of diffusers and transformers."""


def transformer(numbers: Numbers) -> dict[str, Any]:
    """WanTransformer3DModel."""
    dim, heads = numbers["dim"], numbers["num_heads"]
    has_image = any(".k_img." in name for name in numbers["names"])
    return {
        "_class_name": "WanTransformer3DModel",
        "added_kv_proj_dim": dim if has_image else None,
        "attention_head_dim": dim // heads,
        "cross_attn_norm": True,
        "eps": numbers.get("eps", 1e-6),
        "ffn_dim": numbers["ffn_dim"],
        "freq_dim": numbers["freq_dim"],
        "image_dim": numbers.get("clip_dim") if has_image else None,
        "in_channels": numbers["in_dim"],
        "num_attention_heads": heads,
        "num_layers": numbers["num_layers"],
        "out_channels": numbers["out_dim"],
        "patch_size": list(numbers["patch_size"]),
        "pos_embed_seq_len": numbers.get("image_positions") if has_image else None,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": numbers["text_dim"],
    }


def vace(numbers: Numbers) -> dict[str, Any]:
    """What WanVACETransformer3DModel has beside a transformer."""
    return {
        "_class_name": "WanVACETransformer3DModel",
        "vace_in_channels": numbers["in_dim"],
        "vace_layers": list(numbers["layers"]),
    }


def vae(numbers: Numbers) -> dict[str, Any]:
    """AutoencoderKLWan of Wan 2.1."""
    return {
        "_class_name": "AutoencoderKLWan",
        "attn_scales": list(numbers["attn_scales"]),
        "base_dim": numbers["dim"],
        "dim_mult": list(numbers["dim_mult"]),
        "dropout": 0.0,
        "latents_mean": list(numbers["latent_mean"]),
        "latents_std": list(numbers["latent_std"]),
        "num_res_blocks": numbers["num_res_blocks"],
        "temperal_downsample": list(numbers["temporal_downsample"]),
        "z_dim": numbers["z_dim"],
    }


def text_encoder(numbers: Numbers) -> dict[str, Any]:
    """UMT5EncoderModel."""
    return {
        "architectures": ["UMT5EncoderModel"],
        "d_ff": numbers["dim_ffn"],
        "d_kv": numbers["dim_attn"] // numbers["num_heads"],
        "d_model": numbers["dim"],
        "dense_act_fn": "gelu_new",
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-6,
        "model_type": "umt5",
        "num_heads": numbers["num_heads"],
        "num_layers": numbers["num_layers"],
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": numbers["num_buckets"],
        "tie_word_embeddings": True,
        "vocab_size": numbers["vocab"],
    }


def image_encoder(numbers: Numbers) -> dict[str, Any]:
    """CLIPVisionModelWithProjection, or CLIPVisionModel where the file has no projection."""
    name = "CLIPVisionModelWithProjection" if "visual.head" in numbers["names"] else "CLIPVisionModel"
    return {
        "architectures": [name],
        "hidden_act": "gelu",
        "hidden_size": numbers["dim"],
        "image_size": math.isqrt(numbers["tokens"] - 1) * numbers["patch_size"],
        "intermediate_size": numbers["dim"] * numbers["mlp_ratio"],
        "layer_norm_eps": 1e-5,
        "model_type": "clip_vision_model",
        "num_attention_heads": numbers["num_heads"],
        "num_hidden_layers": numbers["num_layers"],
        "patch_size": numbers["patch_size"],
        "projection_dim": numbers["out_dim"],
    }
