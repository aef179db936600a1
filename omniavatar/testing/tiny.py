"""Networks for tests: every one of the real model with small numbers and random weights from a fixed seed.

    python -m omniavatar.testing.tiny FOLDER

writes a set of them in the formats of the real files; `tiny_file` is one of a set that is written when a process first
asks. `write_original` writes them in the layout of the published OmniAvatar. They are a seventh as large as the trained
avatar in `omniavatar/assets/tiny`, and their pictures are noise.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from omniavatar.models.audio_adapter import AudioAdapter
from omniavatar.models.umt5 import UMT5Encoder
from omniavatar.models.wan_dit import WanDiT
from omniavatar.models.wan_vae import WanVAE
from omniavatar.testing.models import GivenModels

SEED = 20
DIT: dict[str, Any] = {
    "dim": 96,
    "in_dim": 33,
    "ffn_dim": 256,
    "out_dim": 16,
    "text_dim": 64,
    "freq_dim": 64,
    "eps": 1e-6,
    "patch_size": (1, 2, 2),
    "num_heads": 2,
    "num_layers": 6,
}
BASE_IN_DIM = 16
"""Input channels of the text-to-video model that the real one was trained from."""

VAE: dict[str, Any] = {
    "dim": 8,
    "z_dim": 16,
    "dim_mult": (1, 2, 4, 4),
    "num_res_blocks": 1,
    "attn_scales": (),
    "temporal_downsample": (False, True, True),
    "latent_mean": (0.0,) * 16,
    "latent_std": (1.0,) * 16,
}
TEXT: dict[str, Any] = {
    "vocab": 259,
    "dim": 64,
    "dim_attn": 64,
    "dim_ffn": 128,
    "num_heads": 4,
    "num_layers": 2,
    "num_buckets": 32,
    "shared_pos": False,
}
WAV2VEC: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
}
AUDIO_IN_DIM = WAV2VEC["hidden_size"] * (WAV2VEC["num_hidden_layers"] + 2)
ADAPTER: dict[str, Any] = {
    "audio_in_dim": AUDIO_IN_DIM,
    "audio_hidden_size": 16,
    "dim": DIT["dim"],
    "num_layers": DIT["num_layers"],
}


def write_tiny(folder: Path, *, seed: int = SEED) -> None:
    """Write the whole set: transformer with its audio layers, VAE, text encoder with tokenizer, wav2vec2 folder."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "transformer.safetensors", {**weights(WanDiT(**DIT)), **weights(AudioAdapter(**ADAPTER))})
    save(folder / "vae.safetensors", weights(WanVAE(**VAE)))
    save(folder / "text_encoder.safetensors", weights(UMT5Encoder(**TEXT)))
    write_tokenizer(folder / "tokenizer")
    write_wav2vec(folder / "wav2vec2")


FILES = ("transformer.safetensors", "vae.safetensors", "text_encoder.safetensors", "wav2vec2")
"""The model files of a set."""


def tiny_file(*parts: str) -> Path:
    """A file or folder of a set that this process has written: one of `FILES`, or "tokenizer"; without parts all."""
    _write_tokenizer() if parts == ("tokenizer",) else _write_set()
    return _folder().joinpath(*parts)


