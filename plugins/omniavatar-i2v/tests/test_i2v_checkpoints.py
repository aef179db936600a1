"""The rows of i2v.toml against the published hashes, and files of other sizes."""

from __future__ import annotations

import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from omniavatar_i2v.clip import ClipImageEncoder
from omniavatar_i2v.image_dit import ImageDiT
from omniavatar_i2v.testing import CLIP, FLF2V_DIT, IMAGE_DIT
from safetensors.torch import save_file

from omniavatar.checkpoints import Registry, Row, fingerprint
from omniavatar.checkpoints.nearest import expected_shapes
from omniavatar.engine.plan import make_unit
from omniavatar.models.wan_dit import WanDiT
from omniavatar.plugins import discover
from omniavatar.testing.tiny import weights

Shapes = dict[str, tuple[int, ...]]

REGISTRY = Registry.builtin([files("omniavatar_i2v") / "i2v.toml"])
OWN = [row for row in REGISTRY.rows if row not in Registry.builtin().rows]
PUBLISHED = {row.name: row for row in OWN if row.hash}


def text_half() -> Shapes:
    """The names and shapes of the XLM-RoBERTa-large that lies in the CLIP file beside the image half."""
    width, hidden, words, length, layers = 1024, 4096, 250002, 514, 24
    shapes: Shapes = {
        "token_embedding.weight": (words, width),
        "type_embedding.weight": (1, width),
        "pos_embedding.weight": (length, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.0.weight": (width, width),
        "head.2.weight": (width, width),
    }
    sizes = {"ffn.0": (hidden, width), "ffn.2": (width, hidden)} | {f"attn.{x}": (width, width) for x in "qkvo"}
    for layer in range(layers):
        for name, size in sizes.items():
            shapes |= {f"blocks.{layer}.{name}.weight": size, f"blocks.{layer}.{name}.bias": size[:1]}
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{layer}.{norm}.{kind}": (width,) for kind in ("weight", "bias")}
    return {f"textual.{name}": shape for name, shape in shapes.items()}


def video_branch(base: Shapes) -> Shapes:
    """What Video-As-Prompt has beside the transformer: a copy of every fourth block and of the embeddings."""
    shapes: Shapes = {}
    for name, shape in base.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            if int(parts[1]) % 4 == 0:
                shapes[".".join([*parts[:2], parts[2] + "_mot_ref", *parts[3:]])] = shape
        elif parts[0] in ("patch_embedding", "condition_embedder"):
            shapes[".".join([parts[0] + "_mot_ref", *parts[1:]])] = shape
    return shapes


def whole_file(row: Row) -> Shapes:
    """Every name and shape in the file of a row, those that it ignores included."""
    shapes = expected_shapes(row)
    if row.name == "CLIP-ViT-H-14":
        return shapes | text_half()
    return shapes | video_branch(shapes) if row.name == "Video-As-Prompt-Wan2.1-14B" else shapes


@pytest.mark.parametrize("row", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_the_network_of_a_row_has_the_published_hash(row: Row) -> None:
    shapes = whole_file(row)
    assert fingerprint(shapes) == row.hash
    assert len(shapes) == row.num_keys
    assert sum(map(math.prod, shapes.values())) == row.num_params
    assert not row.unclaimed(shapes)


def test_the_published_models_are_known() -> None:
    assert {(row.hash, row.num_params) for row in PUBLISHED.values()} == {
        ("6bfcfb3b342cb286ce886889d519a77e", 16394878784),
        ("3ef3b1f8e1dab83d5b71fd7b617f859f", 16395536704),
        ("6d6ccde6845b95ad9114ab993d917893", 1564428608),
        ("5b013604280dd715f8457c6ed6d6a626", 14288901184),
        ("5f90e66a0672219f12d9a626c8c21f61", 20674265664),
        ("5941c53e207d62f20f9025686193c40b", 1193014785),
    }


@pytest.mark.parametrize("row", OWN, ids=lambda row: row.name)
def test_the_units_accept_what_a_row_recommends(row: Row) -> None:
    units = discover().catalog().units
    for name, settings in row.settings.items():
        assert make_unit(units[name], settings)


def test_names_of_diffusers_become_those_of_the_network() -> None:
    """Weights and their values, not only names: what is written in the other layout is found again."""
    row = PUBLISHED["Video-As-Prompt-Wan2.1-14B"]
    spec = row.components["dit"]
    for name in ImageDiT(**IMAGE_DIT).state_dict():
        assert spec.network_name(spec.file_name(name)) == name
    assert spec.file_name("img_emb.proj.3.bias") == "condition_embedder.image_embedder.ff.net.2.bias"
    assert spec.file_name("blocks.3.cross_attn.norm_k_img.weight") == "blocks.3.attn2.norm_added_k.weight"
    assert row.owner("blocks.0.attn2_mot_ref.to_q.weight") is None


def written(folder: Path, *networks: torch.nn.Module, **more: torch.Tensor) -> Path:
    """One file with the weights of these networks, and the number of heads beside it."""
    tensors = {name: tensor for network in networks for name, tensor in weights(network).items()}
    save_file(tensors | more, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_config": {"num_heads": 2}}))
    return folder / "model.safetensors"


@pytest.mark.parametrize(("name", "config"), [("Wan-I2V", IMAGE_DIT), ("Wan-FLF2V", FLF2V_DIT)])
def test_transformers_of_any_size(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    detection = REGISTRY.detect(written(tmp_path, ImageDiT(**config)))
    (component,) = detection.components
    assert (detection.row.name, component.role) == (name, "dit")
    assert component.config == {**config, "patch_size": [1, 2, 2]}


@pytest.mark.parametrize("text", [{}, {"textual.norm.weight": torch.ones(3)}])
def test_image_encoders_of_any_size(tmp_path: Path, text: dict[str, torch.Tensor]) -> None:
    detection = REGISTRY.detect(written(tmp_path, ClipImageEncoder(**CLIP), **text))
    (component,) = detection.components
    assert (detection.row.name, component.role, component.config) == ("CLIP-image-encoder", "image_encoder", CLIP)
    assert set(component.tensors) == set(ClipImageEncoder(**CLIP).state_dict())


def test_the_small_expert_of_wan_2_2_is_a_plain_transformer() -> None:
    spec = PUBLISHED["Wan2.2-I2V-A14B"].components["dit"]
    assert spec.network == f"{WanDiT.__module__}:{WanDiT.__name__}"
    assert spec.config["in_dim"] == 36
