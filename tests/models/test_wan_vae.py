"""The Wan 2.1 VAE: against the golden files, against diffusers, and against itself in other groups and tiles."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.peers import diffusers_key
from omniavatar.models.tiling import DECODE_TILING, ENCODE_TILING, Tiling, map_tiles, spans, tile_weights
from omniavatar.models.wan_vae import CausalCache, CausalConv3d, WanVAE
from tests.golden import kind_vae
from tests.golden.cases import group, read_case

GOLDEN = Path(kind_vae.__file__).parent
Z_DIM = 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def settings(**changes: Any) -> dict[str, Any]:
    """Constructor arguments of a tiny network with the published topology."""
    tiny = {
        "dim": 4,
        "z_dim": Z_DIM,
        "dim_mult": (1, 2, 4, 4),
        "num_res_blocks": 1,
        "attn_scales": (),
        "temporal_downsample": (False, True, True),
        "latent_mean": (0.3, -0.2, 0.1, 0.0),
        "latent_std": (1.5, 0.5, 2.0, 1.0),
    }
    return tiny | changes


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    return randomised(WanVAE(**settings()))


def randomised(network: WanVAE) -> WanVAE:
    """Seeded weights that keep activations near one, with every norm and bias in play."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("gamma"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))
    return network.eval()


