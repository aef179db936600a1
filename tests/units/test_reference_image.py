"""The reference image: size of the video, its latent, and the condition channels of every window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.run import Result
from omniavatar.engine.scopes import Request
from omniavatar.errors import InputError, PlanError
from omniavatar.testing import FakeDiT
from omniavatar.units import ReferenceImage
from omniavatar.units.reference_image import condition
from tests.scenes import Scene, denoising_units, fake_engine, fake_models

SIZES = [[16, 32], [32, 32], [32, 16]]


def picture(folder: Path, width: int, height: int, level: int = 255) -> Path:
    path = folder / f"{width}x{height}.png"
    Image.new("RGB", (width, height), (level, level, level)).save(path)
    return path


def generate(request: Request, *, frames: int = 5, **settings: Any) -> tuple[Result, Scene]:
    scene = Scene(frames=frames)
    units = [scene, ReferenceImage(**{"sizes": SIZES, **settings}), *denoising_units()]
    return fake_engine(units, models=fake_models(dit=FakeDiT(condition_channels=5))).generate(request), scene


@pytest.mark.parametrize(
    ("width", "height", "size"), [(64, 30, (16, 32)), (50, 50, (32, 32)), (20, 64, (32, 16)), (64, 60, (32, 32))]
)
def test_the_video_takes_the_size_nearest_to_the_picture(
    tmp_path: Path, width: int, height: int, size: tuple[int, int]
) -> None:
    result, scene = generate(Request(inputs={"image": picture(tmp_path, width, height)}))
    assert result.size == size
    assert scene.windows[0]["frames"].shape == (1, 3, 5, *size)


def test_a_given_size_wins(tmp_path: Path) -> None:
    result, _ = generate(Request(inputs={"image": picture(tmp_path, 64, 30)}, height=48, width=16))
    assert result.size == (48, 16)


def test_without_a_picture_the_first_size_holds_and_nothing_is_given() -> None:
    result, scene = generate(Request())
    assert result.size == (16, 32)
    assert scene.windows[0]["image_latent"] is None
    assert scene.windows[0].span.given == 0
    assert (scene.windows[0]["condition"][:, :4] == 0).all()
    assert (scene.windows[0]["condition"][:, 4:] == 1).all()


def test_the_picture_is_encoded_as_frame_0_and_stands_in_every_frame_of_the_condition(tmp_path: Path) -> None:
    _, scene = generate(Request(inputs={"image": picture(tmp_path, 32, 32, level=51)}), frames=13)
    expected = 51 / 255 * 2 - 1
    torch.testing.assert_close(scene.windows[0]["image_latent"], torch.full((1, 4, 1, 4, 4), expected))
    first, second = (window["condition"] for window in scene.windows)
    for shown in (first, second):
        assert shown.shape == (1, 5, 3, 4, 4)
        torch.testing.assert_close(shown[:, :4], torch.full((1, 4, 3, 4, 4), expected))
    assert first[0, 4, :, 0, 0].tolist() == [0, 1, 1]
    assert second[0, 4, :, 0, 0].tolist() == [0, 0, 1], "5 given frames are 2 latent frames"


def test_frame_0_of_the_video_is_the_picture(tmp_path: Path) -> None:
    _, scene = generate(Request(inputs={"image": picture(tmp_path, 32, 32, level=204)}))
    torch.testing.assert_close(scene.windows[0]["frames"][0, :, 0], torch.full((3, 32, 32), 204 / 255))


def test_condition_of_a_given_window() -> None:
    latents, image = torch.randn(2, 4, 3, 2, 2), torch.arange(4.0).view(1, 4, 1, 1, 1)
    shown = condition(latents, image, given=0)
    assert (shown[:, 4] == 1).all()
    assert shown[:, :4].equal(image.expand(2, 4, 3, 2, 2))


@pytest.mark.parametrize("size", [(100, 32), (32, 20)])
def test_a_size_that_the_networks_cannot_make_is_refused(size: tuple[int, int]) -> None:
    message = f"the size {size[1]}x{size[0]} is not made of positive multiples of 8"
    with pytest.raises(InputError, match=message):
        generate(Request(height=size[0], width=size[1]))


@pytest.mark.parametrize("sizes", ["[]", "[[-16, 16]]", "[[0, 16]]", "[[16]]"])
def test_unusable_tables_are_refused(sizes: str, catalog: Catalog) -> None:
    with pytest.raises(PlanError, match=r"unit 'reference-image': '?sizes"):
        build_plan(f"reference-image(sizes={sizes})", catalog)
