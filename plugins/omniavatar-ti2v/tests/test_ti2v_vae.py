"""The Wan 2.2 VAE: against the published hash and the golden file, and against itself in other groups and tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omniavatar_ti2v.wan_vae38 import WanVAE38, averaged, copied, folded, unfolded
from safetensors.torch import save_file
from torch import Tensor

from omniavatar.checkpoints import Registry, Row, fingerprint
from omniavatar.checkpoints.nearest import expected_shapes
from omniavatar.engine.plan import make_unit
from omniavatar.models.tiling import Tiling
from omniavatar.plugins import discover
from tests.golden import kind_ti2v
from tests.golden.cases import read_case
from tests.models.networks import noise, randomized

Z_DIM = 4
GOLDEN = Path(kind_ti2v.__file__).parent


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def settings(**changes: Any) -> dict[str, Any]:
    """Constructor arguments of a tiny network with the published topology."""
    tiny = {
        "dim": 4,
        "dec_dim": 8,
        "z_dim": Z_DIM,
        "dim_mult": (1, 2, 4, 4),
        "num_res_blocks": 1,
        "temporal_downsample": (False, True, True),
        "patch": 2,
        "latent_mean": (0.3, -0.2, 0.1, 0.0),
        "latent_std": (1.5, 0.5, 2.0, 1.0),
    }
    return tiny | changes


@pytest.fixture(scope="module")
def vae() -> WanVAE38:
    return randomized(WanVAE38(**settings()))


def video(frames: int, height: int = 32, width: int = 48) -> Tensor:
    return noise(1, 3, frames, height, width, seed=frames).clamp(-1, 1)


def latents(frames: int, height: int = 2, width: int = 3) -> Tensor:
    return noise(1, Z_DIM, frames, height, width, seed=frames)


def rows() -> list[Row]:
    return [
        row
        for row in Registry(discover().checkpoint_tables()).rows
        if row.name.startswith(("Wan2.2-TI2V", "Wan2.2-VAE"))
    ]


@pytest.mark.parametrize("row", [row for row in rows() if row.hash], ids=lambda row: row.name)
def test_the_network_of_a_row_has_the_published_hash(row: Row) -> None:
    shapes = expected_shapes(row)
    assert fingerprint(shapes) == row.hash
    assert (len(shapes), sum(math.prod(shape) for shape in shapes.values())) == (row.num_keys, row.num_params)


def test_the_published_hashes_are_known_and_their_settings_accepted() -> None:
    hashes = {"1f5ab7703c6fc803fdded85ff040c316", "e1de6c02cdac79f8b739f4d3698cd216"}
    assert {row.hash for row in rows() if row.hash} == hashes
    units = discover().catalog().units
    for row in rows():
        for name, values in row.settings.items():
            unit = make_unit(units[name], values)
            assert {key: getattr(unit.settings, key) for key in values} == values


def test_golden() -> None:
    case = read_case(GOLDEN / "vae38-a.safetensors")
    kind_ti2v.run_vae38(case)
    assert not list(case.left())
    assert not case.failures


def test_a_file_of_any_width_is_recognised(tmp_path: Path) -> None:
    changes = {"z_dim": 48, "num_res_blocks": 2, "latent_mean": (0.0,) * 48, "latent_std": (1.0,) * 48}
    network = WanVAE38(**settings(**changes))
    path = tmp_path / "vae.safetensors"
    save_file(network.state_dict(), path)
    (component,) = Registry(discover().checkpoint_tables()).detect(path).components
    sizes = {key: component.config[key] for key in ("dim", "dec_dim", "z_dim", "num_res_blocks")}
    assert (component.role, sizes) == ("vae", {"dim": 4, "dec_dim": 8, "z_dim": 48, "num_res_blocks": 2})
    assert set(component.tensors) == set(network.state_dict())


def test_it_says_how_much_it_compresses(vae: WanVAE38) -> None:
    assert (vae.spatial_factor, vae.temporal_factor, vae.z_dim) == (16, 4, Z_DIM)
    assert vae.encode(video(9)).shape == (1, Z_DIM, 3, 2, 3)
    assert vae.decode(latents(3)).shape == (1, 3, 9, 32, 48)


@pytest.mark.parametrize("latents_per_pass", [2, 3, 7])
def test_groups_of_frames_change_nothing(vae: WanVAE38, latents_per_pass: int) -> None:
    torch.testing.assert_close(vae.encode(video(13), None, latents_per_pass), vae.encode(video(13)))
    torch.testing.assert_close(vae.decode(latents(4), None, latents_per_pass), vae.decode(latents(4)))


def test_no_frame_depends_on_a_later_one(vae: WanVAE38) -> None:
    torch.testing.assert_close(vae.encode(video(9)[:, :, :5]), vae.encode(video(9))[:, :, :2])
    torch.testing.assert_close(vae.decode(latents(3)[:, :, :2]), vae.decode(latents(3))[:, :, :5])


def test_a_tile_that_covers_all_is_no_tile_and_small_ones_are_blended(vae: WanVAE38) -> None:
    whole, small = Tiling(size=(8, 8), stride=(4, 4)), Tiling(size=(3, 3), stride=(2, 2))
    pictures, codes = video(5, 80, 80), latents(2, 5, 5)
    torch.testing.assert_close(vae.encode(pictures, whole), vae.encode(pictures))
    torch.testing.assert_close(vae.decode(codes, whole), vae.decode(codes))
    assert vae.encode(pictures, small).shape == (1, Z_DIM, 2, 5, 5)
    assert vae.decode(codes, small).shape == (1, 3, 5, 80, 80)
    assert not vae.decode(codes, small).equal(vae.decode(codes))


def test_a_network_built_on_the_meta_device_is_complete_once_weights_are_assigned(vae: WanVAE38) -> None:
    with torch.device("meta"):
        network = WanVAE38(**settings())
    network.load_state_dict(vae.state_dict(), assign=True)
    assert not list(network.buffers())
    assert network.decode(latents(2)).equal(vae.decode(latents(2)))


def test_copies_of_as_many_channels_repeat_pixels_and_their_averages_are_the_original() -> None:
    x = noise(1, 6, 3, 2, 5)
    larger = copied(x, 6, frames=2, pixels=2)
    assert larger.equal(x.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4))
    torch.testing.assert_close(averaged(larger, 6, frames=2, pixels=2), x)


def test_fewer_or_more_channels_share_a_cell() -> None:
    x = torch.arange(8.0).view(1, 2, 1, 2, 2)
    assert averaged(x, 4, frames=1, pixels=2).flatten().tolist() == [0.5, 2.5, 4.5, 6.5]
    x = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1, 1)
    assert copied(x, 1, frames=1, pixels=2).flatten().tolist() == [1, 1, 2, 2]


def test_the_first_frame_is_averaged_with_a_frame_of_zeros() -> None:
    x = torch.ones(1, 2, 1, 2, 2)
    assert averaged(x, 2, frames=2, pixels=2).flatten().tolist() == [0.5, 0.5]


def test_unfolding_undoes_folding() -> None:
    pictures = video(2, 4, 6)
    assert folded(pictures, 2).shape == (1, 12, 2, 2, 3)
    assert folded(pictures, 2)[0, 1, 0, 0, 0] == pictures[0, 0, 0, 1, 0], "the row below comes before the next column"
    assert unfolded(folded(pictures, 2), 2).equal(pictures)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim_mult": (1, 2, 4)}, "temporal_downsample has 3 entries for 3 levels"),
        ({"dim_mult": (1, 3, 4, 4)}, "do not divide into 12 channels"),
        ({"z_dim": 5}, "give one for each of the 5 latent channels"),
    ],
)
def test_numbers_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WanVAE38(**settings(**changes))


def test_a_size_that_does_not_divide(vae: WanVAE38) -> None:
    with pytest.raises(ValueError, match="both must be multiples of 16"):
        vae.encode(video(1, 24, 32))