def video(frames: int, height: int = 16, width: int = 24, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def latents(frames: int, height: int = 2, width: int = 3, batch: int = 1) -> Tensor:
    return torch.randn(batch, Z_DIM, frames, height, width, generator=torch.Generator().manual_seed(frames))


def shape_hash(network: nn.Module) -> str:
    """The md5 of names and shapes by which checkpoint files are recognised."""
    items: list[str] = []
    for name, tensor in network.state_dict().items():
        items += [name, f"{name}:{'_'.join(map(str, tensor.shape))}"]
    return hashlib.md5(",".join(sorted(items)).encode()).hexdigest()


# --- the published network ---------------------------------------------------------------------------------------


def test_keys_and_shapes_are_those_of_the_official_file() -> None:
    with torch.device("meta"):
        network = WanVAE(**settings(dim=96, z_dim=16, num_res_blocks=2, latent_mean=[0.0] * 16, latent_std=[1.0] * 16))
    assert len(network.state_dict()) == 194
    assert sum(parameter.numel() for parameter in network.parameters()) == 126_892_531
    assert shape_hash(network) == "ccc42284ea13e1ad04693284c7a09be6"
    assert not list(network.buffers())
    assert (network.spatial_factor, network.temporal_factor, network.z_dim) == (8, 4, 16)


def test_a_network_built_on_the_meta_device_is_complete_once_weights_are_assigned(vae: WanVAE) -> None:
    with torch.device("meta"):
        network = WanVAE(**settings())
    network.load_state_dict(vae.state_dict(), assign=True)
    torch.testing.assert_close(network.decode(latents(2)), vae.decode(latents(2)), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["encode", "decode", "tiled_encode", "tiled_decode"])
def test_golden(name: str) -> None:
    case = read_case(GOLDEN / f"vae-{name}.safetensors")
    kind_vae.run_vae(case)
    assert case.errors
    assert not case.failures


@pytest.mark.parametrize("name", ["joint", "separate", "teacache"])
def test_golden_networks_of_other_widths(name: str) -> None:
    """The VAEs inside the `generate` files; one has a factor other than 1 at its finest level."""
    case = read_case(GOLDEN / f"generate-{name}.safetensors")
    network = kind_vae.wan_vae(case, case.config["vae"], group(case.weights, "vae"))
    case.compare("image_latent", network.encode(case.expected["image_tensor"]), atol=2e-5)
    frames = (network.decode(case.expected["latents_0"]) + 1) / 2
    case.compare("last_frame_0", frames[0, :, -1], atol=5e-5)
    assert not case.failures


# --- diffusers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diffusers_vae(vae: WanVAE) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        autoencoders = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_wan")
        theirs = autoencoders.AutoencoderKLWan(
            base_dim=4,
            z_dim=Z_DIM,
            dim_mult=[1, 2, 4, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=list(vae.latent_mean),
            latents_std=list(vae.latent_std),
        )
    theirs.load_state_dict({diffusers_key(key, 1): tensor for key, tensor in vae.state_dict().items()})
    return theirs.eval()


def statistics(vae: WanVAE) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor([vae.latent_mean, vae.latent_std]).view(2, 1, -1, 1, 1, 1)
    return mean, std


@pytest.mark.parametrize("frames", [1, 9])
def test_encode_matches_diffusers(vae: WanVAE, diffusers_vae: Any, frames: int) -> None:
    mean, std = statistics(vae)
    expected = (diffusers_vae.encode(video(frames, batch=2)).latent_dist.mean - mean) / std
    torch.testing.assert_close(vae.encode(video(frames, batch=2)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 3])
def test_decode_matches_diffusers(vae: WanVAE, diffusers_vae: Any, frames: int) -> None:
    mean, std = statistics(vae)
    expected = diffusers_vae.decode(latents(frames, batch=2) * std + mean).sample
    assert expected.abs().max() == 1, "the clamp must be in play"
    torch.testing.assert_close(vae.decode(latents(frames, batch=2)), expected, rtol=0, atol=1e-5)


# --- groups of frames --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "latent_frames"), [(1, 1), (5, 2), (9, 3), (13, 4)])
def test_shapes_there_and_back(vae: WanVAE, frames: int, latent_frames: int) -> None:
    encoded = vae.encode(video(frames))
    assert encoded.shape == (1, Z_DIM, latent_frames, 2, 3)
    assert vae.decode(encoded).shape == (1, 3, frames, 16, 24)


@pytest.mark.parametrize("latents_per_pass", [2, 3, 100])
def test_the_number_of_latents_per_pass_changes_no_result(vae: WanVAE, latents_per_pass: int) -> None:
    encoded = vae.encode(video(21))
    torch.testing.assert_close(vae.encode(video(21), None, latents_per_pass), encoded, rtol=0, atol=1e-5)
    decoded = vae.decode(latents(6))
    torch.testing.assert_close(vae.decode(latents(6), None, latents_per_pass), decoded, rtol=0, atol=1e-5)


def test_decode_frames_yields_the_video_in_groups(vae: WanVAE) -> None:
    groups = list(vae.decode_frames(latents(6), latents_per_pass=2))
    assert [frames.shape[2] for frames in groups] == [1, 8, 8, 4]
    torch.testing.assert_close(torch.cat(groups, dim=2), vae.decode(latents(6), None, 2), rtol=0, atol=0)


@pytest.mark.parametrize("tiling", [None, Tiling((2, 3), (1, 2))], ids=["whole", "tiles"])
def test_a_video_decoded_in_pieces_is_the_one_decoded_at_once(vae: WanVAE, tiling: Tiling | None) -> None:
    history: dict[str, Tensor] = {}
    clip = latents(6, height=4, width=4)
    pieces = [vae.decode(part, tiling, 2, history) for part in clip.split([2, 3, 1], dim=2)]
    assert [piece.shape[2] for piece in pieces] == [5, 12, 4]
    torch.testing.assert_close(torch.cat(pieces, dim=2), vae.decode(clip, tiling, 2), rtol=0, atol=1e-5)


def test_a_history_holds_two_frames_of_every_convolution_whatever_the_length(vae: WanVAE) -> None:
    sizes = []
    for frames in (2, 5):
        history: dict[str, Tensor] = {}
        vae.decode(latents(frames), history=history)
        sizes.append({name: tuple(past.shape) for name, past in history.items()})
    assert sizes[0] == sizes[1]
    assert sizes[0].keys() == {name for name, part in vae.decoder.named_modules() if isinstance(part, CausalConv3d)}


def test_no_frame_depends_on_a_later_one(vae: WanVAE) -> None:
    changed = latents(4)
    changed[:, :, 3] += 1
    before, after = vae.decode(latents(4), None, 4), vae.decode(changed, None, 4)
    torch.testing.assert_close(after[:, :, :9], before[:, :, :9], rtol=0, atol=0)
    assert not torch.equal(after[:, :, 9:], before[:, :, 9:])


def test_calls_leave_nothing_behind_on_the_network(vae: WanVAE) -> None:
    def state() -> dict[str, dict[str, str]]:
        return {name: {key: repr(value) for key, value in vars(module).items()} for name, module in vae.named_modules()}

    untouched, first = state(), vae.decode(latents(2))
    abandoned = vae.decode_frames(latents(3, height=4, width=4))
    next(abandoned)
    vae.encode(video(5))
    assert state() == untouched
    torch.testing.assert_close(vae.decode(latents(2)), first, rtol=0, atol=0)


def test_the_cache_owns_two_frames_and_keeps_no_group_alive() -> None:
    conv, cache = CausalConv3d(3, 3, (3, 3, 3)), CausalCache()
    conv(video(12), cache)
    (past,) = cache._past.values()
    assert torch.equal(past, video(12)[:, :, -2:])
    assert past.untyped_storage().nbytes() == past.numel() * past.element_size()


# --- batches, formats, dtypes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiling", [None, Tiling(size=(2, 2), stride=(1, 1))])
def test_a_batch_is_the_stack_of_its_samples(vae: WanVAE, tiling: Tiling | None) -> None:
    videos, codes = video(5, batch=3), latents(2, batch=3)
    encoded = torch.cat([vae.encode(sample, tiling) for sample in videos.split(1)])
    torch.testing.assert_close(vae.encode(videos, tiling), encoded, rtol=0, atol=1e-5)
    decoded = torch.cat([vae.decode(sample, tiling) for sample in codes.split(1)])
    torch.testing.assert_close(vae.decode(codes, tiling), decoded, rtol=0, atol=1e-5)


def test_channels_last_weights_give_the_same_video(vae: WanVAE) -> None:
    other = WanVAE(**settings())
    other.load_state_dict(vae.state_dict())
    for module in other.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.contiguous(memory_format=torch.channels_last_3d)
    codes = latents(4).contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(other.decode(codes, None, 2), vae.decode(latents(4)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tiling", [None, Tiling(size=(2, 2), stride=(1, 1))])
def test_bfloat16_weights_keep_the_dtype_of_the_input(vae: WanVAE, tiling: Tiling | None) -> None:
    half = WanVAE(**settings())
    half.load_state_dict(vae.state_dict())
    half.to(torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float32):
        decoded = half.decode(latents(2).to(dtype), tiling)
        assert decoded.dtype == dtype
        assert half.encode(video(5).to(dtype), tiling).dtype == dtype
        assert (decoded.float() - vae.decode(latents(2), tiling)).abs().mean() < 0.05


def test_attention_stands_at_the_scales_asked_for() -> None:
    """The official code counts the decoder's scales from one level finer than the encoder's."""
    network = randomised(WanVAE(**settings(attn_scales=(0.25,))))
    keys = {key for key in network.state_dict() if key.endswith("to_qkv.weight")}
    assert keys - {"encoder.middle.1.to_qkv.weight", "decoder.middle.1.to_qkv.weight"} == {
        "encoder.downsamples.5.to_qkv.weight",
        "decoder.upsamples.1.to_qkv.weight",
        "decoder.upsamples.3.to_qkv.weight",
    }
    assert network.decode(network.encode(video(5))).shape == (1, 3, 5, 16, 24)


# --- tiles -------------------------------------------------------------------------------------------------------


def test_one_tile_is_no_tiling(vae: WanVAE) -> None:
    one = Tiling(size=(2, 3), stride=(1, 2))
    torch.testing.assert_close(vae.encode(video(5), one), vae.encode(video(5)), rtol=0, atol=1e-6)
    torch.testing.assert_close(vae.decode(latents(2), one), vae.decode(latents(2)), rtol=0, atol=1e-6)
    assert vae.decode(latents(2), one).abs().max() <= 1


def test_the_video_is_clamped_after_blending(vae: WanVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tiles of value 3 and -1 share half their width; the 3 must enter the average as it is."""
    values = iter([3.0, -1.0])
    monkeypatch.setattr(vae, "_decode_passes", lambda z, *_: [torch.full((1, 3, 1, 16, z.shape[4] * 8), next(values))])
    decoded = vae.decode(latents(1, height=2, width=6), Tiling(size=(2, 4), stride=(2, 2)))
    shared = torch.arange(1, 17)
    expected = ((3 * (17 - shared) - shared) / 17).clamp(-1, 1)
    torch.testing.assert_close(decoded[0, 0, 0, 0, 16:32], expected)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("length", range(1, 12))
def test_spans_cover_the_axis_and_only_the_last_reaches_its_end(length: int, stride: int) -> None:
    tiles = spans(length, size=4, stride=stride)
    assert [tile.start for tile in tiles] == [i * stride for i in range(len(tiles))]
    assert {pixel for tile in tiles for pixel in range(tile.start, tile.stop)} == set(range(length))
    assert (
        [tile.stop == length for tile in tiles] == [tile.last for tile in tiles] == [False] * (len(tiles) - 1) + [True]
    )
    assert [tile.first for tile in tiles] == [True] + [False] * (len(tiles) - 1)


@pytest.mark.parametrize(("tiling", "size", "count"), [(DECODE_TILING, (50, 90), 9), (ENCODE_TILING, (50, 90), 10)])
def test_default_tiles_are_as_many_as_in_the_original(tiling: Tiling, size: tuple[int, int], count: int) -> None:
    rows, columns = (spans(*axis) for axis in zip(size, tiling.size, tiling.stride, strict=True))
    assert len(rows) * len(columns) == count


def test_weights_are_the_smaller_ramp() -> None:
    tiling = Tiling(size=(4, 4), stride=(2, 2))
    rows, columns = spans(6, 4, 2), spans(8, 4, 2)
    weights = tile_weights(rows[0], columns[1], tiling, 1, torch.device("cpu"))
    expected = [[0.5, 1.0, 1.0, 0.5], [0.5, 1.0, 1.0, 0.5], [0.5, 1.0, 1.0, 0.5], [0.5, 0.5, 0.5, 0.5]]
    assert weights.tolist() == expected
    assert tile_weights(rows[0], columns[1], tiling, 8, torch.device("cpu"))[0, :3].tolist() == [1 / 16, 2 / 16, 3 / 16]


def test_where_two_ramps_meet_the_closing_one_holds() -> None:
    middle = spans(40, 6, 2)[1]
    assert middle.ramp(4, torch.device("cpu")).tolist() == [0.25, 0.5, 1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("stride", [(1, 1), (2, 3), (3, 4)])
def test_blending_pieces_of_a_picture_gives_the_picture(stride: tuple[int, int]) -> None:
    picture = latents(2, height=7, width=9, batch=2)
    blended = map_tiles(lambda tile: tile, picture, Tiling((3, 4), stride), latent_size=(7, 9), in_scale=1, out_scale=1)
    torch.testing.assert_close(blended, picture)


def test_an_overlap_is_the_weighted_average_of_its_tiles() -> None:
    values = iter([0.0, 1.0])
    blended = map_tiles(
        lambda tile: torch.full_like(tile, next(values)),
        torch.zeros(1, 1, 1, 1, 6),
        Tiling(size=(1, 4), stride=(1, 2)),
        latent_size=(1, 6),
        in_scale=1,
        out_scale=1,
    )
    torch.testing.assert_close(blended.flatten(), torch.tensor([0, 0, 1 / 3, 2 / 3, 1, 1]))


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 1, 20, 24), r"height 20 and width 24 .* multiples of 8"),
        ((1, 3, 1, 16, 23), r"height 16 and width 23 .* multiples of 8"),
        ((1, 3, 7, 16, 24), r"7 frames .* 1 \+ 4 k frames, for example 5"),
        ((1, 3, 0, 16, 24), r"0 frames .* for example 1"),
        ((1, 4, 1, 16, 24), r"\(batch, 3, frames, height, width\), not \(1, 4, 1, 16, 24\)"),
        ((3, 1, 16, 24), r"not \(3, 1, 16, 24\)"),
    ],
)
def test_videos_that_cannot_be_encoded_are_refused(vae: WanVAE, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vae.encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, Z_DIM + 1, 1, 2, 2), (1, Z_DIM, 0, 2, 2), (Z_DIM, 1, 2, 2)])
@pytest.mark.parametrize("tiling", [None, Tiling()])
def test_latents_that_cannot_be_decoded_are_refused(vae: WanVAE, shape: tuple[int, ...], tiling: Tiling | None) -> None:
    with pytest.raises(ValueError, match=r"latents are \(batch, 4, frames"):
        vae.decode(torch.zeros(shape), tiling)


def test_a_pass_needs_a_frame(vae: WanVAE) -> None:
    with pytest.raises(ValueError, match="latents_per_pass must be 1 or more, not 0"):
        vae.decode(latents(2), None, 0)


@pytest.mark.parametrize(("size", "stride"), [((4, 4), (5, 4)), ((4, 4), (4, 0))])
def test_tiles_that_leave_gaps_are_refused(size: tuple[int, int], stride: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="does not fit tile size"):
        Tiling(size, stride)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temporal_downsample": (True,)}, "temporal_downsample has 1 entries for 4 levels"),
        ({"latent_std": (1.0,)}, "4 and 1 entries; give one for each of the 4"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WanVAE(**settings(**changes))
