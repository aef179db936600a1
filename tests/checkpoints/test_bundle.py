from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from omniavatar.checkpoints import Bundle, Registry
from omniavatar.errors import CheckpointError
from tests.checkpoints.tiny import (
    DIT,
    adapter_state,
    delta_state,
    dit_state,
    tiny_registry,
    write_base,
    write_delta,
    write_safetensors,
)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return tiny_registry(tmp_path)


def test_base_and_delta(tmp_path: Path, registry: Registry) -> None:
    delta = write_delta(tmp_path / "delta", {"lora_rank": 4, "lora_alpha": 2})
    models = Bundle.open([delta.parent, write_base(tmp_path / "base")], registry)  # the order does not matter
    assert models.roles == {"dit", "lora", "audio_adapter"}
    assert "dit" in models
    assert "vae" not in models
    assert models.config("dit") == DIT | {"in_dim": 33}
    patch = models.load("dit", dtype=torch.float32).state_dict()["patch_embedding.weight"]
    assert torch.equal(patch, delta_state()["patch_embedding.weight"])
    projection = models.load("audio_adapter", device=torch.device("cpu")).state_dict()["audio_proj.proj.weight"]
    assert torch.equal(projection, adapter_state()["audio_proj.proj.weight"])


def test_adapters_fit_the_lora_reader(tmp_path: Path, registry: Registry) -> None:
    delta = write_delta(tmp_path / "delta", {"lora_rank": 4, "lora_alpha": 2})
    layer = "diffusion_model.blocks.0.ffn.0"
    state = {f"{layer}.lora_down.weight": torch.ones(3, 24), f"{layer}.lora_up.weight": torch.ones(32, 3)}
    extra = write_safetensors(tmp_path / "extra" / "style.safetensors", state)
    first, second = Bundle.open([delta, extra], registry).adapters()
    assert (first.name, first.settings, first.is_own) == (str(delta), {"lora_alpha": 2}, True)
    assert [layer.scale for layer in first.read().layers] == [0.5, 0.5]
    assert (second.settings, second.is_own) == ({}, False)
    assert list(second.read().fit({"blocks.0.ffn.0.weight": (32, 24)}).changes) == ["blocks.0.ffn.0.weight"]
    with pytest.raises(CheckpointError, match=r"has the shape \[32, 24\]"):
        second.read(values=False).fit({"blocks.0.ffn.0.weight": (24, 32)})
    assert Bundle([]).adapters() == ()


def test_two_bases_for_a_role(tmp_path: Path, registry: Registry) -> None:
    files = [write_base(tmp_path / "a"), write_base(tmp_path / "b")]
    with pytest.raises(CheckpointError, match=f"two models for the role 'dit': {files[0]}.* and {files[1]}"):
        Bundle.open(files, registry)


def test_of_several_deltas_the_last_brings_the_audio_layers(tmp_path: Path, registry: Registry) -> None:
    """So what was trained on top of a delta is given behind it; LoRA and overlays of both count."""
    base, first = write_base(tmp_path / "base"), write_delta(tmp_path / "first")
    second = write_delta(tmp_path / "second")
    state = torch.load(second, weights_only=True)
    torch.save({name: value + 1 for name, value in state.items()}, second)
    models = Bundle.open([base, first, second], registry)
    assert len(models.adapters()) == 2
    for role, name, wanted in (
        ("audio_adapter", "audio_proj.proj.weight", adapter_state()["audio_proj.proj.weight"] + 1),
        ("dit", "patch_embedding.weight", delta_state()["patch_embedding.weight"] + 1),
    ):
        torch.testing.assert_close(models.load(role, dtype=torch.float32).state_dict()[name], wanted)


def test_lora_files_are_no_network(tmp_path: Path, registry: Registry) -> None:
    """Whoever goes through the networks of all roles does not come upon them."""
    models = Bundle.open([write_base(tmp_path / "base"), write_delta(tmp_path / "delta")], registry)
    assert "lora" in models.roles
    assert "lora" not in models


def test_a_second_transformer_and_its_lora_in_a_role_of_their_own(tmp_path: Path, registry: Registry) -> None:
    base = write_base(tmp_path / "a")
    delta = write_delta(tmp_path / "delta", {"lora_rank": 4, "lora_alpha": 2})
    models = Bundle.open([base, base, delta], registry, [None, "dit2", "dit2"])
    assert models.config("dit") == DIT
    assert models.config("dit2") == DIT | {"in_dim": 33}
    assert [adapter.target for adapter in models.adapters()] == ["dit2"]


def test_a_role_that_nobody_provides(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(CheckpointError, match="has the role 'dti'; did you mean 'dit'"):
        Bundle.open([write_base(tmp_path)], registry).components("dti")


def test_places(tmp_path: Path, registry: Registry) -> None:
    models = Bundle.open([write_base(tmp_path / "base")], registry)
    assert models.beside("dit", "google/umt5-xxl") == tmp_path / "base" / "google" / "umt5-xxl"
    assert models.beside("dit", Path("/elsewhere")) == Path("/elsewhere")


def test_nothing_is_read_before_it_is_loaded(tmp_path: Path, registry: Registry) -> None:
    file = write_base(tmp_path / "base")
    models = Bundle.open([file], registry)
    file.unlink()
    assert models.config("dit") == DIT
    with pytest.raises(CheckpointError, match="cannot be read"):
        models.load("dit")


def test_a_wav2vec2_folder_is_loaded_by_its_network(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    torch.manual_seed(0)
    network = transformers.Wav2Vec2Model(config)
    write_safetensors(tmp_path / "model.safetensors", dict(network.state_dict()))
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    models = Bundle.open([tmp_path], Registry.builtin())
    assert models.constants("audio_encoder") == {"feature_dim": 64}
    encoder = models.load("audio_encoder", dtype=torch.bfloat16, attention=None)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}  # as its row says
    loaded = [
        parameter for name, parameter in encoder.named_parameters() if name.endswith("layers.1.final_layer_norm.weight")
    ]
    assert torch.equal(loaded[0], network.encoder.layers[1].final_layer_norm.weight)


def test_a_whole_transformer_with_audio_layers_is_loaded_as_two_networks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_config": {"num_heads": 2}}))
    write_safetensors(tmp_path / "full.safetensors", dit_state(in_dim=33) | adapter_state())
    models = Bundle.open([tmp_path], Registry.builtin())
    assert models.roles == {"dit", "audio_adapter"}
    assert len(models.load("dit").state_dict()) == len(dit_state())
    assert len(models.load("audio_adapter").state_dict()) == len(adapter_state())


def test_networks_that_take_the_place_of_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the settings of their row; LoRA and what else lay in those files stays."""
    old = write_safetensors(tmp_path / "old.safetensors", dit_state(in_dim=33) | adapter_state())
    new = write_safetensors(tmp_path / "new" / "new.safetensors", dit_state(1, in_dim=33))
    lora = {
        f"blocks.0.self_attn.q.lora_{side}.weight": torch.ones(size) for side, size in (("A", (3, 24)), ("B", (24, 3)))
    }
    files = [old, write_safetensors(tmp_path / "lora.safetensors", lora), new]
    bundle = Bundle.open(files, Registry.builtin(), instead=[False, False, True])
    assert [component.files for component in bundle.components("dit")] == [(new,)]
    assert [component.files for component in bundle.components("audio_adapter")] == [(old,)]
    assert len(bundle.adapters()) == 1
    assert f"{new} takes the place of {old} as 'dit'" in caplog.text
    with pytest.raises(CheckpointError, match="two models for the role 'dit'"):
        Bundle.open([old, new], Registry.builtin(), instead=[True, True])
