from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from omniavatar.checkpoints import Bundle, Registry, UnknownCheckpoint
from omniavatar.checkpoints.loading import load_network
from omniavatar.errors import CheckpointError
from tests.checkpoints.tiny import (
    ADAPTER,
    DIT,
    adapter_state,
    delta_state,
    dit_state,
    tiny_registry,
    write_base,
    write_delta,
    write_safetensors,
    write_table,
)


def test_by_hash(tmp_path: Path) -> None:
    detection = tiny_registry(tmp_path).detect(write_base(tmp_path))
    (component,) = detection.components
    assert (detection.row.name, component.role, component.config) == ("tiny", "dit", DIT)
    assert component.num_params == sum(tensor.numel() for tensor in dit_state().values())


def test_shards_in_a_folder(tmp_path: Path) -> None:
    state = dit_state()
    for number in (0, 1):
        part = {name: state[name] for name in sorted(state)[number::2]}
        write_safetensors(tmp_path / "m" / f"x-0000{number + 1}-of-00002.safetensors", part)
    assert tiny_registry(tmp_path).detect(tmp_path / "m").row.name == "tiny"


def test_the_delta_is_three_components(tmp_path: Path) -> None:
    settings = {"lora_rank": 4, "lora_alpha": 2, "model_config": {"in_dim": 33}}
    detection = Registry.builtin().detect(write_delta(tmp_path, settings))
    by_role = {component.role: component for component in detection.components}
    assert detection.row.name == "OmniAvatar"
    assert by_role["dit"].spec.overlay
    assert by_role["dit"].config == {"in_dim": 33}
    assert set(by_role["dit"].tensors) == {"patch_embedding.weight", "patch_embedding.bias"}
    assert by_role["audio_adapter"].config == ADAPTER
    assert by_role["lora"].constants == {"rank": 4, "alpha": 2}
    assert set(by_role["lora"].tensors) == {
        f"blocks.0.{layer}.lora_{side}.weight" for layer in ("self_attn.q", "ffn.2") for side in "AB"
    }


def test_without_config_json_the_rank_comes_from_the_shapes(tmp_path: Path) -> None:
    detection = Registry.builtin().detect(write_delta(tmp_path))
    lora = next(component for component in detection.components if component.role == "lora")
    assert lora.constants == {"rank": 4, "alpha": 64}


def test_a_whole_transformer_with_audio_layers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_config": {"num_heads": 2}}))
    file = write_safetensors(tmp_path / "full.safetensors", dit_state(in_dim=33) | adapter_state())
    detection = Registry.builtin().detect(file)
    dit, adapter = detection.components
    assert detection.row.name == "OmniAvatar-full"
    assert dit.config == DIT | {"in_dim": 33}
    assert adapter.config == ADAPTER
    assert len(dit.tensors) + len(adapter.tensors) == len(detection.header.tensors)


@pytest.mark.parametrize(
    ("prefix", "down", "up"),
    [
        ("", "lora_A.default", "lora_B.default"),
        ("", "lora_down", "lora_up"),
        ("diffusion_model.", "lora_A", "lora_B"),
        ("base_model.model.", "lora_A", "lora_B"),
    ],
)
def test_lora_files(tmp_path: Path, prefix: str, down: str, up: str) -> None:
    layer = f"{prefix}blocks.0.self_attn.q"
    state = {f"{layer}.{down}.weight": torch.ones(3, 24), f"{layer}.{up}.weight": torch.ones(24, 3)}
    (lora,) = Registry.builtin().detect(write_safetensors(tmp_path / "lora.safetensors", state)).components
    assert (lora.role, set(lora.tensors)) == ("lora", set(state))


@pytest.mark.parametrize(
    ("file", "beside", "settings", "alpha"),
    [
        ("style.safetensors", "config.json", {"train_architecture": "lora", "lora_alpha": 64}, None),
        ("style.safetensors", "adapter_config.json", {"lora_alpha": 8}, None),
        ("adapter_model.safetensors", "adapter_config.json", {"lora_alpha": 8}, 8),
        ("adapter_model.safetensors", "config.json", {"train_architecture": "lora", "lora_alpha": 8}, None),
        ("pytorch_model.safetensors", "config.json", {"train_architecture": "lora", "lora_alpha": 64}, 64),
        ("pytorch_model.safetensors", "config.json", {"lora_alpha": 64}, None),
    ],
)
def test_settings_count_for_the_file_that_they_belong_to(
    tmp_path: Path, file: str, beside: str, settings: dict[str, object], alpha: int | None
) -> None:
    """A stranger's LoRA in the folder of OmniAvatar is not 16 times as strong for it."""
    state = {name: value for name, value in delta_state().items() if ".lora_" in name}
    (tmp_path / beside).write_text(json.dumps(settings))
    (lora,) = Bundle.open([write_safetensors(tmp_path / file, state)], Registry.builtin()).adapters()
    assert lora.settings.get("lora_alpha") == alpha


