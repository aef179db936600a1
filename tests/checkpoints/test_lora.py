"""Every dialect of LoRA files against the public set, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from omniavatar.checkpoints.lora import Fit, LeftOut, Lora, Used, read_lora
from omniavatar.checkpoints.lora_names import MAIN, SECOND, TEXT, is_lora, parsed, parts_in, places
from omniavatar.errors import CheckpointError
from omniavatar.plugins import discover
from tests.models.networks import noise

PUBLIC = Path(__file__).parents[1] / "formats" / "public"
CASES: list[dict[str, Any]] = json.loads((PUBLIC / "cases.json").read_text(encoding="utf-8"))["cases"]
Tensors = dict[str, Tensor]


def cases(kind: str, prefix: str = "") -> list[Any]:
    """The cases of a kind."""
    chosen = [case for case in CASES if case["kind"] == kind and case["name"].startswith(prefix)]
    return [pytest.param(case, id=case["name"]) for case in chosen]


def stored(path: Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a safetensors file and what else its header says."""
    with safe_open(path, framework="pt") as content:
        return {name: content.get_tensor(name) for name in content.keys()}, content.metadata() or {}  # noqa: SIM118


def opened(path: Path) -> Lora:
    """A LoRA file, or a folder of peft."""
    settings = json.loads((path / "adapter_config.json").read_text()) if path.is_dir() else {}
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    state, metadata = stored(file)
    return read_lora(state, metadata=metadata, settings=settings, name=str(file))


def base_of(case: Mapping[str, Any]) -> Tensors:
    """The weights that a case goes on, dense."""
    path = PUBLIC / case["base"]
    if path.suffix == ".gguf":
        pytest.importorskip("omniavatar_gguf")
    format_of = discover().registry().formats.of(path)
    header = format_of.read_header(path)
    read = dict(format_of.read(path, header.tensors, "cpu"))
    return {name: value if isinstance(value, Tensor) else value.dense() for name, value in read.items()}


def applied(lora: Lora, weights: Tensors, strength: float = 1.0) -> tuple[Tensors, Fit]:
    fit = lora.fit({name: tuple(value.shape) for name, value in weights.items()})
    changed = dict(weights)
    for name, changes in fit.changes.items():
        for change in changes:
            changed[name] = change.apply(changed[name], strength)
    return changed, fit


@pytest.mark.parametrize("case", cases("lora_dialect"))
def test_a_dialect(case: dict[str, Any]) -> None:
    base = base_of(case)
    weights, fits = {name: value.float() for name, value in base.items()}, {}
    for path, strength in zip(case["files"], case["args"]["strengths"], strict=True):
        weights, fits[path] = applied(opened(PUBLIC / path), weights, strength)
    expected, _ = stored(PUBLIC / case["expected"])
    for name, value in weights.items():
        if name in expected:
            torch.testing.assert_close(value, expected[name].float(), atol=case["tolerance"]["atol"], rtol=0)
        else:
            assert value.equal(base[name].float()), name
    reports = json.loads((PUBLIC / case["keys"]).read_text())
    for file, keys in reports.items():
        fit = fits.get(file) or fits[str(Path(file).parent)]
        assert fit.report.keys() == keys.keys()
        for key, entry in keys.items():
            found = fit.report[key]
            assert isinstance(found, LeftOut) if "left_out" in entry else found == Used(entry["to"]), key
    if "expected_rounded" in case:
        rounded, _ = stored(PUBLIC / case["expected_rounded"])
        assert all(weights[name].bfloat16().equal(value) for name, value in rounded.items())


SAYS = {
    "lora_other_width": "layer 'blocks.0.self_attn.q' has the shape [32, 32], the network's weight",
    "lora_some_do_not_fit": "layer 'blocks.1.ffn.0' has the shape [48, 24]",
    "lora_no_up": "the layer 'diffusion_model.blocks.0.self_attn.q' has no lora_up (lora_B)",
    "lora_no_down": "the layer 'diffusion_model.blocks.0.self_attn.q' has no lora_down (lora_A)",
    "lora_ranks_differ": "has two ranks: 3 in",
    "lora_for_flux": "none of its 6 keys names a layer of this network, such as 'transformer.single_transformer_blocks",
    "lora_for_sdxl": "none of its 6 keys names a layer of this network, such as 'lora_unet_down_blocks",
    "lora_nan": "the tensor 'diffusion_model.blocks.0.self_attn.q.lora_down.weight' holds values that are no finite",
    "lora_alpha_vector": "the alpha 'diffusion_model.blocks.0.self_attn.q.alpha' is no single number",
    "lora_alpha_nan": "the alpha 'diffusion_model.blocks.0.self_attn.q.alpha' is no finite number",
    "lora_two_names_one_layer": "both mean the layer 'blocks.0.self_attn.q'",
    "lora_oft": "OFT is not supported ('diffusion_model.blocks.0.self_attn.q.oft_blocks')",
    "lora_diff_shape": "has the shape [1, 5, 24], the network's weight 'blocks.0.modulation' has [1, 6, 24]",
    "lora_empty": "the file holds no tensors",
}


