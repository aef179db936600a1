"""The layers beside the transformer: which frames a latent frame hears, what stands for the past, published files."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from omniavatar_s2v.adapter import S2VAdapter
from omniavatar_s2v.testing import ADAPTER, DIT, write_tiny
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from omniavatar.checkpoints import Bundle, Registry, Row, fingerprint
from omniavatar.checkpoints.nearest import expected_shapes
from omniavatar.checkpoints.tables import read_table
from omniavatar.errors import CheckpointError
from omniavatar.models.rope import apply_rope, rope_table
from omniavatar.models.wan_dit import WanDiT
from omniavatar.models.wav2vec import AudioEncoder
from omniavatar.resources import registry_tables
from omniavatar.testing import tiny
from tests.models.networks import noise, randomized

TABLE = files("omniavatar_s2v") / "s2v.toml"
ROWS = {row.name: row for row in read_table(TABLE)}
FEATURES = (ADAPTER["audio_layers"], ADAPTER["audio_dim"])


@pytest.fixture(scope="module")
def adapter() -> S2VAdapter:
    return randomized(S2VAdapter(**ADAPTER)).requires_grad_(False)


# Speech


def test_a_latent_frame_hears_its_four_frames_and_those_before(adapter: S2VAdapter) -> None:
    features = noise(1, 12, *FEATURES)
    before = adapter.speech(features)
    assert before.shape == (1, 3, 4 + 1 + 1, DIT["dim"])
    for frame in (4, 7):
        changed = features.clone()
        changed[:, frame] += 1
        difference = (adapter.speech(changed) - before).abs().amax(dim=(0, 2, 3))
        assert difference[0] == 0
        assert difference[1] > 1e-3


def test_the_first_frame_stands_for_the_past(adapter: S2VAdapter) -> None:
    """However long the same features last, they sound the same."""
    features = noise(1, 1, *FEATURES).expand(-1, 8, -1, -1)
    first, second = adapter.speech(features)[0]
    torch.testing.assert_close(first, second)


def test_one_local_token_is_the_same_for_all_speech(adapter: S2VAdapter) -> None:
    speech = adapter.speech(noise(1, 8, *FEATURES))
    varies = speech[0].std(dim=0).amax(dim=-1) > 1e-3
    assert varies.tolist() == [True, True, True, True, False, True]


def test_frames_that_fill_no_latent_frame_are_refused(adapter: S2VAdapter) -> None:
    with pytest.raises(ValueError, match="7 frames of speech do not fill latent frames of 4"):
        adapter.speech(noise(1, 7, *FEATURES))


def test_tokens_hear_the_speech_of_their_own_frame(adapter: S2VAdapter) -> None:
    x, speech = noise(2, 3, 5, DIT["dim"]), noise(2, 3, 6, DIT["dim"], seed=1)
    before = adapter.heard(1, x, speech)
    for token in (0, 5):  # a local one and the global one
        changed = speech.clone()
        changed[:, 1, token] *= -1
        difference = (adapter.heard(1, x, changed) - before).abs().amax(dim=(0, 2, 3))
        assert (difference > 1e-3).tolist() == [False, True, False]
    assert not torch.allclose(adapter.heard(0, x, speech), before, atol=1e-2)


# The past


def test_the_past_is_packed_the_coarser_the_older(adapter: S2VAdapter) -> None:
    latents = noise(1, 16, 19, 16, 8)
    tokens, positions = adapter.motion(latents)
    counts = [8 * 4, 4 * 2, 4 * 2 * 1]
    assert tokens.shape == (1, sum(counts), DIT["dim"])
    newest, middle, oldest = positions.split(counts)
    assert newest[:, 0].unique().tolist() == [-1]
    assert middle.tolist() == [[-3, row, column] for row in (0, 2, 4, 7) for column in (0, 3)]
    assert oldest.tolist() == [[time, row, 0] for time in (-19, -14, -9, -4) for row in (0, 7)]
    for frame, place in ((18, 0), (17, 1), (16, 1), (15, 2), (0, 2)):
        changed = latents.clone()
        changed[:, :, frame] += 1
        parts = (adapter.motion(changed)[0] - tokens).abs().amax(dim=(0, 2)).split(counts)
        assert [bool(part.max() > 0) for part in parts] == [index == place for index in range(3)]


def test_missing_frames_of_the_past_are_zeros(adapter: S2VAdapter) -> None:
    latents = noise(1, 16, 7, 8, 8)
    padded = torch.cat([torch.zeros(1, 16, 12, 8, 8), latents], dim=2)
    for short, whole in zip(adapter.motion(latents), adapter.motion(padded), strict=True):
        assert short.equal(whole)


def test_positions_before_the_video_turn_the_other_way() -> None:
    x, places = noise(1, 1, 1, 48), torch.tensor([[3, 0, 0], [-3, 0, 0]])
    there, back = rope_table(places, 48)
    torch.testing.assert_close(apply_rope(apply_rope(x, there[None]), back[None]), x)


# Files


def test_the_networks_of_the_transformer_have_the_published_hash() -> None:
    row = ROWS["Wan2.2-S2V-14B"]
    shapes = expected_shapes(row)
    assert fingerprint(shapes) == row.hash == "966cffdcc52f9c46c391768b27637614"
    assert (len(shapes), count(shapes)) == (row.num_keys, row.num_params) == (1260, 16295755609)
    assert not row.unclaimed(shapes)


def test_the_audio_encoder_takes_what_the_published_file_holds() -> None:
    """The file is a model for transcription with the old names of the weight norm."""
    row = ROWS["wav2vec2-large-xlsr-53-english"]
    config = large()
    with torch.device("meta"):
        state = Wav2Vec2ForCTC(config).state_dict()
    ending = "parametrizations.weight.original"
    state = {name.replace(f"{ending}0", "weight_g").replace(f"{ending}1", "weight_v"): state[name] for name in state}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert fingerprint(shapes) == row.hash == "06be60f3a4526586d8431cd038a71486"
    assert (len(shapes), count(shapes)) == (row.num_keys, row.num_params) == (424, 315472545)
    encoder = AudioEncoder.from_state_dict(config, state)
    published = ROWS["Wan2.2-S2V-14B"].components["s2v_adapter"].config
    states = config.num_hidden_layers + 1
    assert (states, encoder.hidden_size) == (published["audio_layers"], published["audio_dim"])


def large() -> Wav2Vec2Config:
    """The configuration that lies beside the published file."""
    return Wav2Vec2Config(
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        vocab_size=33,
    )


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def test_a_file_of_another_size_is_both_networks(tmp_path: Path, adapter: S2VAdapter) -> None:
    dit = randomized(WanDiT(**DIT))
    file = write_tiny(tmp_path, dit, adapter)
    bundle = Bundle.open([file], Registry([*registry_tables(), TABLE]))
    (detection,) = bundle.detections
    assert detection.row.name == "Wan2.2-S2V-any"
    assert bundle.config("s2v_adapter") == {key: listed(value) for key, value in ADAPTER.items()}
    assert bundle.config("dit") == {key: listed(value) for key, value in DIT.items()}
    networks: dict[str, nn.Module] = {"dit": dit, "s2v_adapter": adapter}
    for role, network in networks.items():
        loaded = bundle.load(role, dtype=torch.float32)
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], tensor, atol=2e-3, rtol=2e-3)


def listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def test_without_its_config_json_it_is_said_what_is_missing(tmp_path: Path, adapter: S2VAdapter) -> None:
    file = write_tiny(tmp_path, WanDiT(**DIT), adapter)
    (tmp_path / "config.json").unlink()
    bundle = Bundle.open([file], Registry([TABLE]))
    with pytest.raises(CheckpointError, match=r"put the config\.json of the checkpoint, with 'audio_inject_layers'"):
        bundle.load("s2v_adapter")


def test_the_encoder_alone_is_recognised_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_wav2vec(tmp_path / "wav2vec2")
    registry = Registry([TABLE])
    row = ROWS["wav2vec2-large-xlsr-53-english"]
    header_hash = "omniavatar.checkpoints.headers.Header.hash"
    monkeypatch.setattr(header_hash, property(lambda header: row.hash))
    bundle = Bundle.open([tmp_path / "wav2vec2" / "model.safetensors"], registry)
    assert bundle.detections[0].row.name == row.name
    assert isinstance(bundle.load("audio_encoder"), AudioEncoder)


def test_rows_have_names_of_their_own() -> None:
    rows: list[Row] = list(Registry([*registry_tables(), TABLE]).rows)
    assert {"Wan2.2-S2V-14B", "Wan2.2-S2V-any", "wav2vec2"} <= {row.name for row in rows}