@pytest.mark.parametrize(
    ("prefixes", "roles"),
    [
        (["audio_"], {"audio_adapter"}),
        (["patch_embedding."], {"dit"}),
        (["audio_", "blocks."], {"audio_adapter", "lora"}),
        (["patch_embedding.", "blocks."], {"dit", "lora"}),
    ],
)
def test_a_part_of_a_delta(tmp_path: Path, prefixes: list[str], roles: set[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"lora_alpha": 2}))
    state = {name: value for name, value in delta_state().items() if name.startswith(tuple(prefixes))}
    detection = Registry.builtin().detect(write_safetensors(tmp_path / "part.safetensors", state))
    by_role = {component.role: component for component in detection.components}
    assert (detection.row.name, detection.row.is_delta, by_role.keys()) == ("OmniAvatar-part", True, roles)
    assert sum(len(component.tensors) for component in by_role.values()) == len(state)
    assert "dit" not in roles or by_role["dit"].config == {"in_dim": 33}
    assert "lora" not in roles or by_role["lora"].constants == {"rank": 4, "alpha": 2}
    assert "audio_adapter" not in roles or by_role["audio_adapter"].config == ADAPTER


def whole_transformer() -> dict[str, torch.Tensor]:
    """One that no hash knows: with the `config.json` for its heads beside it, `Wan`."""
    return dit_state(num_layers=3)


@pytest.mark.parametrize(
    ("prefix", "row", "message"),
    [
        ("patch_embedding.", "OmniAvatar-part", r"give the base model as well; if .* it lacks patch_embedding\.weight"),
        ("head.modulation", "OmniAvatar-part", r"if it should be a whole one, .* it lacks head\.modulation"),
        ("blocks.1.", "Wan", r"lacks \d+ tensors of WanDiT: blocks\.\d"),
        ("time_projection.", "Wan", r"lacks 2 tensors of WanDiT: time_projection"),
        ("text_embedding.", "", r"m\.safetensors looks like Wan, but lacks 'text_embedding\.0\.weight'"),
        ("head.head.", "", r"m\.safetensors looks like Wan, but lacks 'head\.head\.weight'"),
        ("", "", r"m\.safetensors holds no tensors; download it again"),
    ],
)
def test_a_transformer_that_is_not_whole(tmp_path: Path, prefix: str, row: str, message: str) -> None:
    state = {name: value for name, value in whole_transformer().items() if not name.startswith(prefix)}
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": DIT["num_heads"]}))
    file = write_safetensors(tmp_path / "m.safetensors", state)
    with pytest.raises(CheckpointError, match=message) as caught:  # noqa: PT012 - either of them says so
        (detection,) = Registry.builtin().detect_all(file)
        assert detection.row.name == row
        load_network(detection.components)
    assert "\n" not in str(caught.value)


def test_what_was_trained_without_a_patch_embedding_lies_over_a_transformer(tmp_path: Path) -> None:
    trained = {name: value + 1 for name, value in dit_state().items() if name.startswith("blocks.")}
    files = [write_base(tmp_path), write_safetensors(tmp_path / "trained.safetensors", trained)]
    network = Bundle.open(files, tiny_registry(tmp_path)).load("dit")
    assert torch.equal(network.state_dict()["blocks.0.ffn.0.weight"], trained["blocks.0.ffn.0.weight"])
    assert torch.equal(network.state_dict()["head.modulation"], dit_state()["head.modulation"])


def test_a_wav2vec2_folder(tmp_path: Path) -> None:
    folder = tmp_path / "wav2vec2"
    write_safetensors(folder / "model.safetensors", {"wav2vec2.masked_spec_embed": torch.zeros(4)})
    config = {"model_type": "wav2vec2", "hidden_size": 4, "num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(config))
    (component,) = Registry.builtin().detect(folder).components
    assert (component.role, component.folder) == ("audio_encoder", folder)
    assert component.constants == {"feature_dim": 20}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="1 of 2 shards are missing"):
        Registry.builtin().detect(folder)
    (folder / "model-00001-of-00002.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors or pytorch_model\.bin"):
        Registry.builtin().detect(folder)