@pytest.mark.parametrize("case", cases("broken", "lora_"))
def test_a_broken_one(case: dict[str, Any]) -> None:
    path, base = PUBLIC / case["files"][0], base_of(case)
    if case["name"] == "lora_unknown_key_beside_good":
        _, fit = applied(opened(path), base)
        assert fit.report["some.metadata.tensor"] == LeftOut("no known kind of change")
        assert (fit.used, len(fit.changes)) == (2, 1)
        return
    with pytest.raises(CheckpointError) as caught:
        opened(path).fit({name: tuple(value.shape) for name, value in base.items()})
    message = str(caught.value)
    assert message.startswith(f"LoRA {path}: ")
    assert SAYS[case["name"]] in message
    assert "\n" not in message


# Single rules


def pair(extra: Mapping[str, Tensor] | None = None, layer: str = "0") -> Tensors:
    down, up = noise(2, 6, seed=1), noise(5, 2, seed=2)
    return {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up, **(extra or {})}


def weights() -> Tensors:
    return {"0.weight": noise(5, 6, seed=3), "0.bias": noise(5, seed=4)}


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 1.0),
        ({"r": 2, "lora_alpha": 8}, 4.0),
        ({"r": 2, "lora_alpha": 8, "use_rslora": True}, 8 / 2**0.5),
        ({"r": 4, "lora_alpha": 8, "rank_pattern": {"0": 2}, "alpha_pattern": {"0": 3}}, 1.5),
        ({"lora_alpha": 8, "alpha_pattern": {"x.0": 3, "^1": 5}}, 4.0),
    ],
)
def test_what_the_settings_of_peft_say(settings: dict[str, Any], scale: float) -> None:
    (layer,) = read_lora(pair(), settings=settings).layers
    assert layer.scale == pytest.approx(scale)


