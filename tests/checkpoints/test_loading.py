from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from omniavatar.checkpoints import Component, Registry, loading
from omniavatar.checkpoints.loading import build_on_meta, import_network, load_network, portions, read_into
from omniavatar.errors import CheckpointError
from omniavatar.models.attention import sdpa
from tests.checkpoints.tiny import delta_state, dit_state, tiny_registry, write_base, write_delta, write_table


@pytest.fixture
def base(tmp_path: Path) -> Component:
    return tiny_registry(tmp_path).detect(write_base(tmp_path)).components[0]


@pytest.fixture
def overlay(tmp_path: Path) -> Component:
    return next(part for part in Registry.builtin().detect(write_delta(tmp_path)).components if part.role == "dit")


def assert_equal(network: nn.Module, state: dict[str, torch.Tensor]) -> None:
    loaded = network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_values_and_mode(base: Component) -> None:
    network = load_network([base])
    assert_equal(network, dit_state())
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickled(tmp_path: Path, zipped: bool) -> None:
    torch.save({"state_dict": dit_state()}, tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    assert_equal(load_network(tiny_registry(tmp_path).detect(tmp_path / "m.pth").components), dit_state())


def test_dtype(base: Component) -> None:
    network = load_network([base], dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}


def test_the_overlay_wins(base: Component, overlay: Component) -> None:
    network = load_network([base, overlay])
    assert torch.equal(network.state_dict()["patch_embedding.weight"], delta_state()["patch_embedding.weight"])
    assert torch.equal(network.state_dict()["head.head.weight"], dit_state()["head.head.weight"])


def test_an_overlay_alone(overlay: Component) -> None:
    with pytest.raises(CheckpointError, match="only an overlay on the role 'dit'"):
        load_network([overlay])


def test_an_overlay_for_another_base(tmp_path: Path, overlay: Component) -> None:
    file = write_base(tmp_path, dit_state())
    component = tiny_registry(tmp_path).detect(file).components[0]
    with pytest.raises(CheckpointError, match=r"pytorch_model.pt: patch_embedding.weight has .* another base model"):
        load_network([component, overlay], overrides={"in_dim": 32})


def test_growth_is_zero_and_logged(base: Component, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        weight = load_network([base], overrides={"in_dim": 33}).state_dict()["patch_embedding.weight"]
    assert torch.equal(weight[:, :16], dit_state()["patch_embedding.weight"])
    assert not weight[:, 16:].any()
    assert "patch_embedding.weight grows from [24, 16, 1, 2, 2] to [24, 33, 1, 2, 2]" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"num_layers": 7}, r"lacks \d+ tensors of WanDiT: blocks.6.modulation, .* more"),
        ({"num_layers": 5}, r"has \d+ tensors that WanDiT does not know: blocks.5"),
        ({"ffn_dim": 48}, r"blocks.0.ffn.0.bias has the shape \[32\], WanDiT needs \[48\]"),
        ({"in_dim": 8}, r"patch_embedding.weight has the shape"),
        ({"depth": 3}, r"unexpected keyword argument 'depth'"),
    ],
)
def test_strict(base: Component, overrides: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_network([base], overrides=overrides)
    assert "\n" not in str(caught.value)


def test_offered_arguments_reach_the_networks_that_take_them(base: Component) -> None:
    calls: list[int] = []

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls.append(q.shape[1])
        return sdpa(q, k, v)

    network = load_network([base], attention=attention, flavour="unheard of")
    network(torch.zeros(1, 16, 1, 4, 4), torch.zeros(1), torch.zeros(1, 3, 20))
    assert calls == [4] * 6


def test_renamed_files(tmp_path: Path) -> None:
    """The published diffusers names, on a tiny transformer."""
    rules = next(row for row in Registry.builtin().rows if row.name.endswith("Diffusers")).components["dit"]
    state = {rules.file_name(name): tensor for name, tensor in dit_state().items()}
    assert "blocks.0.attn2.to_out.0.weight" in state
    table = write_table(tmp_path / "t.toml", state)
    text = ", ".join(f"{{file = '{rule.file}', network = '{rule.network}'}}" for rule in rules.rename)
    table.write_text(table.read_text().replace("growable", f"rename = [{text}]\ngrowable"))
    assert_equal(load_network(Registry([table]).detect(write_base(tmp_path, state)).components), dit_state())


def test_a_network_that_is_not_installed() -> None:
    with pytest.raises(CheckpointError, match="install the plugin"):
        import_network("omniavatar.models.absent:Network")
    with pytest.raises(CheckpointError, match="cannot be built"):
        build_on_meta("omniavatar.models.wan_dit:WanDiT", {})


# In parts


def test_files_are_read_in_portions(base: Component, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [source.nbytes for source in base.tensors.values()]
    parts = list(portions(base.tensors, 4096))
    assert [name for part in parts for name in part] == list(base.tensors)
    assert len(parts) > sum(sizes) / 4096
    assert all(len(part) == 1 or sum(base.tensors[name].nbytes for name in part) <= 4096 for part in parts)
    monkeypatch.setattr(loading, "PORTION", 4096)
    assert_equal(load_network([base]), dit_state())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickled_files_in_portions(tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PORTION", 4096)
    torch.save(dit_state(), tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    assert_equal(load_network(tiny_registry(tmp_path).detect(tmp_path / "m.pth").components), dit_state())


@pytest.mark.slow
def test_blocks_can_be_left_in_the_file_and_read_later(base: Component, overlay: Component) -> None:
    parts = [base, overlay]
    network: Any = load_network(parts, dtype=torch.bfloat16, blocks=False)
    left = {name for name, weight in network.named_parameters() if weight.is_meta}
    assert left == {name for name in dit_state() if name.startswith("blocks.")}
    assert {weight.dtype for weight in network.parameters()} == {torch.bfloat16}
    targets = {name: torch.full_like(dit_state()[name], 7.0, dtype=torch.bfloat16) for name in left}
    read_into(parts, {**targets, "absent": (absent := torch.ones(2))})
    assert all(torch.equal(targets[name], dit_state()[name].bfloat16()) for name in left)
    assert not absent.any()
