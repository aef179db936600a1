"""A replay looks at all of its case, and cases with other numbers than the files here are followed as they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from omniavatar_s2v.adapter import S2VAdapter
from omniavatar_vace.network import Vace
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from omniavatar.engine.flow_match import shifted_sigmas
from omniavatar.models.audio_adapter import AudioAdapter, AudioPack
from omniavatar.models.wan_dit import BlockInputs, WanDiT
from tests.golden.cases import Recorded, run_file
from tests.models.networks import randomized

HERE = Path(__file__).parent
DIT: dict[str, Any] = {
    "dim": 48,
    "in_dim": 16,
    "ffn_dim": 56,
    "out_dim": 16,
    "text_dim": 20,
    "freq_dim": 24,
    "eps": 1e-5,
    "patch_size": [1, 2, 2],
    "num_heads": 4,
    "num_layers": 6,
}
Tensors = dict[str, Tensor]


def written(path: Path, config: dict[str, Any], weights: Tensors, inputs: Tensors, expected: Tensors) -> Path:
    """A case file."""
    groups = {"weights": weights, "inputs": inputs, "expected": expected}
    tensors = {f"{kind}/{name}": tensor.contiguous() for kind in groups for name, tensor in groups[kind].items()}
    save_file(tensors, path, {"kind": path.stem.partition("-")[0], "config": json.dumps(config)})
    return path


def changed(source: str, path: Path, change: Callable[[dict[str, Any], Tensors], None]) -> Path:
    """A case of this folder whose configuration and tensors are changed."""
    with safe_open(HERE / source, "pt") as file:
        metadata = file.metadata()
    config, tensors = json.loads(metadata["config"]), load_file(HERE / source)
    change(config, tensors)
    save_file(tensors, path, {**metadata, "config": json.dumps(config)})
    return path


def failures(path: Path) -> list[str]:
    return run_file(path)[0].failures


def test_a_mapping_remembers_what_was_read() -> None:
    values = Recorded({"a": 1, "b": {"c": 2, "d": {}}, "e": {"f": 3}, "g": []})
    assert values["a"] == 1
    assert values["b"]["c"] == 2
    assert "g" in values
    assert list(values.unread()) == ["e.f", "g"]
    assert values.plain() == {"a": 1, "b": {"c": 2, "d": {}}, "e": {"f": 3}, "g": []}
    assert list(values.unread()) == ["e.f", "g"]
    assert values.read() == values.plain()
    assert not list(values.unread())


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        ("dit_t2v-wide", lambda config, _: config["dit"].update(qk_norm=False), "config.dit.qk_norm is not used"),
        ("dit_t2v-wide", lambda config, _: config.update(sampler="unipc"), "config.sampler is not used"),
        ("audio_pack-len1", lambda _, tensors: tensors.update({"inputs/y": torch.ones(1)}), "inputs.y is not used"),
        ("audio_pack-len1", lambda _, tensors: tensors.update({"expected/y": torch.ones(1)}), "expected.y is not used"),
    ],
)
def test_what_is_not_used_is_a_failure(
    tmp_path: Path, source: str, change: Callable[[dict[str, Any], Tensors], None], message: str
) -> None:
    assert failures(changed(f"{source}.safetensors", tmp_path / f"{source}.safetensors", change)) == [message]


def test_what_a_record_has_beside_is_a_failure(tmp_path: Path) -> None:
    inputs = {"text": "a  b", "clean": "whitespace", "form": "NFC"}
    record = {"inputs": inputs, "expected": {"text": "a b", "length": 3}, "note": "", "more": 1}
    path = tmp_path / "prompt_clean.json"
    path.write_text(json.dumps([record]))
    unused = ["0.inputs.form is not used", "0.expected.length is not used", "0.more is not used"]
    assert failures(path) == unused


@pytest.mark.parametrize(
    ("source", "key", "value"),
    [
        ("dit_audio-wide", "num_heads", 4),
        ("dit_i2v-i2v", "dit.has_image_input", False),
        ("audio_pack-len13", "layernorm", False),
        ("denoise-nofixed", "denoising_strength", 0.7),
        ("vace-a", "vace.vace_layers", [0, 3]),
        ("s2v-a", "dit.audio_inject_layers", [0, 1]),
        ("s2v-a", "call.motion_latent_frames", 18),
        ("s2v_audio-a", "call.m", 1),
        ("camera-a", "dit.in_dim_control_adapter", 12),
        ("ref_conv-a", "dit.has_ref_conv", False),
        ("cfg_merge-a", "call.cfg_scale", 4.0),
        ("dit_ti2v-a", "dit.seperated_timestep", False),
        ("clip-a", "image_encoder.vision_heads", 4),
    ],
)
def test_another_value_is_another_result(tmp_path: Path, source: str, key: str, value: Any) -> None:
    def change(config: dict[str, Any], tensors: Tensors) -> None:
        *sections, name = key.split(".")
        for section in sections:
            config = config[section]
        config[name] = value

    found = failures(changed(f"{source}.safetensors", tmp_path / f"{source}.safetensors", change))
    assert found
    assert not any("is not used" in failure for failure in found)


@pytest.mark.parametrize("norm", [True, False])
def test_sound_is_packed_with_and_without_a_norm(tmp_path: Path, norm: bool) -> None:
    weights = randomized(AudioPack(9, 5, norm=norm)).state_dict()
    rows = torch.randn(1, 5, 9)
    groups = torch.cat([rows[:, :1].repeat(1, 4, 1), rows[:, 1:]], dim=1).reshape(1, 2, 36)
    made = groups @ weights["proj.weight"].T + weights["proj.bias"]
    if norm:
        made = functional.layer_norm(made, (5,), weights["norm_out.weight"], weights["norm_out.bias"])
    config = {"in_channels": 9, "patch_size": [4, 1, 1], "dim": 5, "layernorm": norm}
    named = {f"audio_proj.{name}": weight for name, weight in weights.items()}
    path = tmp_path / "audio_pack-x.safetensors"
    assert not failures(written(path, config, named, {"audio_emb": rows}, {"out": made.reshape(1, 2, 1, 1, 5)}))


@pytest.mark.parametrize("layers", [[0, 1, 3], [2, 5], [4]])
def test_hints_go_to_the_blocks_that_a_case_lists(tmp_path: Path, layers: list[int]) -> None:
    """Against the two networks, called one after the other as in the paper."""
    numbers = {key: DIT[key] for key in ("dim", "ffn_dim", "num_heads", "eps", "patch_size")}
    dit, branch = randomized(WanDiT(**DIT)), randomized(Vace(in_dim=96, layers=layers, **numbers), seed=1)
    context, latents, time = torch.randn(1, 96, 2, 4, 4), torch.randn(1, 16, 2, 4, 4), torch.tensor([371.0])
    text = torch.randn(1, 7, DIT["text_dim"])
    x, grid = dit.embed_patches(latents)
    t_emb, t_mod = dit.embed_time(time)
    inputs = BlockInputs(t_mod, dit.rope(grid), {"text": dit.embed_text(text)})
    control, hints = branch.embed(context), list[Tensor]()
    for block in branch.vace_blocks:
        control, hint = block(control, inputs, tokens=None if hints else x)
        hints.append(hint)
    for index, block in enumerate(dit.blocks):
        x = block(x, inputs)
        if index in layers:
            x = x + 0.7 * hints[layers.index(index)]
    expected = {
        "hints": torch.stack(hints),
        "noise_pred_scale_0.7": dit.unembed(x, t_emb, grid),
        "noise_pred_without": dit(latents, time, text),
    }
    config = {
        "dit": {**DIT, "has_image_input": False},
        "vace": {**numbers, "vace_in_dim": 96, "vace_layers": layers},
        "call": {"vace_scales": [0.7]},
    }
    given = {"context": text, "latents": latents, "timestep": time, "vace_context": context}
    weights = {**dit.state_dict(), **branch.state_dict()}
    assert not failures(written(tmp_path / "vace-x.safetensors", config, weights, given, expected))


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_loop_starts_where_its_strength_says(tmp_path: Path, strength: float) -> None:
    """Against three Euler steps with one call each."""
    audio: dict[str, Any] = {"audio_hidden_size": 10, "audio_in_dim": 14}
    dit = randomized(WanDiT(**{**DIT, "in_dim": 33}))
    adapter = randomized(AudioAdapter(dim=48, num_layers=6, **audio), seed=1)
    noise, y, rows, text = (torch.randn(1, *shape) for shape in ((16, 2, 4, 4), (17, 2, 4, 4), (5, 14), (6, 20)))
    sigmas = [*shifted_sigmas(3, 3.0, strength=strength).tolist(), 0.0]
    start = 3 * strength / (1 + 2 * strength)
    assert sigmas[0] == pytest.approx(start)
    residuals, latents = adapter(rows), noise
    for sigma, following in pairwise(sigmas):
        x, grid = dit.embed_patches(torch.cat([latents, y], dim=1))
        t_emb, t_mod = dit.embed_time(torch.tensor([1000 * sigma]))
        inputs = BlockInputs(t_mod, dit.rope(grid), {"text": dit.embed_text(text)})
        for index, block in enumerate(dit.blocks):
            if index in adapter.entry_blocks:
                x = x + residuals[:, index - adapter.entry_blocks[0]].repeat_interleave(4, dim=1)
            x = block(x, inputs)
        latents = latents + (following - sigma) * dit.unembed(x, t_emb, grid)
    config = {
        **{**DIT, **audio, "in_dim": 33, "has_image_input": False},
        **{"num_inference_steps": 3, "cfg_scale": 1.0, "audio_cfg_scale": 2.0, "fixed_frame": 0},
        **{"sigma_shift": 3.0, "denoising_strength": strength},
    }
    given = {"audio_emb": rows, "context_neg": 0 * text, "context_pos": text, "lat": 0 * noise, "noise": noise, "y": y}
    weights = {**dit.state_dict(), **adapter.state_dict()}
    path = written(tmp_path / "denoise-x.safetensors", config, weights, given, {"latents": latents})
    assert not failures(path)


def test_a_clip_of_speech_may_have_any_number_of_frames(tmp_path: Path) -> None:
    """All that is compared then has the shapes of that clip, whose numbers are those of no program here."""
    frames, tokens = 4, 4 * 16 + 24
    numbers: dict[str, Any] = {
        **{"cond_dim": 16, "audio_dim": 12, "num_audio_token": 3},
        **{"audio_inject_layers": [0, 1, 4], "audio_layers": 5},
    }
    shared = {key: DIT[key] for key in ("dim", "in_dim", "num_heads", "eps", "patch_size")}
    weights = {
        **randomized(WanDiT(**DIT)).state_dict(),
        **randomized(S2VAdapter(**shared, **numbers), seed=1).state_dict(),
    }
    video = torch.randn(1, 16, frames, 8, 8)
    given = {
        "audio_embeds": torch.randn(1, 5, 12, 4 * (frames - 1)),
        "context": torch.randn(1, 7, 20),
        "latents": video,
        "motion_latents": torch.randn(1, 16, 19, 8, 8),
        "s2v_pose_latents": torch.randn(1, 16, frames - 1, 8, 8),
        "timestep": torch.tensor([371.0]),
    }
    heard = {"audio_global": torch.ones(1, 18 + frames, 1, 48), "audio_local": torch.ones(1, 18 + frames, 4, 48)}
    taps = {name: torch.ones(1, tokens, 48) for name in ("before_block_0", "after_block_3")}
    calls = ("motion_pose", "negative_audio", "no_motion_no_pose")
    expected = {**heard, **taps, **{f"noise_pred_{name}": torch.zeros_like(video) for name in calls}}
    expected["motion_tokens"] = torch.ones(1, 24, 48)
    config = {"dit": {**DIT, **numbers}, "call": {"audio_frames": 4 * (frames - 1), "motion_latent_frames": 19}}
    found = failures(written(tmp_path / "s2v-x.safetensors", config, weights, given, expected))
    assert len(found) == 1 + len(taps) + len(calls) + 1
    assert all(": off by" in failure for failure in found)
