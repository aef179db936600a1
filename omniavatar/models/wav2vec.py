"""wav2vec 2.0 (Baevski et al. 2020, arXiv:2006.11477) as a source of speech features at the video frame rate.

    encoder = AudioEncoder.from_folder(Path("wav2vec2-base-960h"))
    features = encoder(normalize(waveform), rows=104)   # (b samples) at 16 kHz -> (b 104 10752)

The network is the one of transformers. Its parts are called one by one, because the features are resampled in the
middle of it and because versions of transformers differ in which hidden states they return.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import Wav2Vec2Config, Wav2Vec2Model

from omniavatar.errors import CheckpointError, in_one_line

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
PREFIX = "wav2vec2."
HEAD = 64
"""Width of an attention head in all published models."""
STRIDES = (5, 2, 2, 2, 2, 2, 2)
"""Of the convolutions in all published models."""
# Heads for training and transcription, and the vector that stands for masked features in training.
UNUSED = ("lm_head.", "quantizer.", "project_q.", "project_hid.", "masked_spec_embed")
# The positional convolution's weight norm has these names in older files.
OLD_NAMES = {
    "conv.weight_g": "conv.parametrizations.weight.original0",
    "conv.weight_v": "conv.parametrizations.weight.original1",
}


def normalize(waveform: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + 1e-7) over the whole clip (..., samples), population variance."""
    variance, mean = torch.var_mean(waveform, dim=-1, correction=0, keepdim=True)
    return (waveform - mean) / torch.sqrt(variance + 1e-7)


class AudioEncoder(nn.Module):
    """Hidden states of all layers, side by side, at any number of rows for the clip."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        config = copy.deepcopy(config)
        # Without masking the model has no parameter for it, so every parameter must be in the file.
        config.mask_time_prob = config.mask_feature_prob = 0.0
        self.model = Wav2Vec2Model(config)

    @property
    def hidden_size(self) -> int:
        """Width of one layer."""
        return int(self.model.config.hidden_size)

    @property
    def feature_dim(self) -> int:
        """Width of a feature row: last state, embedding and every layer."""
        return self.hidden_size * (int(self.model.config.num_hidden_layers) + 2)

    def conv_features(self, input_values: Tensor) -> Tensor:
        """Normalised sound (b, samples) at 16 kHz -> (b, t, conv_dim), about 50 a second."""
        features: Tensor = self.model.feature_extractor(input_values)
        return rearrange(features, "b c t -> b t c")

    def hidden_states(self, features: Tensor) -> list[Tensor]:
        """(b t conv_dim) -> the embedding and the output of every layer, (b t hidden_size) each.

        The encoder's layer norm stands before the first layer (group-norm variant) or after the last one.
        """
        encoder = self.model.encoder
        norm_last = bool(self.model.config.do_stable_layer_norm)
        x, _ = self.model.feature_projection(features)
        x = x + encoder.pos_conv_embed(x)
        states = [x if norm_last else encoder.layer_norm(x)]
        for layer in encoder.layers:
            output = layer(states[-1])
            states.append(output if isinstance(output, Tensor) else output[0])  # a tuple before transformers 5
        if norm_last:
            states[-1] = encoder.layer_norm(states[-1])
        return states

    def forward(self, input_values: Tensor, rows: int) -> Tensor:
        """Normalised sound (b, samples) -> (b, rows, feature_dim).

        Columns: last hidden state, embedding, layer 1 .. last.
        """
        features = resample(self.conv_features(input_values), rows)
        states = self.hidden_states(features)
        return torch.cat([states[-1], *states], dim=-1)

    @classmethod
    def from_state_dict(cls, config: Wav2Vec2Config, weights: dict[str, Tensor]) -> AudioEncoder:
        """Build from the weights of a bare model or of a model with a head, old or new names, in evaluation mode."""
        with torch.device("meta"):
            encoder = cls(config)
        weights = own_names(weights)
        check_weights(encoder.model.state_dict(), weights)
        encoder.model.load_state_dict(weights, assign=True)
        return encoder.eval()

    @classmethod
    def from_checkpoint(cls, settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> AudioEncoder:
        """The network without its weights, on the meta device, for a file with weights of these shapes.

        settings: what the config.json beside the file holds; that of another model may lie there, and does not count.
        Without them the numbers come from the shapes. Raises CheckpointError if no network has these.
        """
        try:
            is_ours = settings.get("model_type") == "wav2vec2"
            config = Wav2Vec2Config.from_dict(dict(settings)) if is_ours else config_of_shapes(shapes)
            with torch.device("meta"):
                return cls(config)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"no wav2vec2 has these numbers ({in_one_line(error)})") from error

    @classmethod
    def from_folder(
        cls, path: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> AudioEncoder:
        """Load a Hugging Face folder (config.json and a weight file) without any network access."""
        try:
            return cls.from_state_dict(read_config(path), read_weights(path)).to(device=device, dtype=dtype)
        except CheckpointError as error:
            raise CheckpointError(f"wav2vec2 folder {path}: {error}") from error


def resample(features: Tensor, rows: int) -> Tensor:
    """Linear interpolation over time with both ends kept: (b t c) -> (b rows c)."""
    channels_first = rearrange(features, "b t c -> b c t")
    return rearrange(
        functional.interpolate(channels_first, size=rows, mode="linear", align_corners=True), "b c t -> b t c"
    )


def own_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the prefix and what is unused here, and bring old names of the weight norm up to date."""
    named = {}
    for key, tensor in weights.items():
        name = key.removeprefix(PREFIX)
        for old, new in OLD_NAMES.items():
            name = name.replace(old, new)
        if not name.startswith(UNUSED):
            named[name] = tensor
    return named