def test_an_alpha_in_the_file_counts_before_the_settings() -> None:
    (layer,) = read_lora(pair({"0.alpha": torch.tensor([1.0])}), settings={"lora_alpha": 8}).layers
    assert layer.scale == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_alpha": "8"}, "lora_alpha = '8', which is no number"),
        ({"alpha_pattern": [1]}, r"alpha_pattern = \[1\], which is no mapping"),
        ({"rank_pattern": {"(a+)+": 1}}, r"rank_pattern has '\(a\+\)\+'"),
    ],
)
def test_settings_that_are_not_understood(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_lora(pair(), settings=settings)


def test_a_header_of_diffusers_that_is_no_json() -> None:
    with pytest.raises(CheckpointError, match=r"lora_adapter_metadata is not readable JSON \(JSONDecodeError"):
        read_lora(pair(), metadata={"lora_adapter_metadata": "{"})


def test_strength_0_changes_nothing_even_where_a_whole_weight_is_given() -> None:
    before = weights()
    state = pair({"0.dora_scale": noise(5, 1), "0.set_weight": noise(5, 6), "0.diff_b": noise(5)})
    after, _ = applied(read_lora(state), before, strength=0.0)
    assert all(after[name].equal(value) for name, value in before.items())


def test_the_bias_beside_a_pair_of_peft_has_its_scale() -> None:
    bias = noise(5, seed=8)
    after, fit = applied(read_lora(pair({"0.lora_B.bias": bias}), settings={"lora_alpha": 8}), weights())
    torch.testing.assert_close(after["0.bias"], weights()["0.bias"] + 4 * bias)
    assert fit.report["0.lora_B.bias"] == Used("0.bias")


def test_a_header_alone_tells_what_fits() -> None:
    state = {name: torch.empty(value.shape, device="meta") for name, value in pair({"9.diff_b": noise(5)}).items()}
    fit = read_lora(state).fit({name: tuple(value.shape) for name, value in weights().items()})
    assert str(fit) == "2 of 3 tensors used; 1 left out: this network has no layer of this name"


def test_what_is_left_out_is_summed_up_by_reason() -> None:
    image = {"blocks.0.cross_attn.k_img.diff_b": noise(5), "lora_te1_text_model_x.alpha": noise(1)}
    state = {**pair(layer="diffusion_model.blocks.0.x"), **image}
    network = {f"blocks.0.x.{name.partition('.')[2]}": tuple(value.shape) for name, value in weights().items()}
    reasons = read_lora(state).fit(network).reasons
    assert sorted(reasons) == [
        "image branch: this network has no layer of this name",
        "text encoder: there is none that works here",
    ]


# Files for several networks

OF_T5 = "encoder.block.0.layer.0.SelfAttention.q"
UNDERSCORED_T5 = OF_T5.replace(".", "_")


@pytest.mark.parametrize(
    "stem",
    [
        *(
            f"{start}{OF_T5}"
            for start in ("text_encoder.", "text_encoders.umt5xxl.transformer.", "base_model.model.", "")
        ),
        *(f"{start}{UNDERSCORED_T5}" for start in ("lora_te_", "lora_te1_", "lora_text_encoder_", "lycoris_")),
        *("text_encoder.blocks.0.attn.q", "lora_te1_blocks_0_attn_q"),
    ],
)
def test_a_layer_of_the_text_encoder_under_every_name(stem: str) -> None:
    lora = read_lora(pair(layer=stem))
    assert parts_in([f"{stem}.alpha"]) == {TEXT}
    fit = lora.fit({"blocks.0.attn.q.weight": (5, 6)}, part=TEXT)
    assert list(fit.changes) == ["blocks.0.attn.q.weight"]
    with pytest.raises(CheckpointError, match="text encoder: there is none that works here"):
        lora.fit({"blocks.0.attn.q.weight": (5, 6)})


T5_LAYERS = {
    "shared": "token_embedding",
    "encoder.block.3.layer.0.SelfAttention.relative_attention_bias": "blocks.3.pos_embedding.embedding",
    "encoder.block.3.layer.0.layer_norm": "blocks.3.norm1",
    "encoder.block.3.layer.1.layer_norm": "blocks.3.norm2",
    "encoder.block.3.layer.1.DenseReluDense.wi_0": "blocks.3.ffn.gate.0",
    "encoder.block.3.layer.1.DenseReluDense.wi_1": "blocks.3.ffn.fc1",
    "encoder.block.3.layer.1.DenseReluDense.wo": "blocks.3.ffn.fc2",
    "encoder.final_layer_norm": "norm",
}


@pytest.mark.parametrize(("name", "official"), T5_LAYERS.items())
def test_every_kind_of_layer_of_the_text_encoder(name: str, official: str) -> None:
    for stem in (f"text_encoder.{name}", f"lora_te_{name.replace('.', '_')}"):
        fit = read_lora({f"{stem}.diff": noise(4)}).fit({f"{official}.weight": (4,)}, part=TEXT)
        assert fit.report == {f"{stem}.diff": Used(f"{official}.weight")}


@pytest.mark.parametrize("start", ["transformer_2.", "pipe.dit2.", "model.transformer_2.", "low_noise_model."])
def test_names_of_a_second_transformer(start: str) -> None:
    state = {**pair(layer="blocks.0.x"), **pair(layer=f"{start}blocks.0.x")}
    shapes = {"blocks.0.x.weight": (5, 6)}
    first, second = (read_lora(state).fit(shapes, partial=True, part=part) for part in (MAIN, SECOND))
    assert (first.used, second.used) == (2, 2)
    assert str(first) == "2 of 4 tensors used; 2 left out: second transformer: there is none that works here"
    assert str(first.beside(second)) == "4 of 4 tensors used"
    assert str(second.beside(first)) == "4 of 4 tensors used"


ALL_PARTS = frozenset({MAIN, SECOND, TEXT})


@pytest.mark.parametrize(
    ("parts", "target", "is_named", "found"),
    [
        (ALL_PARTS, "dit", False, {"dit": MAIN, "dit2": SECOND, "text_encoder": TEXT}),
        (ALL_PARTS, "dit", True, {"dit": MAIN}),
        (ALL_PARTS, "dit2", True, {"dit2": SECOND}),
        ({MAIN}, "dit2", True, {"dit2": MAIN}),
        (ALL_PARTS, "text_encoder", True, {"text_encoder": TEXT}),
        ({SECOND}, "dit", False, {"dit2": SECOND}),
        ({TEXT}, "dit", False, {"text_encoder": TEXT}),
    ],
)
def test_which_networks_a_file_changes(parts: set[str], target: str, is_named: bool, found: dict[str, str]) -> None:
    assert places(parts, target, ("dit", "dit2"), is_named=is_named) == found
    if not is_named and SECOND in parts and len(parts) > 1:
        assert "dit2" not in places(parts, target, ("dit",), is_named=False)


def test_diffusers_says_ranks_of_each_network() -> None:
    numbers = {"transformer.lora_alpha": 2, "transformer_2.lora_alpha": 4, "text_encoder.lora_alpha": 8}
    layers = ("transformer.blocks.0.x", "transformer_2.blocks.0.x", f"text_encoder.{OF_T5}")
    state = {name: value for layer in layers for name, value in pair(layer=layer).items()}
    lora = read_lora(state, metadata={"lora_adapter_metadata": json.dumps(numbers)})
    assert [layer.scale for layer in lora.layers] == [1.0, 2.0, 4.0]


def test_a_bare_file_of_peft_says_that_its_scale_is_a_guess() -> None:
    state = {f"base_model.model.{name}": value for name, value in pair().items()}
    assert "it says no alpha, so its scale is 1" in read_lora(state).notes[0]
    assert read_lora(state, settings={"lora_alpha": 4}).notes == ()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"x.weight": noise(2)}, "none of its 1 tensors is part of a LoRA, such as 'x.weight'"),
        ({"0.lokr_w1": noise(2, 2)}, "the layer '0' has no lokr_w2_a"),
        ({"0.hada_w1_a": noise(2, 2)}, "the layer '0' has no hada_w1_b"),
        ({**pair(), "0.lokr_w1": noise(2, 2), "0.lokr_w2": noise(2, 2)}, "the layer '0' has both lokr and lora"),
        ({**pair(), "0.lora_up.weight": noise(5, 2)}, "'0.lora_B.weight' and '0.lora_up.weight' both mean"),
        ({**pair(), "0.lora_mid.weight": noise(2, 2)}, "Tucker decomposition"),
        ({**pair(), "0.reshape_weight": torch.tensor([10**9, 2])}, "asks for the shape"),
        ({"0.lora_A.weight": noise(2), "0.lora_B.weight": noise(5, 2)}, "the pair of '0' has the shapes"),
        (pair({"0.alpha": torch.tensor(True)}), "the tensor '0.alpha' has bool numbers without a scale"),
        ({"0.diff": torch.ones(5, 6, dtype=torch.int8)}, "the tensor '0.diff' has int8 numbers without a scale"),
        ({"0.diff": torch.ones(5, 6, dtype=torch.complex64)}, "the tensor '0.diff' has complex64 numbers"),
        ({"0.lora_A.weight": noise(0, 6), "0.lora_B.weight": noise(5, 0)}, "the tensor '0.lora_A.weight' is empty"),
        (pair({"0.reshape_weight": torch.tensor([5.5, 6])}), "is no list of whole numbers"),
    ],
)
def test_what_is_refused(state: Tensors, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_lora(state, name="x")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (pair({"0.dora_scale": noise(7, 1)}), r"the magnitude \(DoRA\) of the layer '0' has the shape \[7, 1\]"),
        (pair({"0.lora_B.bias": noise(3)}), r"the bias delta of the layer '0.bias' has the shape \[3\]"),
        ({"0.diff_m": noise(5), "0.modulation.diff": noise(5)}, "both are the delta of '0.modulation'; remove one"),
    ],
)
def test_what_does_not_fit_is_said(state: Tensors, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_lora(state).fit({"0.weight": (5, 6), "0.bias": (5,), "0.modulation": (5,)})


@pytest.mark.parametrize("start", ["state_dict.", "module.", "model.state_dict.", "lora.", "params_ema.", "network."])
def test_what_pickles_put_around_a_state_dict_is_no_part_of_names(start: str) -> None:
    fit = read_lora(pair(layer=f"{start}diffusion_model.blocks.0.x")).fit({"blocks.0.x.weight": (5, 6)})
    assert fit.used == 2


@pytest.mark.parametrize(
    "settings", [{"lora_alpha": 10**400}, {"lora_alpha": 4, "use_rslora": "no"}, {"alpha_pattern": {"0": "x"}}]
)
def test_numbers_of_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="its settings have"):
        read_lora(pair(), settings=settings)


def test_files_are_told_by_the_endings_of_their_names() -> None:
    for name in (
        "lora_unet_blocks_0_self_attn_q.lora_down.weight",
        "transformer.blocks.0.attn1.to_q.lora_A.weight",
        "blocks.0.self_attn.q.lora_B.style.weight",
        "diffusion_model.blocks.0.diff_m",
        "blocks.0.modulation.diff",
        "lycoris_blocks_0_ffn_0.lokr_w2_b",
        "blocks.0.self_attn.q.oft_blocks",
    ):
        assert is_lora([name, "some.other"]), name
    assert not is_lora(["blocks.0.self_attn.q.weight", "blocks.0.self_attn.q.alpha", "head.modulation"])
    assert parsed("x" * 2000 + ".diff") is None
