"""Other programs' names: prefixes, wrappers of pickled files, and rules that join, split, turn and rename."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omniavatar.checkpoints import Bundle, Registry
from omniavatar.checkpoints.dialects import Rule
from omniavatar.checkpoints.headers import read_header
from omniavatar.checkpoints.loading import read_tensors
from omniavatar.checkpoints.registry import UnknownCheckpoint
from omniavatar.errors import CheckpointError
from tests.checkpoints.tiny import DIT, dit_state, tiny_registry, write_safetensors

STATE = {
    "q.weight": torch.arange(6.0).view(2, 3),
    "k.weight": torch.arange(6.0, 12.0).view(2, 3),
    "v.weight": torch.arange(12.0, 18.0).view(2, 3),
    "other": torch.arange(2.0),
}


def applied(tmp_path: Path, state: Mapping[str, Tensor], *rules: Rule) -> dict[str, Tensor]:
    """The tensors of a file under the names and in the form that rules give them; one shard a tensor."""
    files = [
        write_safetensors(tmp_path / f"{number}.safetensors", {name: state[name]}) for number, name in enumerate(state)
    ]
    infos = dict(read_header(files).tensors)
    for rule in rules:
        infos = rule.apply(infos)
    tensors = dict(read_tensors(infos, device="cpu", dtype=None))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {n: i.shape for n, i in infos.items()}
    return tensors


def test_parts_in_several_files_are_joined(tmp_path: Path) -> None:
    found = applied(tmp_path, STATE, Rule("{q,k,v}.*", "qkv.*", join=0))
    assert found.keys() == {"qkv.weight", "other"}
    assert torch.equal(found["qkv.weight"], torch.cat([STATE[f"{part}.weight"] for part in "qkv"]))
    assert torch.equal(
        applied(tmp_path, STATE, Rule("{q,k,v}.*", "qkv.*", join=1))["qkv.weight"][:, 3:6], STATE["k.weight"]
    )


def test_split_is_the_opposite_of_join(tmp_path: Path) -> None:
    rules = (Rule("{q,k,v}.*", "qkv.*", join=0), Rule("other", "also"))
    found = applied(tmp_path, {"qkv.weight": torch.arange(18.0).view(6, 3)}, Rule("qkv.*", "{q,k,v}.*", split=0))
    assert sorted(found) == ["k.weight", "q.weight", "v.weight"]
    assert all(torch.equal(found[name], STATE[name]) for name in found)
    assert applied(tmp_path, STATE, *rules).keys() == {"qkv.weight", "also"}


def test_pieces_keep_no_memory_of_the_whole(tmp_path: Path) -> None:
    found = applied(tmp_path, {"qkv": torch.zeros(6, 3)}, Rule("qkv", "{q,k,v}", split=0))
    assert [value.untyped_storage().nbytes() for value in found.values()] == [24, 24, 24]


def test_turned_and_leading(tmp_path: Path) -> None:
    rules = Rule("q.weight", "head", turned=True), Rule("other", "cls", leading=2)
    found = applied(tmp_path, STATE, *rules)
    assert torch.equal(found["head"], STATE["q.weight"].T)
    assert torch.equal(found["cls"], STATE["other"].view(1, 1, 2))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule("{q,x}.*", "qx.*", join=0), r"lacks a part of 'qx\.weight': it has 'q\.weight' but none as x\.\*"),
        (Rule("{q.weight,other}", "both", join=0), "cannot be joined into one weight"),
        (Rule("q.*", "{a,b,c,d}.*", split=0), "does not divide into 4"),
        (Rule("other", "x", turned=True), "expected is a matrix"),
        (Rule("{q,k}.*", "{v,v}.*"), "both mean 'v.weight'"),
    ],
)
def test_what_does_not_fit_a_rule_is_one_line(tmp_path: Path, rule: Rule, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        applied(tmp_path, STATE, rule)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"file": "a.*", "network": "b"}, "both sides need the same"),
        ({"file": "a", "network": "b", "join": 0}, "has no {} that tells parts apart"),
        ({"file": "{a,b}", "network": "{c,d}", "join": 0, "split": 0}, "joins and splits"),
    ],
)
def test_rules_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rule(**fields)


# --- containers


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": dit_state(), "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
        {"model": dit_state(), "optimizer": {"param_groups": [], "state": {1: {"step": torch.zeros(())}}}, "step": 9},
        {"module": {f"model.{name}": value for name, value in dit_state().items()}, "lr": 0.1},
        {"model_state": dit_state(), "ema": dit_state(1)},
        {"generator": dit_state(1), "generator_ema": {f"model.{n}": v for n, v in dit_state().items()}},
        {"state_dict": {f"_orig_mod.model.{name}": value for name, value in dit_state().items()}},
    ],
    ids=["state_dict", "model", "module", "model_state", "generator_ema", "compiled"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_wrapped_pickles(tmp_path: Path, content: dict[str, Any], zipped: bool) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    detection = tiny_registry(tmp_path).detect(path)
    assert detection.row.name == "tiny"
    state = detection.components[0].state()
    assert all(torch.equal(value, state[name]) for name, value in dit_state().items())


def test_another_version_of_the_network_is_named_behind_the_file(tmp_path: Path) -> None:
    torch.save({"generator": dit_state(1), "generator_ema": dit_state(2)}, tmp_path / "a.pt")
    registry = tiny_registry(tmp_path)
    for source, seed in (("a.pt", 2), ("a.pt::generator_ema", 2), ("a.pt::generator", 1)):
        state = registry.detect(str(tmp_path / source)).components[0].state()
        assert torch.equal(state["head.modulation"], dit_state(seed)["head.modulation"])
    with pytest.raises(CheckpointError, match="has no 'critic'; it holds generator_ema, generator"):
        registry.detect(str(tmp_path / "a.pt::critic"))


def test_the_settings_of_a_hash_hold_behind_a_prefix(tmp_path: Path) -> None:
    """A prefixed file is known by the hash that the file without it has."""
    registry = tiny_registry(tmp_path)
    plain = registry.detect(write_safetensors(tmp_path / "a.safetensors", dit_state()))
    for prefix in ("model.diffusion_model.", "model.", "diffusion_model.", "net.", "video_model.", "pipe.dit."):
        state = {prefix + name: value for name, value in dit_state().items()}
        found = registry.detect(write_safetensors(tmp_path / "b.safetensors", state))
        assert (found.row.name, found.header.hash) == ("tiny", plain.header.hash)


def test_what_is_too_much_behind_a_prefix_is_named(tmp_path: Path) -> None:
    state = {f"net.{name}": value for name, value in dit_state().items()} | {"net.blocks.0.new": torch.zeros(1)}
    with pytest.raises(UnknownCheckpoint, match=r"nearest is 'tiny'.*unexpected: blocks\.0\.new"):
        tiny_registry(tmp_path).detect(write_safetensors(tmp_path / "a.safetensors", state))
    state = {f"net.{name}": value for name, value in dit_state().items()} | {"surprise": torch.zeros(1)}
    with pytest.raises(UnknownCheckpoint, match=r"an export with a prefix, but 1 of .* of something else: surprise"):
        tiny_registry(tmp_path).detect(write_safetensors(tmp_path / "a.safetensors", state))


def test_prefixes_without_end(tmp_path: Path) -> None:
    state = {"net." * 100 + name: value for name, value in dit_state().items()}
    with pytest.raises(UnknownCheckpoint):
        tiny_registry(tmp_path).detect(write_safetensors(tmp_path / "a.safetensors", state))


# --- folders


def diffusers_state(seed: int) -> dict[str, Tensor]:
    """The tiny transformer under the names of diffusers."""
    dialect = next(row for row in Registry.builtin().names.dialects if row.name == "diffusers")
    state = {}
    for name, value in dit_state(seed).items():
        file_name = name
        for rule in reversed(dialect.rename):
            (rename,) = rule.renames
            file_name = rename.inverse().apply(file_name)
        state[file_name] = value
    return state


def test_a_diffusers_folder_of_two_transformers(tmp_path: Path) -> None:
    """The heads are those of its config.json, and the second transformer has its own role."""
    (tmp_path / "model_index.json").write_text("{}")
    for seed, name in enumerate(("transformer", "transformer_2")):
        write_safetensors(tmp_path / name / "diffusion_pytorch_model.safetensors", diffusers_state(seed))
        (tmp_path / name / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    bundle = Bundle.open([tmp_path], Registry.builtin())
    assert bundle.roles == {"dit", "dit2"}
    for seed, role in enumerate(("dit", "dit2")):
        assert bundle.config(role) == DIT
        state = bundle.load(role).state_dict()
        assert all(torch.equal(value, state[name]) for name, value in dit_state(seed).items())


def test_a_folder_of_two_experts(tmp_path: Path) -> None:
    for seed, name in enumerate(("high_noise_model", "low_noise_model")):
        write_safetensors(tmp_path / "wan" / name / "diffusion_pytorch_model.safetensors", dit_state(seed))
    assert Bundle.open([tmp_path / "wan"], tiny_registry(tmp_path)).roles == {"dit", "dit2"}


def test_a_vae_inside_a_training_checkpoint(tmp_path: Path) -> None:
    """As the early VAE of which only the hash is published, whose own key is `model_state`."""
    (found,) = Registry.builtin().detect_all(
        Path(__file__).parents[1] / "formats" / "public" / "names" / "Wan2.1_VAE.pth"
    )
    further = {"optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "epoch": 3, "ema": torch.zeros(2)}
    torch.save({"model_state": found.components[0].state(), **further}, tmp_path / "early.pth")
    (inner,) = Registry.builtin().detect_all(tmp_path / "early.pth")
    assert (inner.row.name, inner.header.hash) == (found.row.name, found.header.hash)


# --- checkpoints that are known and not supported


def test_a_published_model_without_a_network_is_named(tmp_path: Path) -> None:
    table = tmp_path / "table.toml"
    file = write_safetensors(tmp_path / "a.safetensors", {"x": torch.zeros(3)})
    fields = {"name": "Dancer", "hash": read_header([file]).hash, "repo": "a/b", "why": "it dances"}
    table.write_text("[[unsupported]]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in fields.items()))
    with pytest.raises(CheckpointError, match=r"is Dancer \(a/b\), which is not supported: it dances"):
        Registry([table]).detect(file)
