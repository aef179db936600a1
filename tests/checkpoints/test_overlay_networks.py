"""Overlays that name a network: a file with further modules for a base that another file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omniavatar.checkpoints import Bundle, Registry
from omniavatar.checkpoints.loading import parameter_names
from omniavatar.checkpoints.tables import check_networks
from omniavatar.errors import CheckpointError
from omniavatar.estimate.networks import RehearsalModels
from omniavatar.models.attention import AttentionSlot
from omniavatar.models.wan_dit import WanBlock, WanDiT
from omniavatar.resources import registry_tables
from tests.checkpoints.tiny import DIT, dit_state, write_base, write_safetensors, write_table

WIDTH = 5


class EarBlock(WanBlock):
    """A block with a layer more."""

    def __init__(self, **numbers: Any) -> None:
        super().__init__(**numbers)
        self.ear = nn.Linear(WIDTH, numbers["dim"])


class EarDiT(WanDiT):
    """A transformer of such blocks, with a number of its own."""

    block_class = EarBlock

    def __init__(self, *, ears: int = 1, **numbers: Any) -> None:
        super().__init__(**numbers)
        self.ears = ears


class Other(nn.Module):
    """No transformer."""


def delta(seed: int = 5) -> dict[str, Tensor]:
    """The weights that an EarDiT has and a WanDiT has not, and a changed one."""
    torch.manual_seed(seed)
    whole = EarDiT(**DIT).state_dict()
    return {name: whole[name] for name in whole if ".ear." in name or name == "head.head.weight"}


def table(path: Path, network: str | None = f"{__name__}:EarDiT", **fields: Any) -> Path:
    """A table with a row for the delta."""
    lines = ["[[checkpoint]]", 'name = "ears"', 'match = ["blocks.*.ear.weight"]', "[checkpoint.components.dit]"]
    spec = {"overlay": True, **({} if network is None else {"network": network}), **fields}
    lines += [f"{key} = {json.dumps(value)}" for key, value in spec.items()]
    path.write_text("\n".join([*lines, "[checkpoint.components.dit.config]", "ears = 2"]) + "\n")
    return path


def bundle(folder: Path, state: dict[str, Tensor] | None = None, **row: Any) -> Bundle:
    """A base and the delta over it."""
    tables = [*registry_tables(), write_table(folder / "base.toml"), table(folder / "ears.toml", **row)]
    files = [write_safetensors(folder / "ears.safetensors", state or delta()), write_base(folder)]
    return Bundle.open(files, Registry(tables))


def test_the_network_is_the_overlays_with_the_numbers_and_weights_of_both(tmp_path: Path) -> None:
    models = bundle(tmp_path)
    network = models.load("dit", dtype=torch.float32)
    assert isinstance(network, EarDiT)
    assert network.ears == 2
    assert models.config("dit") == {**DIT, "ears": 2}
    expected = {**dit_state(), **delta()}
    assert network.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in network.state_dict().items())


def test_an_engines_attention_reaches_a_class_that_hands_its_arguments_on(tmp_path: Path) -> None:
    slot, models = AttentionSlot(), bundle(tmp_path)
    networks: list[Any] = [models.load("dit", attention=slot)]
    networks.append(models.skeleton("dit", dtype=torch.float32, attention=slot))
    assert all(block.self_attn.attention is slot for network in networks for block in network.blocks)
    assert parameter_names(EarDiT) >= {"ears", "dim", "attention"}
    assert parameter_names(lambda a, **more: a) == {"a"}


def test_skeletons_estimates_and_blocks_follow(tmp_path: Path) -> None:
    models = bundle(tmp_path)
    assert isinstance(models.skeleton("dit", dtype=torch.float32), EarDiT)
    rehearsed = RehearsalModels(models, {}).load("dit", device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(rehearsed, EarDiT)
    without: Any = models.load("dit", blocks=False)
    target = torch.empty_like(without.blocks[1].ear.weight, device="cpu")
    models.read_into("dit", {"blocks.1.ear.weight": target})
    assert target.equal(delta()["blocks.1.ear.weight"])


def test_the_overlay_is_no_second_base_and_part_of_the_identity(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    models, other = bundle(tmp_path), bundle(tmp_path / "other", delta(seed=6))
    assert [component.row.name for component in models.components("dit")] == ["tiny", "ears"]
    assert len({models.identity("dit"), other.identity("dit"), Bundle(models.detections[1:]).identity("dit")}) == 3


@pytest.mark.parametrize(
    ("row", "state", "reason"),
    [
        (
            {"network": f"{__name__}:Other"},
            None,
            r"\(ears\) makes a Other .* and .*base.safetensors is a",
        ),
        ({"network": f"{__name__}:Nothing"}, None, "Nothing cannot be imported"),
        ({"network": None}, None, "WanDiT cannot be built from its checkpoint table: .* 'ears'"),
        ({}, {name: weight for name, weight in delta().items() if "blocks.0" not in name}, "lacks 2 tensors of EarDiT"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, row: dict[str, Any], state: dict[str, Tensor] | None, reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        bundle(tmp_path, state, **row).load("dit")
    assert "\n" not in str(caught.value)


def test_modules_of_the_overlay_may_be_left_out_by_its_row(tmp_path: Path) -> None:
    state = {name: weight for name, weight in delta().items() if "blocks.0" not in name}
    network: Any = bundle(tmp_path, state, optional=["blocks.*.ear.*"]).load("dit")
    assert not network.blocks[0].ear.weight.any()


def test_an_overlay_alone_is_no_network(tmp_path: Path) -> None:
    file = write_safetensors(tmp_path / "ears.safetensors", delta())
    models = Bundle.open([file], Registry([table(tmp_path / "ears.toml")]))
    for ask in (models.load, lambda role: models.skeleton(role, dtype=torch.float32)):
        with pytest.raises(CheckpointError, match="only an overlay on the role 'dit'"):
            ask("dit")


def test_tables_given_by_hand_name_no_code_for_overlays_either(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="only packages that are installed can name code"):
        check_networks(table(tmp_path / "ears.toml", network="os:system"), frozenset({"omniavatar.models.wan_dit"}))
