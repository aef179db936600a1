"""Golden kinds of the networks: DiT with and without sound, audio pack, text encoder, audio encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, cast

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from transformers import Wav2Vec2Config

from omniavatar.models.audio_adapter import ROWS_PER_LATENT, AudioAdapter, AudioPack
from omniavatar.models.wan_dit import BlockInputs, WanDiT
from omniavatar.models.wav2vec import AudioEncoder, normalize
from tests.golden.cases import Case, Recorded, kind
from tests.golden.files import loaded_file, networks_of, plain

Network = TypeVar("Network", bound=nn.Module)


def loaded(network: Network, weights: dict[str, Tensor]) -> Network:
    """The network with exactly these weights, in evaluation mode."""
    network.load_state_dict(weights)
    return network.eval()


@kind("dit_audio")
def run_dit_audio(case: Case) -> None:
    """One forward with sound; every latent frame's residual goes to all of its tokens."""
    networks = networks_of(case, dit=case.config)
    dit, adapter = cast(WanDiT, networks["dit"]), cast(AudioAdapter, networks["audio_adapter"])
    x, grid = dit.embed_patches(torch.cat([case.inputs["x"], case.inputs["y"]], dim=1))
    t_emb, t_mod = dit.embed_time(case.inputs["timestep"])
    inputs = BlockInputs(t_mod, dit.rope(grid), {"text": dit.embed_text(case.inputs["context"])})
    residuals = dict(zip(adapter.entry_blocks, adapter(case.inputs["audio_emb"]).unbind(1), strict=True))
    for index, block in enumerate(dit.blocks):
        if index in residuals:
            x = x + repeat(residuals[index], "b f d -> b (f n) d", n=grid[1] * grid[2])
        x = block(x, inputs)
    case.compare("out", dit.unembed(x, t_emb, grid), atol=2e-5)


@kind("dit_t2v")
def run_dit_t2v(case: Case) -> None:
    """One plain forward with all intermediate results."""
    dit = cast(WanDiT, networks_of(case, dit=case.config["dit"])["dit"])
    latents, timestep, context = (case.inputs[name] for name in ("latents", "timestep", "context"))
    x, grid = dit.embed_patches(latents)
    t_emb, t_mod = dit.embed_time(timestep)
    text = dit.embed_text(context)
    inputs = BlockInputs(t_mod, dit.rope(grid), {"text": text})
    taps = {"after_patch": x, "t_emb": t_emb, "t_proj": t_mod.flatten(-2), "context_emb": text}
    for index, block in enumerate(dit.blocks):
        x = block(x, inputs)
        taps[f"after_block_{index}"] = x
    taps["noise_pred"] = dit(latents, timestep, context)
    case.equal("taps", sorted(taps), sorted(case.expected))
    for name, tensor in taps.items():
        case.compare(name, tensor, rtol=2e-5)


@kind("audio_pack")
def run_audio_pack(case: Case) -> None:
    """Feature rows to one vector a latent frame; the original keeps two axes of length 1."""
    config = case.config
    pack = AudioPack(config["in_channels"], config["dim"], norm=config["layernorm"])
    case.equal("patch_size", [ROWS_PER_LATENT, 1, 1], config["patch_size"])
    loaded(pack, {key.removeprefix("audio_proj."): value for key, value in case.weights.items()})
    case.compare("out", rearrange(pack(case.inputs["audio_emb"]), "b t d -> b t 1 1 d"), atol=5e-6)


@kind("text_encoder")
def run_text_encoder(case: Case) -> None:
    """Ids and mask to text embeddings."""
    encoder = networks_of(case, text_encoder=case.config)["text_encoder"]
    case.compare("prompt_emb", encoder(case.inputs["ids"], case.inputs["mask"]), atol=2e-5)


@kind("wav2vec")
def run_wav2vec(case: Case) -> None:
    """The raw clip to the normalised one, and the padded one to feature rows."""
    config = case.config
    encoder = wav2vec_of(case, config, case.weights)
    wave = case.inputs["waveform"]
    normalized, input_values = normalize(wave) if config["do_normalize"] else wave, case.inputs["input_values"]
    case.close("normalized", normalized, case.inputs["normalized"], atol=5e-6)
    padded = nn.functional.pad(normalized, (0, input_values.shape[1] - len(wave)))
    case.close("input_values", padded[None], input_values, atol=5e-6)
    rows, samples = config["seq_len"], config["sample_rate"] // config["fps"]
    case.equal("samples", input_values.shape[1], rows * samples)
    case.compare("features", encoder(input_values, rows)[0], atol=5e-5)


def wav2vec_of(case: Case, config: Recorded, weights: Mapping[str, Tensor]) -> AudioEncoder:
    """The audio encoder of a folder with these weights and numbers; `key_style` says whose names the weights have."""
    networks, _ = loaded_file(weights, {"model_type": "wav2vec2", **config.plain()})
    encoder = cast(AudioEncoder, networks["audio_encoder"])
    for key in config:
        if hasattr(encoder.model.config, key) and key in Wav2Vec2Config().to_dict():
            case.equal(key, plain(getattr(encoder.model.config, key)), config[key])
    if "key_style" in config:
        is_whole_file = all(name.startswith(("wav2vec2.", "lm_head.")) for name in weights)
        case.equal("key_style", "ctc_file" if is_whole_file else "wav2vec2_model", config["key_style"])
    return encoder
