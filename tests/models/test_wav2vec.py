from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2Model

from omniavatar.errors import CheckpointError
from omniavatar.models.wav2vec import AudioEncoder, normalize, resample
from tests.models.networks import noise, randomized, relative_error

TINY: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "conv_dim": [12] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 12,
}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
ROUNDING = 2e-6


@pytest.fixture(scope="module")
def stock() -> Wav2Vec2Model:
    return randomized(Wav2Vec2Model(Wav2Vec2Config(**TINY)))


@pytest.fixture
def folder(stock: Wav2Vec2Model, tmp_path: Path) -> Path:
    """A model folder as transformers writes it."""
    stock.save_pretrained(tmp_path)
    return tmp_path


def encoder_like(stock: Wav2Vec2Model) -> AudioEncoder:
    return AudioEncoder.from_state_dict(stock.config, stock.state_dict())


def old_style(stock: Wav2Vec2Model) -> dict[str, Tensor]:
    """The weights as in files with a transcription head, written before torch's parametrisations."""
    model = Wav2Vec2ForCTC(stock.config)
    model.wav2vec2 = stock
    state = model.state_dict()
    for original, old in (("original0", "weight_g"), ("original1", "weight_v")):
        prefix = "wav2vec2.encoder.pos_conv_embed.conv."
        state[prefix + old] = state.pop(f"{prefix}parametrizations.weight.{original}")
    return state


@pytest.mark.parametrize("variant", [{}, STABLE], ids=["group norm", "layer norm"])
def test_without_resampling_the_columns_are_the_hidden_states_of_transformers(variant: dict[str, Any]) -> None:
    stock = randomized(Wav2Vec2Model(Wav2Vec2Config(**TINY, **variant)))
    encoder, sound = encoder_like(stock), noise(2, 5200)
    with torch.no_grad():
        rows = encoder.conv_features(sound).shape[1]
        last, *states = encoder(sound, rows).split(24, dim=-1)
        expected = stock(sound, output_hidden_states=True)
    assert len(states) == 4
    assert relative_error(last, expected.last_hidden_state) < ROUNDING
    assert torch.equal(last, states[-1])
    for ours, theirs in zip(states[:-1], expected.hidden_states, strict=False):
        assert relative_error(ours, theirs) < ROUNDING


def test_rows_are_resampled_before_the_encoder(stock: Wav2Vec2Model) -> None:
    encoder, sound = encoder_like(stock), noise(1, 6400)
    with torch.no_grad():
        features = encoder.conv_features(sound)
        assert features.shape == (1, 19, 12)
        states = encoder.hidden_states(features[:, ::2])
        assert relative_error(encoder(sound, 10), torch.cat([states[-1], *states], dim=-1)) < ROUNDING


def test_resampling_is_linear_and_keeps_both_ends() -> None:
    ramp = torch.tensor([0.0, 2.0, 4.0])[None, :, None]
    assert resample(ramp, 5).flatten().tolist() == [0, 1, 2, 3, 4]


def test_a_batch_is_the_stack_of_its_samples(stock: Wav2Vec2Model) -> None:
    encoder, sound = encoder_like(stock), noise(2, 4000)
    with torch.no_grad():
        singles = torch.cat([encoder(sound[i : i + 1], 6) for i in range(2)])
        assert relative_error(encoder(sound, 6), singles) < ROUNDING


def test_sizes(stock: Wav2Vec2Model) -> None:
    encoder = encoder_like(stock)
    assert (encoder.hidden_size, encoder.feature_dim) == (24, 24 * 5)
    assert encoder(noise(1, 4000), 6).shape == (1, 6, encoder.feature_dim)


def test_normalised_sound_has_mean_0_and_population_variance_1() -> None:
    wave = torch.tensor([[1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 0.0, 0.0]])
    out = normalize(wave)
    deviation = (3.5 + 1e-7) ** 0.5
    torch.testing.assert_close(out[0], (wave[0] - 3.0) / deviation)
    assert out[1].abs().max() == 0


def test_both_key_styles_give_the_same_network(stock: Wav2Vec2Model) -> None:
    old = AudioEncoder.from_state_dict(stock.config, old_style(stock))
    assert torch.equal(old(noise(1, 4000), 6), encoder_like(stock)(noise(1, 4000), 6))
    assert not old.training


def test_the_configuration_handed_in_stays_as_it_is() -> None:
    config = Wav2Vec2Config(**TINY, mask_time_prob=0.05)
    AudioEncoder(config)
    assert config.mask_time_prob == 0.05


def test_a_folder_loads_from_safetensors(folder: Path, stock: Wav2Vec2Model) -> None:
    encoder = AudioEncoder.from_folder(folder)
    assert torch.equal(encoder(noise(1, 4000), 6), encoder_like(stock)(noise(1, 4000), 6))


def test_a_folder_loads_from_a_pickle_in_another_type(folder: Path, stock: Wav2Vec2Model) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(old_style(stock), folder / "pytorch_model.bin")
    encoder = AudioEncoder.from_folder(folder, dtype=torch.bfloat16)
    features = encoder(noise(1, 4000).bfloat16(), 6)
    assert features.dtype == torch.bfloat16
    assert relative_error(features, encoder_like(stock)(noise(1, 4000), 6)) < 0.1


def rewrite(folder: Path, change: dict[str, Tensor | None]) -> None:
    """Replace (or, with None, remove) tensors of the folder's weight file."""
    weights = load_file(folder / "model.safetensors") | change
    save_file({k: v for k, v in weights.items() if v is not None}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.layer_norm.bias": None}, "misses 1 tensors, the first is 'encoder.layer_norm.bias'"),
        ({"encoder.extra": torch.zeros(1)}, "has unknown 1 tensors, the first is 'encoder.extra'"),
        ({"encoder.layer_norm.bias": torch.zeros(9)}, r"'encoder.layer_norm.bias' has shape \(9,\), its .* \(24,\)"),
    ],
)
def test_a_file_that_does_not_match_is_rejected(folder: Path, change: dict[str, Tensor | None], message: str) -> None:
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        AudioEncoder.from_folder(folder)


def test_a_missing_weight_that_only_training_uses_is_no_error(folder: Path) -> None:
    rewrite(folder, {"masked_spec_embed": None})
    AudioEncoder.from_folder(folder)


def test_a_folder_without_weights_is_rejected(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds none of model\.safetensors, pytorch_model\.bin"):
        AudioEncoder.from_folder(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_weights_are_rejected(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        AudioEncoder.from_folder(folder)


def test_a_folder_without_configuration_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read config\.json"):
        AudioEncoder.from_folder(tmp_path)


def test_another_kind_of_model_is_rejected(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "hubert"}))
    with pytest.raises(CheckpointError, match="describes a 'hubert' model"):
        AudioEncoder.from_folder(folder)
