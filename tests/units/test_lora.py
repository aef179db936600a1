"""LoRA: merged into the transformer once, all of it or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import CheckpointError
from omniavatar.testing import GivenLora, GivenModels
from omniavatar.units import Lora
from tests.models.networks import noise, randomized
from tests.scenes import fake_engine

State = dict[str, Tensor]
DOWN, UP = noise(2, 6, seed=1), noise(5, 2, seed=2)


class WithFiles(GivenModels):
    """A transformer of two layers and some LoRA files."""

    def __init__(self, *files: GivenLora) -> None:
        self.dit: Any = randomized(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 6)))
        super().__init__(dit=self.dit)
        self.files = files

    def adapters(self) -> Sequence[Any]:
        return self.files


def pair(layer: str, down: Tensor = DOWN, up: Tensor = UP, **extra: Tensor) -> State:
    return {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up, **extra}


def merged(*files: GivenLora, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[WithFiles, State]:
    """The models after the set-up, and the weights from before."""
    models = WithFiles(*files)
    before = {name: value.clone() for name, value in models.dit.state_dict().items()}
    fake_engine([Lora(scale=scale)], models=models, dtype=dtype).set_up()
    return models, before


@pytest.mark.parametrize(
    ("alpha", "scale", "factor"), [(None, 1.0, 1.0), (1.0, 1.0, 0.5), (8.0, 0.25, 1.0), (2.0, -2.0, -2.0)]
)
def test_the_merged_layer_computes_the_unmerged_formula(alpha: float | None, scale: float, factor: float) -> None:
    """y = W x + b + scale alpha / rank B A x."""
    models, before = merged(GivenLora(pair("0"), alpha=alpha), scale=scale)
    x = noise(3, 6, seed=3)
    expected = functional.linear(x, before["0.weight"], before["0.bias"]) + factor * (x @ DOWN.T) @ UP.T
    torch.testing.assert_close(models.dit[0](x), expected, atol=1e-5, rtol=1e-5)
    assert models.dit[1].weight.equal(before["1.weight"])


def test_an_alpha_in_the_file_is_that_of_its_layer() -> None:
    state = {**pair("0", **{"0.alpha": torch.tensor(1.0)}), **pair("1", noise(2, 5, seed=4), noise(6, 2, seed=5))}
    models, before = merged(GivenLora(state, alpha=4.0))
    torch.testing.assert_close(models.dit[0].weight - before["0.weight"], 0.5 * UP @ DOWN)
    change = noise(6, 2, seed=5) @ noise(2, 5, seed=4)
    torch.testing.assert_close(models.dit[1].weight - before["1.weight"], 2.0 * change)


def test_several_files_add_up() -> None:
    models, before = merged(GivenLora(pair("0")), GivenLora(pair("0", up=3 * UP)))
    torch.testing.assert_close(models.dit[0].weight, before["0.weight"] + 4 * UP @ DOWN, atol=1e-5, rtol=1e-5)


def test_scale_0_and_no_files_change_nothing() -> None:
    for models, before in (merged(GivenLora(pair("0")), scale=0), merged()):
        assert all(value.equal(before[name]) for name, value in models.dit.state_dict().items())


def test_the_sum_is_made_in_float32_whatever_the_type_of_the_weights() -> None:
    models, before = merged(GivenLora(pair("0")), dtype=torch.bfloat16)
    weight = before["0.weight"].bfloat16().float()
    assert models.dit[0].weight.dtype == torch.bfloat16
    assert models.dit[0].weight.equal((weight + UP @ DOWN).bfloat16())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {**pair("0"), **pair("1")},
            "the change of the layer '1' has the shape [5, 6], the network's weight '1.weight' has [6, 5]; "
            "the LoRA is made for another base model",
        ),
        (
            {**pair("0"), "1.lora_A.weight": DOWN},
            "the layer '1' has no lora_up (lora_B), only '1.lora_A.weight'; the file is incomplete",
        ),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(state: State, message: str) -> None:
    models = WithFiles(GivenLora(state, name="mine.safetensors"))
    before = {name: value.clone() for name, value in models.dit.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        fake_engine([Lora()], models=models).set_up()
    assert str(caught.value) == f"LoRA mine.safetensors: {message}"
    assert all(value.equal(before[name]) for name, value in models.dit.state_dict().items())


def test_a_file_changes_the_transformer_that_it_is_for() -> None:
    models = WithFiles(GivenLora(pair("0"), target="dit2"))
    models.networks["dit2"] = randomized(nn.Sequential(nn.Linear(6, 5)))
    before = {role: network.state_dict()["0.weight"].clone() for role, network in models.networks.items()}
    fake_engine([Lora()], models=models).set_up()
    assert models.networks["dit"].state_dict()["0.weight"].equal(before["dit"])
    torch.testing.assert_close(models.networks["dit2"].state_dict()["0.weight"], before["dit2"] + UP @ DOWN)


class Experts(PipelineUnit):
    """Two transformers take turns, and a text encoder works."""

    name = "experts"
    experts = ("dit", "dit2")
    roles = ("dit", "dit2", "text_encoder")


def with_three(*files: GivenLora) -> dict[str, Tensor]:
    """How much the first layer of each network changes."""
    models = WithFiles(*files)
    models.networks |= {role: randomized(nn.Sequential(nn.Linear(6, 5))) for role in ("dit2", "text_encoder")}
    before = {role: network.state_dict()["0.weight"].clone() for role, network in models.networks.items()}
    fake_engine([Experts(), Lora()], models=models).set_up()
    return {role: network.state_dict()["0.weight"] - before[role] for role, network in models.networks.items()}


OF_THREE = {**pair("0"), **pair("transformer_2.0", up=2 * UP), **pair("text_encoder.0", up=3 * UP)}


def test_a_file_of_several_networks_changes_each_as_it_says() -> None:
    for role, times in {"dit": 1, "dit2": 2, "text_encoder": 3}.items():
        torch.testing.assert_close(with_three(GivenLora(OF_THREE))[role], times * UP @ DOWN, atol=1e-5, rtol=1e-5)


def test_each_network_has_a_strength_of_its_own() -> None:
    wanted = {"dit": 0.5, "dit2": -1.0, "text_encoder": 0.25}
    files = (GivenLora(OF_THREE, role, target=role, is_named=True, strength=some) for role, some in wanted.items())
    changed = with_three(*files)
    for (role, strength), times in zip(wanted.items(), (1, 2, 3), strict=True):
        torch.testing.assert_close(changed[role], strength * times * UP @ DOWN, atol=1e-5, rtol=1e-5)
