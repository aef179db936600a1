"""The networks of a case, as the project itself makes them: written as files, recognised by the registry, loaded.

What `config` says of a network lies beside its file as config.json, so that a row of the registry gives the class and
the numbers. All that `config` says must then be true of what was loaded.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omniavatar_i2v.image_dit import ImageDiT
from safetensors.torch import save_file
from torch import Tensor, nn

from omniavatar.checkpoints import Bundle, Registry
from omniavatar.plugins import discover
from tests.golden.cases import Case, Recorded

Networks = dict[str, nn.Module]
Numbers = Mapping[str, Mapping[str, Any]]

IN_FILES = {"vision_heads": "num_attention_heads"}
"""Keys of the cases that have another name in the files of the models."""
NUMBERS: dict[str, tuple[str, str]] = {
    "vace_in_dim": ("vace", "in_dim"),
    "vace_layers": ("vace", "layers"),
    "in_dim_control_adapter": ("fun_camera", "in_dim"),
    "temperal_downsample": ("vae", "temporal_downsample"),
    "vision_dim": ("image_encoder", "dim"),
    "vision_heads": ("image_encoder", "num_heads"),
    "vision_layers": ("image_encoder", "num_layers"),
    "vision_mlp_ratio": ("image_encoder", "mlp_ratio"),
    "embed_dim": ("image_encoder", "out_dim"),
}
"""Keys that are numbers of a network under another name."""
FACTS: dict[str, Callable[[Networks, Numbers], Any]] = {
    "has_image_input": lambda networks, _: isinstance(networks["dit"], ImageDiT),
    "require_clip_embedding": lambda networks, _: isinstance(networks["dit"], ImageDiT),
    "require_vae_embedding": lambda _, numbers: numbers["dit"]["in_dim"] > numbers["dit"]["out_dim"],
    "has_image_pos_emb": lambda _, numbers: numbers["dit"].get("image_positions", 0) > 0,
    "has_ref_conv": lambda networks, _: "fun_reference" in networks,
    "add_control_adapter": lambda networks, _: "fun_camera" in networks,
    "image_size": lambda _, numbers: image_size(numbers["image_encoder"]),
}
"""Keys that say what there is, and whether it is there."""


@cache
def registry() -> Registry:
    """The tables of the project and of all its packages."""
    return Registry(discover().checkpoint_tables())


def image_size(numbers: Mapping[str, Any]) -> int:
    """The side of the pictures of a CLIP image encoder, which has a token for every patch and one more."""
    side: int = round((numbers["tokens"] - 1) ** 0.5) * numbers["patch_size"]
    return side


def networks_of(case: Case, *, weights: Mapping[str, Tensor] | None = None, **sections: Recorded) -> Networks:
    """The networks by role that a file with these weights (default: those of the case) holds.

    sections: by role what `config` says of the networks. What it says is compared with what was loaded.
    """
    said = {key: value for section in sections.values() for key, value in section.plain().items()}
    settings = {IN_FILES.get(key, key): value for key, value in said.items()}
    networks, numbers = loaded_file(case.weights if weights is None else weights, settings)
    for role, section in sections.items():
        for key in section:
            if key in FACTS:
                case.equal(f"{role}.{key}", FACTS[key](networks, numbers), section[key])
                continue
            place, name = NUMBERS.get(key, (role, key))
            places = [place] if name in numbers.get(place, {}) else numbers
            for found in [numbers[where][name] for where in places if name in numbers[where]]:
                case.equal(f"{role}.{key}", plain(found), section[key])
    return networks


def loaded_file(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> tuple[Networks, Numbers]:
    """The networks of a file with a config.json beside it, and their numbers, by role."""
    with tempfile.TemporaryDirectory() as folder:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, Path(folder, "model.safetensors"))
        Path(folder, "config.json").write_text(json.dumps(settings))
        models = Bundle.open([folder], registry())
        networks = {role: models.load(role, dtype=torch.float32) for role in sorted(models.roles)}
        return networks, {role: models.config(role) for role in networks}


def plain(value: Any) -> Any:
    """A number or a list as JSON has it."""
    return list(value) if isinstance(value, tuple) else value
