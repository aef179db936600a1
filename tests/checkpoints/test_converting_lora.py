"""LoRA files under the names of other programs: what they do to a network stays the same bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from omniavatar.checkpoints import Bundle, Registry
from omniavatar.checkpoints.converting import Conversion
from omniavatar.errors import CheckpointError
from omniavatar.plugins import discover

PUBLIC = Path(__file__).parents[1] / "formats" / "public"
CASES: list[dict[str, Any]] = json.loads((PUBLIC / "cases.json").read_text())["cases"]
LORAS = {
    case["name"]: case
    for case in CASES
    if case["kind"] == "lora_dialect" and len(case["files"]) == 1 and "infinitetalk" not in case["base"]
}
FOR_DIFFUSERS = (
    *("comfy_down_up_alpha", "comfy_A_B", "musubi", "wan_fun", "diffusers_metadata", "peft_rslora", "mixed_dtypes"),
    *("outside_blocks", "vace"),
)
"""Those of pairs alone, of all kinds of names, of which diffusers has names for everything."""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return discover().registry()


def effects(file: Path, base: Path, registry: Registry) -> dict[str, Tensor]:
    """The weights of a network that a LoRA changes."""
    models = Bundle.open([base, file], registry)
    (adapter,) = models.adapters()
    weights = {name: weight for role in models.roles - {"lora"} for name, weight in models.weights(role, ["*"]).items()}
    fit = adapter.read().fit({name: weight.shape for name, weight in weights.items()})
    changed: dict[str, Tensor] = {}
    for name, changes in fit.changes.items():
        weight = weights[name].float()
        for change in changes:
            weight = change.apply(weight, 0.7)
        changed[name] = weight
    return changed


def assert_same_effects(file: Path, other: Path, base: Path, registry: Registry) -> None:
    one, two = effects(file, base, registry), effects(other, base, registry)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("name", LORAS)
@pytest.mark.parametrize("form", ["comfy", "omniavatar"])
def test_every_kind_keeps_its_effect(name: str, form: str, tmp_path: Path, registry: Registry) -> None:
    case = LORAS[name]
    source = PUBLIC / case["files"][0]
    target = tmp_path / "new.safetensors"
    Conversion.plan(source, form, registry).write(target)
    assert_same_effects(source, target, PUBLIC / case["base"], registry)
    # And there and back nothing is lost: the same tensors under the same names.
    Conversion.plan(target, "comfy", registry).write(tmp_path / "again.safetensors")
    Conversion.plan(source, "comfy", registry).write(tmp_path / "direct.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "direct.safetensors").read_bytes()


@pytest.mark.parametrize("name", FOR_DIFFUSERS)
def test_pairs_for_diffusers(name: str, tmp_path: Path, registry: Registry) -> None:
    source, target = PUBLIC / LORAS[name]["files"][0], tmp_path / "new.safetensors"
    Conversion.plan(source, "diffusers", registry).write(target)
    assert_same_effects(source, target, PUBLIC / LORAS[name]["base"], registry)
    assert all(key.startswith("transformer.") and ".lora_" in key for key in load_file(target))


def test_diffusers_own_class_loads_it(tmp_path: Path, registry: Registry) -> None:
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    source, target = PUBLIC / LORAS["musubi"]["files"][0], tmp_path / "new.safetensors"
    Conversion.plan(source, "diffusers", registry).write(target)
    base = tmp_path / "transformer"
    Conversion.plan(PUBLIC / LORAS["musubi"]["base"], "diffusers", registry).write(base)
    model = diffusers.WanTransformer3DModel.from_pretrained(base, torch_dtype=torch.float32)
    with safe_open(target, framework="pt") as content:
        metadata = json.loads(content.metadata()["lora_adapter_metadata"])
    model.load_lora_adapter(load_file(target), prefix="transformer", metadata=metadata)
    model.fuse_lora(0.7)
    model.unload_lora()
    expected = effects(source, PUBLIC / LORAS["musubi"]["base"], registry)
    found = model.state_dict()
    for name, weight in (("self_attn.q", "attn1.to_q"), ("cross_attn.o", "attn2.to_out.0"), ("ffn.2", "ffn.net.2")):
        one, two = found[f"blocks.1.{weight}.weight"].float(), expected[f"blocks.1.{name}.weight"]
        assert torch.allclose(one, two, atol=1e-5), name


def test_what_has_no_name_elsewhere_is_refused(tmp_path: Path, registry: Registry) -> None:
    source = PUBLIC / LORAS["diff_m"]["files"][0]
    with pytest.raises(CheckpointError, match=r"diffusers has no name for 'blocks\.\d\.diff_m'; write the form"):
        Conversion.plan(source, "diffusers", registry)
    with pytest.raises(CheckpointError, match="is a LoRA; it can be written as comfy, omniavatar, diffusers, not as"):
        Conversion.plan(source, "gguf", registry)
    stranger = {f"lora_unet_mid_block_0.lora_{side}.weight": torch.zeros(2, 2) for side in ("up", "down")}
    save_file(stranger, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="no known network has the layer 'lora_unet_mid_block_0'"):
        Conversion.plan(tmp_path / "x.safetensors", "comfy", registry)
