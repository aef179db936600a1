"""What is trained, that nothing else is, and that what is saved is what was learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from omniavatar.checkpoints import Bundle, Registry
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Plan
from omniavatar.errors import InputError
from omniavatar.models.wan_dit import WanDiT
from omniavatar.testing.tiny import DIT, TinyModels, weights
from omniavatar.testing.weights import relative_error
from omniavatar.training.trained import DELTA, WHOLE, Trained, plain
from omniavatar.units.lora import Lora

LORA: dict[str, Any] = {"rank": 4, "alpha": 2}


def trained(models: TinyModels | None = None, **settings: Any) -> Trained:
    unit = Trained(**settings)
    Engine(Plan((unit,)), models or TinyModels()).set_up()
    return unit


def changed(unit: Trained) -> dict[str, torch.Tensor]:
    """All trained weights with something learnt."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in unit.parameters.values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=draw))
    return {name: weight.detach() for name, weight in unit.parameters.items()}


def test_lora_layers_are_put_beside_the_named_layers() -> None:
    unit = trained(lora=LORA)
    layers = {name.partition(".lora_")[0] for name in unit.parameters}
    assert len(layers) == 6 * 10, "q, k, v, o of both attentions, and two of the feed-forward, in six blocks"
    assert all(weight.dtype == torch.float32 for weight in unit.parameters.values())
    assert sum(weight.requires_grad for weight in unit.networks["dit"].parameters()) == len(unit.parameters)


def test_patterns_choose_further_weights() -> None:
    unit = trained(weights=["audio_adapter.*", "dit.patch_embedding.*", "dit.blocks.*.norm3.weight"])
    names = set(unit.parameters)
    assert {"dit.patch_embedding.weight", "dit.patch_embedding.bias", "audio_adapter.audio_proj.proj.weight"} <= names
    assert sum("norm3" in name for name in names) == 6
    assert not any("self_attn" in name for name in names)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weights": ["dit.patch_embeding.*"]}, r"no weight fits the pattern .*; there is 'dit.patch_embedding"),
        ({"weights": ["vae2.*"]}, "names the network 'vae2', which no model file has"),
        ({"lora": {**LORA, "targets": ["qq"]}}, "no linear layer's name ends in one of the LoRA targets qq"),
    ],
)
def test_what_is_not_there_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        trained(**settings)


def test_new_layers_change_nothing_and_are_the_same_in_every_run() -> None:
    models = TinyModels()
    inputs = torch.randn(1, 33, 3, 4, 4), torch.tensor([500.0]), torch.randn(1, 5, 64)
    before = models.networks["dit"](*inputs)
    unit, again = trained(models, lora=LORA), trained(lora=LORA)
    torch.testing.assert_close(unit.networks["dit"](*inputs), before)
    assert all(weight.equal(again.parameters[name]) for name, weight in unit.parameters.items())
    other = trained(lora=LORA, seed=1)
    assert not all(weight.equal(other.parameters[name]) for name, weight in unit.parameters.items())


def test_the_saved_delta_makes_the_same_network(tmp_path: Path) -> None:
    """It goes through the tables and the unit that a user's files go through."""
    unit = trained(lora=LORA, weights=["audio_adapter.*", "dit.patch_embedding.*"])
    base = {plain(name): value for name, value in unit.networks["dit"].state_dict().items() if ".lora_" not in name}
    learnt = changed(unit)
    base_in = {**base, "patch_embedding.weight": base["patch_embedding.weight"][:, :16].contiguous()}
    save_file(base_in, tmp_path / "base.safetensors")
    unit.save(tmp_path / "delta", learnt, merged=True, dtype=torch.float32)
    assert json.loads((tmp_path / "delta" / "config.json").read_text()) == {
        "train_architecture": "lora",
        "lora_rank": 4,
        "lora_alpha": 2,
    }
    bundle = Bundle.open([str(tmp_path / "base.safetensors"), str(tmp_path / "delta" / DELTA)], Registry.builtin())
    engine = Engine(Plan((Lora(),)), bundle)
    engine.set_up()
    inputs = torch.randn(1, 33, 3, 4, 4), torch.tensor([500.0]), torch.randn(1, 5, 64)
    with torch.no_grad():
        expected = unit.networks["dit"](*inputs)
        assert relative_error(engine.model("dit")(*inputs), expected) < 1e-5
        whole = WanDiT(**DIT)
        found = load_file(tmp_path / "delta" / WHOLE)
        whole.load_state_dict({name: found[name] for name in whole.state_dict()})
        assert relative_error(whole(*inputs), expected) < 1e-5
    adapter = unit.networks["audio_adapter"].state_dict()
    assert all(found[name].equal(value) for name, value in adapter.items())


def test_whole_networks_are_saved_whole(tmp_path: Path) -> None:
    unit = trained(weights=["dit.*", "audio_adapter.*"])
    learnt = changed(unit)
    unit.save(tmp_path, learnt, merged=False, dtype=torch.float16)
    assert {path.name for path in tmp_path.iterdir()} == {WHOLE}
    bundle = Bundle.open([str(tmp_path / WHOLE)], Registry.builtin())
    network: nn.Module = bundle.load("dit", dtype=torch.float32)
    assert all(torch.allclose(value, learnt[f"dit.{name}"], atol=1e-3) for name, value in weights(network).items())


def test_lora_without_peft_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match="needs the package peft: pip install 'omniavatar"):
        trained(lora=LORA)
