"""The image transformer, the CLIP encoder and the condition channels as plain functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omniavatar_i2v.clip import MEAN, STD, ClipImageEncoder
from omniavatar_i2v.condition import behind_leading, fold_frames, frame_mask, image_condition, no_condition
from omniavatar_i2v.image_dit import ImageCrossAttention, ImageDiT
from omniavatar_i2v.testing import CLIP, FLF2V_DIT, IMAGE_DIT

from omniavatar.models.wan_dit import CrossAttention, WanDiT
from omniavatar.testing import FakeVAE
from tests.models.networks import given, noise, randomized, relative_error


def test_image_tokens_have_keys_and_values_of_their_own() -> None:
    layer = randomized(ImageCrossAttention(24, 2, 1e-6))
    x, text, image = noise(2, 5, 24, seed=1), noise(2, 3, 24, seed=2), noise(2, 4, 24, seed=3)
    plain = CrossAttention(24, 2, 1e-6)
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if "img" not in name})
    assert layer(x, given(text=text)).equal(plain(x, given(text=text))), "without pictures there is text alone"
    both = layer(x, given(text=text, image=image))
    swapped = randomized(CrossAttention(24, 2, 1e-6))
    names = {"k": "k_img", "v": "v_img", "norm_k": "norm_k_img", "q": "q", "o": "o", "norm_q": "norm_q"}
    for mine, other in names.items():
        getattr(swapped, mine).load_state_dict(getattr(layer, other).state_dict())
    torch.testing.assert_close(
        both, plain(x, given(text=text)) + swapped(x, given(text=image)) - layer.o.bias, atol=1e-5, rtol=1e-5
    )


def test_what_counts_as_image_is_what_is_put_there() -> None:
    layer = randomized(ImageCrossAttention(24, 2, 1e-6))
    x, tokens = noise(1, 5, 24, seed=1), noise(1, 7, 24, seed=2)
    four, two = (layer(x, given(text=tokens[:, count:], image=tokens[:, :count])) for count in (4, 2))
    assert relative_error(two, four) > 0.05


def test_the_forward_takes_pictures_or_none() -> None:
    dit = randomized(ImageDiT(**IMAGE_DIT))
    latents, timestep, text = noise(1, 36, 2, 4, 4), torch.tensor([500.0]), noise(1, 3, 64, seed=1)
    features = noise(1, 5, 80, seed=2)
    with torch.no_grad():
        alone, shown = dit(latents, timestep, text), dit(latents, timestep, text, features)
        plain = WanDiT(**{key: value for key, value in IMAGE_DIT.items() if key != "clip_dim"})
        plain.load_state_dict({name: value for name, value in dit.state_dict().items() if "img" not in name})
        assert alone.equal(plain(latents, timestep, text))
    assert relative_error(shown, alone) > 1e-3


def test_learned_positions_tell_two_pictures_apart() -> None:
    dit = randomized(ImageDiT(**FLF2V_DIT))
    one = noise(1, 5, 80)
    embedded = dit.embed_image(torch.cat([one, one], dim=1))
    assert relative_error(embedded[:, :5], embedded[:, 5:]) > 0.05
    plain = randomized(ImageDiT(**IMAGE_DIT))
    embedded = plain.embed_image(torch.cat([one, one], dim=1))
    torch.testing.assert_close(embedded[:, :5], embedded[:, 5:])


@pytest.mark.parametrize(
    ("config", "shape", "needed"),
    [(IMAGE_DIT, (1, 5, 79), r"\(b, m, 80\)"), (FLF2V_DIT, (1, 5, 80), r"\(b, 10, 80\)"), (IMAGE_DIT, (5, 80), "80")],
)
def test_other_tokens_are_refused(config: dict[str, Any], shape: tuple[int, ...], needed: str) -> None:
    with pytest.raises(ValueError, match=f"image tokens have shape .*; needed is .*{needed}"):
        ImageDiT(**config).embed_image(torch.zeros(shape))


@pytest.mark.parametrize("network", [ImageDiT(**FLF2V_DIT), ClipImageEncoder(**CLIP)], ids=["dit", "clip"])
def test_no_network_has_buffers(network: torch.nn.Module) -> None:
    assert not list(network.named_buffers())


def tiny_clip() -> ClipImageEncoder:
    encoder = ClipImageEncoder(**CLIP)
    randomized(encoder.visual)
    return encoder.eval()


def silence(encoder: ClipImageEncoder, index: int) -> None:
    """Set a layer's feed-forward to zero."""
    layer: Any = encoder.visual.transformer[index]
    torch.nn.init.zeros_(layer.mlp[0].weight)


def test_clip_tokens_are_those_before_the_last_layer() -> None:
    encoder = tiny_clip()
    picture = noise(2, 3, 20, 50)
    features = encoder(picture)
    assert features.shape == (2, 5, 80)
    silence(encoder, -1)
    assert encoder(picture).equal(features)
    silence(encoder, 0)
    assert not encoder(picture).equal(features)


def test_clip_sees_a_stretched_square_in_its_own_units() -> None:
    encoder = ClipImageEncoder(**CLIP)
    grey = encoder.prepared(torch.full((1, 3, 40, 90), 0.2))
    assert grey.shape == (1, 3, 28, 28)
    expected = torch.tensor([(0.6 - mean) / std for mean, std in zip(MEAN, STD, strict=True)])
    torch.testing.assert_close(grey[0, :, 5, 7], expected)


def test_pictures_stand_side_by_side_in_their_order() -> None:
    encoder = tiny_clip()
    pictures = noise(2, 3, 28, 28)
    torch.testing.assert_close(encoder.side_by_side(pictures)[:, 5:], encoder(pictures[1:]))


@pytest.mark.parametrize(("change", "message"), [({"tokens": 7}, "tokens 7"), ({"num_heads": 3}, "num_heads 3")])
def test_a_clip_that_does_not_work_out(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipImageEncoder(**{**CLIP, **change})


def test_frames_fold_into_channels() -> None:
    frames = torch.arange(18.0).view(1, 2, 9, 1, 1)
    folded = fold_frames(frames)[0, :, :, 0, 0]
    assert folded[:4].tolist() == [[0, 1, 5], [0, 2, 6], [0, 3, 7], [0, 4, 8]]
    assert folded[4:].equal(folded[:4] + 9)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ([0], [4, 0, 0]),
        ([0, 8], [4, 0, 1]),
        ([0, 1, 2, 3, 4], [4, 4, 0]),
        ([], [0, 0, 0]),
    ],
)
def test_the_mask_marks_known_frames(known: list[int], expected: list[int]) -> None:
    frames = torch.zeros(9, dtype=torch.bool)
    frames[known] = True
    mask = frame_mask(frames, (2, 3))
    assert mask.shape == (1, 4, 3, 2, 3)
    assert mask[0, :, :, 1, 2].sum(dim=0).tolist() == expected
    if known == [0, 8]:
        assert mask[0, :, 2, 0, 0].tolist() == [0, 0, 0, 1]


def test_the_condition_is_mask_and_latents() -> None:
    video = noise(1, 3, 9, 16, 24).clamp(-1, 1)
    known = torch.arange(9) < 1
    channels = image_condition(FakeVAE(), video, known)
    assert channels.shape == (1, 8, 3, 2, 3)
    assert channels[:, 4:].equal(FakeVAE().encode(video))
    assert no_condition(channels[:, 4:]).shape == channels.shape
    led = behind_leading(channels, 2)
    assert led[:, :, 2:].equal(channels)
    assert led[:, :, :2].count_nonzero() == 0
