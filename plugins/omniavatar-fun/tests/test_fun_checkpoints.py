"""The rows of fun.toml against the published hashes, and files of other sizes."""

from __future__ import annotations

import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from omniavatar_fun.networks import CameraAdapter, ReferenceEmbedding
from omniavatar_fun.testing import CAMERA, CAMERA_DIT, CAMERA_DIT_22, CONTROL_DIT, CONTROL_DIT_22, REFERENCE
from omniavatar_i2v.image_dit import ImageDiT
from safetensors.torch import save_file
from torch import Tensor, nn

from omniavatar.checkpoints import Bundle, Registry, Row, fingerprint
from omniavatar.checkpoints.nearest import expected_shapes
from omniavatar.engine.plan import make_unit
from omniavatar.models.wan_dit import WanDiT
from omniavatar.plugins import discover
from omniavatar.testing.tiny import weights
from tests.models.networks import randomized

TABLES = [files("omniavatar_i2v") / "i2v.toml", files("omniavatar_fun") / "fun.toml"]
REGISTRY = Registry.builtin(TABLES)
OWN = [row for row in REGISTRY.rows if row not in Registry.builtin(TABLES[:1]).rows]
PUBLISHED = {row.name: row for row in OWN if row.hash}


@pytest.mark.parametrize("row", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_the_networks_of_a_row_have_the_published_hash(row: Row) -> None:
    shapes = expected_shapes(row)
    assert fingerprint(shapes) == row.hash
    assert len(shapes) == row.num_keys
    assert sum(map(math.prod, shapes.values())) == row.num_params
    assert not row.unclaimed(shapes)
    assert {row.owner(name) for name in shapes} == set(row.components), "every name goes to the network that has it"


def test_the_published_models_are_known() -> None:
    assert {(row.hash, row.num_params) for row in PUBLISHED.values()} == {
        ("349723183fc063b2bfc10bb2835cf677", 1564502336),
        ("efa44cddf936c70abd0ea28b6cbe946c", 16395124544),
        ("70ddad9d3a133785da5ea371aae09504", 1564602176),
        ("26bde73488a92e64cc20b0a7485b9e5b", 16395457344),
        ("2267d489f0ceb9f21836532952852ee5", 14289561664),
        ("ac6a5aa74f4a0aab6f64eb9a72f19901", 1616313152),
        ("b61c605c2adbd23124d152ed28e049ae", 16898128704),
        ("47dbeab5e560db3180adf51dc0232fb1", 14792233024),
    }


@pytest.mark.parametrize("repo", ["Wan2.1-Fun-1.3B-InP", "Wan2.1-Fun-14B-InP", "Wan2.2-Fun-A14B-InP"])
def test_the_inpainting_models_are_image_to_video_models(repo: str) -> None:
    places = [place for row in REGISTRY.rows for place in (f"{row.repo}:{row.file}", *row.also)]
    assert any(place.startswith(f"PAI/{repo}:") for place in places)


@pytest.mark.parametrize("row", OWN, ids=lambda row: row.name)
def test_the_units_accept_what_a_row_recommends(row: Row) -> None:
    units = discover().catalog().units
    for name, settings in row.settings.items():
        assert make_unit(units[name], settings)


def named(network: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Its weights under the names of a file."""
    return {prefix + name: tensor for name, tensor in weights(network).items()}


def written(folder: Path, config: dict[str, Any], part: dict[str, Tensor]) -> Path:
    """One file with a transformer and a part of it, and the number of heads beside it."""
    dit = ImageDiT(**config) if "clip_dim" in config else WanDiT(**config)
    save_file(weights(dit) | part, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_config": {"num_heads": config["num_heads"]}}))
    return folder / "model.safetensors"


@pytest.mark.parametrize("config", [CONTROL_DIT, CONTROL_DIT_22])
def test_transformers_of_any_size_with_a_reference_layer(tmp_path: Path, config: dict[str, Any]) -> None:
    layer = randomized(ReferenceEmbedding(**REFERENCE))
    models = Bundle.open([written(tmp_path, config, named(layer))], REGISTRY)
    assert models.detections[0].row.name == f"Wan-Fun-Reference{'' if 'clip_dim' in config else '-no-CLIP'}"
    assert models.config("dit") == {**config, "patch_size": [1, 2, 2]}
    assert models.config("fun_reference") == {**REFERENCE, "patch_size": [1, 2, 2]}
    assert_same(models.load("fun_reference"), layer)


@pytest.mark.parametrize("config", [CAMERA_DIT, CAMERA_DIT_22])
def test_transformers_of_any_size_with_a_camera_adapter(tmp_path: Path, config: dict[str, Any]) -> None:
    adapter = randomized(CameraAdapter(**{**CAMERA, "num_blocks": 2}))
    models = Bundle.open([written(tmp_path, config, named(adapter, "control_adapter."))], REGISTRY)
    assert models.detections[0].row.name == f"Wan-Fun-Camera{'' if 'clip_dim' in config else '-no-CLIP'}"
    assert models.config("dit") == {**config, "patch_size": [1, 2, 2]}
    assert models.config("fun_camera") == {**CAMERA, "num_blocks": 2}
    assert_same(models.load("fun_camera"), adapter)


def assert_same(network: nn.Module, expected: nn.Module) -> None:
    """The same names and values."""
    assert network.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)


def test_control_without_a_reference_layer_is_any_image_to_video_transformer(tmp_path: Path) -> None:
    detection = REGISTRY.detect(written(tmp_path, CONTROL_DIT, {}))
    assert (detection.row.name, detection.components[0].config["in_dim"]) == ("Wan-I2V", 48)


def test_a_second_expert_brings_its_own_part(tmp_path: Path) -> None:
    file = written(tmp_path, CONTROL_DIT_22, named(ReferenceEmbedding(**REFERENCE)))
    models = Bundle.open([file, file], REGISTRY, [None, "dit2"])
    assert models.roles == {"dit", "fun_reference", "dit2", "fun_reference2"}


def test_a_picture_is_one_frame() -> None:
    with pytest.raises(ValueError, match="spans 2 frames"):
        ReferenceEmbedding(in_dim=16, dim=8, patch_size=(2, 2, 2))