def test_an_unknown_file_is_compared_with_the_nearest(tmp_path: Path) -> None:
    state = dit_state()
    state["blocks.0.extra"] = state.pop("blocks.0.modulation")
    state["head.head.bias"] = torch.zeros(5)
    registry = tiny_registry(tmp_path)
    with pytest.raises(UnknownCheckpoint) as caught:
        registry.detect(write_base(tmp_path, state))
    text = str(caught.value)
    assert f"nearest is 'tiny', of whose {len(state)} keys {len(state) - 2} match" in text
    assert "missing: blocks.0.modulation" in text
    assert "unexpected: blocks.0.extra" in text
    assert "other shape: head.head.bias 5 (known 64)" in text
    assert "\n" not in text


def test_a_transformer_of_any_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 2}))
    detection = Registry.builtin().detect(write_base(tmp_path))
    (component,) = detection.components
    assert (detection.row.name, component.role, component.config) == ("Wan", "dit", DIT)
    assert component.spec.growable


def test_a_published_model_of_another_width_is_recognised_as_similar(tmp_path: Path) -> None:
    state = dit_state(num_layers=30)
    state["blocks.0.extra"] = torch.zeros(1)
    file = write_base(tmp_path, state)
    with pytest.raises(UnknownCheckpoint, match=r"nearest is 'Wan2.1-T2V-1.3B', of whose 825 keys .* other shape: "):
        Registry.builtin().detect(file)


def test_an_incomplete_delta(tmp_path: Path) -> None:
    state = delta_state()
    del state["audio_proj.proj.weight"]
    state["surprise"] = torch.zeros(1)
    file = write_safetensors(tmp_path / "delta.safetensors", state)
    pattern = "nearest is 'OmniAvatar'.*missing: audio_proj.proj.weight; unexpected: surprise"
    with pytest.raises(UnknownCheckpoint, match=pattern):
        Registry.builtin().detect(file)


def test_a_file_that_resembles_nothing(tmp_path: Path) -> None:
    file = write_safetensors(tmp_path / "x.safetensors", {"unheard.of": torch.zeros(1)})
    with pytest.raises(UnknownCheckpoint, match="resembles none"):
        Registry.builtin().detect(file)


def test_tables_may_not_contradict_each_other(tmp_path: Path) -> None:
    first = write_table(tmp_path / "first.toml")
    for second in (
        write_table(tmp_path / "second.toml", hash="0" * 32),
        write_table(tmp_path / "third.toml", name="b"),
    ):
        with pytest.raises(CheckpointError, match=f"{first} and {second} both have a row with the (name|hash)"):
            Registry([first, second])


def test_two_pattern_rows_for_one_file(tmp_path: Path) -> None:
    rows = [f"[[checkpoint]]\nname = '{name}'\nmatch = ['a']\n[checkpoint.components.x]\n" for name in "pq"]
    (tmp_path / "t.toml").write_text("".join(rows))
    file = write_safetensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="fits the patterns of 'p' and 'q'"):
        Registry([tmp_path / "t.toml"]).detect(file)


def test_scan(tmp_path: Path) -> None:
    registry = tiny_registry(tmp_path)
    write_base(tmp_path / "models" / "base")
    write_safetensors(tmp_path / "models" / "odd.safetensors", {"odd": torch.zeros(1)})
    (tmp_path / "models" / "broken.pth").write_bytes(b"not a model")
    verdicts = {verdict.path.name: verdict.kind for verdict in registry.scan(tmp_path / "models")}
    assert verdicts == {"base.safetensors": "known", "odd.safetensors": "unknown", "broken.pth": "damaged"}


def test_a_table_that_is_left_out_leaves_nothing_behind(tmp_path: Path) -> None:
    table = write_table(tmp_path / "first.toml")
    table.write_text(table.read_text() + "\n[[tuned]]\nhsh = 'x'\n")
    left_out = []
    registry = Registry([table], lambda table, error: left_out.append(table))
    assert (left_out, registry.rows) == ([table], ())


def test_numbers_that_make_no_network_are_one_line(tmp_path: Path) -> None:
    detection = Registry.builtin().detect(write_base(tmp_path))  # heads of 128 channels, since no config.json tells
    with pytest.raises(CheckpointError, match=r"cannot be built with the numbers found for it \(.*config.json"):
        load_network(detection.components)
