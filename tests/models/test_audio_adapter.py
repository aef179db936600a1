from __future__ import annotations

import pytest
import torch

from omniavatar.models.audio_adapter import AudioAdapter, AudioPack
from tests.models.networks import noise, randomized, relative_error


@pytest.fixture(scope="module")
def adapter() -> AudioAdapter:
    return randomized(AudioAdapter(audio_in_dim=10, audio_hidden_size=6, dim=16, num_layers=8))


@pytest.mark.parametrize(("num_layers", "last", "count"), [(40, 20, 19), (30, 15, 14), (8, 4, 3), (5, 2, 1)])
def test_sound_enters_from_block_2_to_the_middle(num_layers: int, last: int, count: int) -> None:
    adapter = AudioAdapter(audio_in_dim=10, audio_hidden_size=6, dim=16, num_layers=num_layers)
    assert list(adapter.entry_blocks) == list(range(2, last + 1))
    assert len(adapter.audio_cond_projs) == count


def test_keys_are_those_of_the_published_delta(adapter: AudioAdapter) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in adapter.state_dict().items()}
    assert shapes == {
        "audio_proj.proj.weight": (6, 40),
        "audio_proj.proj.bias": (6,),
        "audio_proj.norm_out.weight": (6,),
        "audio_proj.norm_out.bias": (6,),
        **{f"audio_cond_projs.{i}.weight": (16, 6) for i in range(3)},
        **{f"audio_cond_projs.{i}.bias": (16,) for i in range(3)},
    }


def test_a_row_reaches_the_latent_frame_that_holds_it(adapter: AudioAdapter) -> None:
    rows = noise(1, 13, 10)
    before = adapter(rows)
    assert before.shape == (1, 3, 4, 16)
    for row in range(13):
        changed = rows.clone()
        changed[:, row] += 1
        moved = (adapter(changed) != before).any(dim=-1)[0, 0]
        assert moved.nonzero().flatten().tolist() == [(row + 3) // 4]


def test_the_first_row_fills_the_first_group(adapter: AudioAdapter) -> None:
    rows = noise(1, 1, 10)
    pack = adapter.audio_proj
    expected = pack.norm_out(pack.proj(rows.repeat(1, 1, 4)))
    assert relative_error(pack(rows), expected) < 1e-6


def test_every_entry_has_its_own_projection(adapter: AudioAdapter) -> None:
    residuals, packed = adapter(noise(2, 9, 10)), adapter.audio_proj(noise(2, 9, 10))
    for index, projection in enumerate(adapter.audio_cond_projs):
        assert torch.equal(residuals[:, index], projection(packed))


def test_a_batch_is_the_stack_of_its_samples(adapter: AudioAdapter) -> None:
    rows = noise(3, 9, 10)
    singles = torch.cat([adapter(rows[i : i + 1]) for i in range(3)])
    assert relative_error(adapter(rows), singles) < 1e-6


def test_float32_rows_enter_bfloat16_layers(adapter: AudioAdapter) -> None:
    narrow = AudioAdapter(audio_in_dim=10, audio_hidden_size=6, dim=16, num_layers=8).bfloat16()
    narrow.load_state_dict(adapter.state_dict())
    residuals = narrow(noise(1, 9, 10))
    assert residuals.dtype == torch.bfloat16
    assert relative_error(residuals, adapter(noise(1, 9, 10))) < 0.05


@pytest.mark.parametrize("count", [0, 2, 4, 12])
def test_rows_that_do_not_fill_latent_frames_are_rejected(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} audio rows"):
        AudioPack(10, 6)(noise(1, count, 10))


def test_a_network_without_a_block_for_the_sound_is_rejected() -> None:
    with pytest.raises(ValueError, match="num_layers 3 leaves no block"):
        AudioAdapter(audio_in_dim=10, audio_hidden_size=6, dim=16, num_layers=3)