@functools.cache
def _folder() -> Path:
    """Removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="omniavatar-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _write_tokenizer() -> None:
    """Many ask for nothing else, each rank of a test on several for one."""
    write_tokenizer(_folder() / "tokenizer")


@functools.cache
def _write_set() -> None:
    with torch.random.fork_rng(devices=()):
        write_tiny(_folder())


class TinyModels(GivenModels):
    """The test networks with random weights from a fixed seed; some may be given instead, or more."""

    def __init__(self, *, seed: int = SEED, **networks: nn.Module) -> None:
        from transformers import Wav2Vec2Config

        from omniavatar.models.wav2vec import AudioEncoder

        makers: dict[str, Callable[[], nn.Module]] = {
            "dit": lambda: WanDiT(**DIT),
            "vae": lambda: WanVAE(**VAE),
            "text_encoder": lambda: UMT5Encoder(**TEXT),
            "audio_encoder": lambda: AudioEncoder(Wav2Vec2Config(**WAV2VEC)),
            "audio_adapter": lambda: AudioAdapter(**ADAPTER),
        }
        torch.manual_seed(seed)
        networks = {role: make() for role, make in makers.items() if role not in networks} | networks
        super().__init__(**networks)
        for network in networks.values():
            network.eval().requires_grad_(False)

    def beside(self, role: str, path: Path) -> Path:
        """The tokenizer of the set, whichever is asked for."""
        return tiny_file("tokenizer")


def write_original(folder: Path, *, seed: int = SEED, rank: int = 4) -> None:
    """Write a set as it is published: `folder` stands for `pretrained_models/`, the file names are the real ones.

    Wan2.1-T2V-tiny: text-to-video transformer in shards, text encoder and VAE pickled, tokenizer folder.
    OmniAvatar-tiny: what was trained on top of it, pickled, and config.json. wav2vec2-tiny: a Hugging Face folder.
    """
    torch.manual_seed(seed)
    base, trained = folder / "Wan2.1-T2V-tiny", folder / "OmniAvatar-tiny"
    base.mkdir(parents=True, exist_ok=True)
    trained.mkdir(parents=True, exist_ok=True)
    transformer = WanDiT(**{**DIT, "in_dim": BASE_IN_DIM})
    write_shards(base, weights(transformer), count=3)
    torch.save(weights(UMT5Encoder(**TEXT)), base / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(weights(WanVAE(**VAE)), base / "Wan2.1_VAE.pth")
    write_tokenizer(base / "tokenizer")
    torch.save(delta(transformer, rank), trained / "pytorch_model.pt")
    settings = {"train_architecture": "lora", "lora_rank": rank, "lora_alpha": rank // 2, "random_prefix_frames": True}
    (trained / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
    write_wav2vec(folder / "wav2vec2-tiny")


def write_shards(folder: Path, tensors: dict[str, Tensor], count: int) -> None:
    """Deal tensors out to the numbered files of one checkpoint."""
    names = sorted(tensors)
    for number in range(count):
        path = folder / f"diffusion_pytorch_model-{number + 1:05}-of-{count:05}.safetensors"
        save(path, {name: tensors[name] for name in names[number::count]})


def delta(base: WanDiT, rank: int) -> dict[str, Tensor]:
    """A LoRA for each linear layer of the blocks, a patch embedding for the condition channels, the audio layers."""
    tensors = {f"patch_embedding.{name}": value for name, value in weights(WanDiT(**DIT).patch_embedding).items()}
    for name, module in base.blocks.named_modules(prefix="blocks"):
        if isinstance(module, nn.Linear):
            tensors[f"{name}.lora_A.default.weight"] = torch.randn(rank, module.in_features) / module.in_features**0.5
            tensors[f"{name}.lora_B.default.weight"] = torch.randn(module.out_features, rank) / 100
    return tensors | weights(AudioAdapter(**ADAPTER))


def weights(network: nn.Module) -> dict[str, Tensor]:
    """Its weights, contiguous."""
    return {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors in half precision."""
    save_file({name: tensor.half() for name, tensor in tensors.items()}, path)


def write_wav2vec(folder: Path) -> None:
    """A Hugging Face wav2vec2 folder."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    folder.mkdir(parents=True, exist_ok=True)
    config = Wav2Vec2Config(**WAV2VEC)
    save_file(weights(Wav2Vec2Model(config)), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "wav2vec2", **WAV2VEC}, indent=1) + "\n")


def write_tokenizer(folder: Path) -> None:
    """A tokenizer with one token a byte, in the format that transformers reads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "</s>", "<unk>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


if __name__ == "__main__":
    write_tiny(Path(sys.argv[1]))
