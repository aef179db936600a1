"""Golden kinds of the networks: DiT with and without sound, audio pack, text encoder, audio encoder."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from transformers import Wav2Vec2Config

from omniavatar.models.audio_adapter import AudioAdapter, AudioPack
from omniavatar.models.umt5 import UMT5Encoder
from omniavatar.models.wan_dit import BlockInputs, WanDiT
from omniavatar.models.wav2vec import AudioEncoder, normalize
from tests.golden.cases import Case, kind

Network = TypeVar("Network", bound=nn.Module)
AUDIO_KEYS = ("audio_proj.", "audio_cond_projs.")


def wan_dit(config: dict[str, Any], weights: dict[str, Tensor]) -> WanDiT:
    """A `WanDiT` with the numbers of the case that it has a parameter for."""
    numbers = {key: config[key] for key in inspect.signature(WanDiT).parameters if key in config}
    return loaded(WanDiT(**numbers), {key: value for key, value in weights.items() if not key.startswith(AUDIO_KEYS)})


def audio_adapter(config: dict[str, Any], weights: dict[str, Tensor]) -> AudioAdapter:
    """The audio layers of a case whose weights hold them beside those of the DiT."""
    numbers = {key: config[key] for key in inspect.signature(AudioAdapter).parameters}
    return loaded(AudioAdapter(**numbers), {k: value for k, value in weights.items() if k.startswith(AUDIO_KEYS)})


def loaded(network: Network, weights: dict[str, Tensor]) -> Network:
    """The network with exactly these weights, in evaluation mode."""
    network.load_state_dict(weights)
    return network.eval()


@kind("dit_audio")
def run_dit_audio(case: Case) -> None:
    """One forward with sound; every latent frame's residual goes to all of its tokens."""
    dit, adapter = wan_dit(case.config, case.weights), audio_adapter(case.config, case.weights)
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
    dit = wan_dit(case.config["dit"], case.weights)
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
    pack = AudioPack(case.config["in_channels"], case.config["dim"])
    pack.load_state_dict({key.removeprefix("audio_proj."): value for key, value in case.weights.items()})
    case.compare("out", rearrange(pack(case.inputs["audio_emb"]), "b t d -> b t 1 1 d"), atol=5e-6)


@kind("text_encoder")
def run_text_encoder(case: Case) -> None:
    """Ids and mask to text embeddings."""
    encoder = loaded(UMT5Encoder(**case.config), case.weights)
    case.compare("prompt_emb", encoder(case.inputs["ids"], case.inputs["mask"]), atol=2e-5)


@kind("wav2vec")
def run_wav2vec(case: Case) -> None:
    """The raw clip to the normalised one, and the padded one to feature rows."""
    encoder = AudioEncoder.from_state_dict(Wav2Vec2Config(**case.config), case.weights)
    normalized, input_values = normalize(case.inputs["waveform"]), case.inputs["input_values"]
    case.close("normalized", normalized, case.inputs["normalized"], atol=5e-6)
    features = encoder(input_values, case.config["seq_len"])
    case.compare("features", features[0], atol=5e-5)