def check_weights(expected: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    """Every expected tensor is there with its shape, and nothing else is."""
    for problem, names in (("misses", expected.keys() - weights.keys()), ("has unknown", weights.keys() - expected)):
        if names:
            raise CheckpointError(f"the file {problem} {len(names)} tensors, the first is '{min(names)}'")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, its configuration needs {tuple(expected[name].shape)}"
            raise CheckpointError(f"tensor '{name}' has shape {shapes}")


def read_config(path: Path) -> Wav2Vec2Config:
    """The configuration of a wav2vec2 folder."""
    file = path / "config.json"
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read config.json ({error}); download the whole model folder") from error
    if values.get("model_type") != "wav2vec2":
        raise CheckpointError(f"config.json describes a '{values.get('model_type')}' model; needed is 'wav2vec2'")
    return Wav2Vec2Config.from_dict(values)


def config_of_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Wav2Vec2Config:
    """The configuration of a network with weights of these shapes (names as in `AudioEncoder`).

    Sizes are those of the shapes. What no shape tells is as in the published models: heads of 64, the strides of the
    first convolutions, and layer norm in every convolution together with "stable" layer norms (large models), or group
    norm in the first one alone (base models).
    """
    encoder = "model.encoder"
    kernels = [shapes[name] for name in conv_weights(shapes)]
    width = shapes[f"{encoder}.layer_norm.weight"][0]
    if width > HEAD and width % HEAD:
        raise ValueError(f"width {width} does not divide into heads of {HEAD}; put its config.json beside it")
    position = shapes[f"{encoder}.pos_conv_embed.conv.parametrizations.weight.original1"]
    is_large = len(kernels) > 1 and "model.feature_extractor.conv_layers.1.layer_norm.weight" in shapes
    return Wav2Vec2Config(
        hidden_size=width,
        num_hidden_layers=sum(name.endswith(".attention.q_proj.weight") for name in shapes),
        num_attention_heads=max(1, width // HEAD),
        intermediate_size=shapes[f"{encoder}.layers.0.feed_forward.intermediate_dense.weight"][0],
        conv_dim=tuple(kernel[0] for kernel in kernels),
        conv_kernel=tuple(kernel[2] for kernel in kernels),
        conv_stride=STRIDES[: len(kernels)],
        conv_bias="model.feature_extractor.conv_layers.0.conv.bias" in shapes,
        feat_extract_norm="layer" if is_large else "group",
        do_stable_layer_norm=is_large,
        num_conv_pos_embeddings=position[2],
        num_conv_pos_embedding_groups=position[0] // position[1],
    )


def conv_weights(shapes: Collection[str]) -> list[str]:
    """The names of the weights of the first convolutions, in order."""
    names = (f"model.feature_extractor.conv_layers.{number}.conv.weight" for number in range(len(STRIDES)))
    return [name for name in names if name in shapes]


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of the first weight file that exists."""
    file = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"holds none of {', '.join(WEIGHT_FILES)}; download the whole model folder")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(f"{file.name} is damaged ({error}); download it again") from error
    return weights
