"""Pictures in: every mode becomes upright 8-bit RGB, every size fits, every damage is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omniavatar.errors import InputError
from omniavatar.media.image import choose_size, fit_image, load_image, placement, size_near
from tests.media.samples import single_line

SIZES_720 = ((400, 720), (720, 720), (720, 400))


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_rgb_comes_back_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (21, 33, 3), dtype=np.uint8)
    np.testing.assert_array_equal(load_image(saved(Image.fromarray(pixels), tmp_path / "a.png")), pixels)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    upright = load_image(saved(image, tmp_path / "turned.png", exif=exif))
    assert upright.shape == (40, 20, 3)
    assert upright[:20].min() == 255
    assert upright[20:].max() == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(tmp_path: Path, mode: str) -> None:
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (10, 0, 20, 20))
    pixels = load_image(saved(clear.convert(mode), tmp_path / "clear.png"))
    assert pixels[:, :10].min() == 255
    assert pixels[:, 10:].max() == 0


def test_half_transparent_is_mixed(tmp_path: Path) -> None:
    pixels = load_image(saved(Image.new("RGBA", (20, 20), (255, 0, 0, 128)), tmp_path / "half.png"))
    np.testing.assert_allclose(pixels[0, 0], (255, 127, 127), atol=1)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    pixels = load_image(saved(Image.fromarray(values), tmp_path / f"deep.{suffix}"))
    expected = np.rint(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(pixels, np.repeat(expected[:, :, None], 3, axis=2))


@pytest.mark.parametrize("peak", [1.0, 255.0, 65535.0])
def test_float_grey_uses_the_usual_full_scale(tmp_path: Path, peak: float) -> None:
    values = np.linspace(0, peak, 32 * 32, dtype=np.float32).reshape(32, 32)
    pixels = load_image(saved(Image.fromarray(values), tmp_path / "float.tif"))
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert pixels.mean() == pytest.approx(127.5, abs=1)


def test_float_grey_with_nan_is_refused(tmp_path: Path) -> None:
    values = np.full((32, 32), np.nan, dtype=np.float32)
    with pytest.raises(InputError, match="not finite"):
        load_image(saved(Image.fromarray(values), tmp_path / "nan.tif"))


def test_cmyk_palette_and_grey(tmp_path: Path) -> None:
    red = Image.new("RGB", (20, 20), (250, 10, 10))
    cmyk = load_image(saved(red.convert("CMYK"), tmp_path / "red.jpg", quality=100))
    np.testing.assert_allclose(cmyk[5, 5], (250, 10, 10), atol=6)
    palette = load_image(saved(red.convert("P", palette=Image.Palette.ADAPTIVE), tmp_path / "red.png"))
    np.testing.assert_array_equal(palette[5, 5], (250, 10, 10))
    grey = load_image(saved(Image.new("L", (20, 20), 77), tmp_path / "grey.png"))
    np.testing.assert_array_equal(grey[5, 5], (77, 77, 77))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_the_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    first, second = Image.new("RGB", (20, 20), "white"), Image.new("RGB", (20, 20), "black")
    path = saved(first, tmp_path / f"moving.{suffix}", save_all=True, append_images=[second])
    pixels = load_image(path)
    assert pixels.shape == (20, 20, 3)
    assert pixels.min() > 250


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif"])
def test_truncated_files_are_damaged(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(Image.fromarray(pixels), tmp_path / f"cut.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"cut\.{suffix}") as caught:
        load_image(path)
    single_line(caught.value)


def test_missing_empty_folder_and_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_image(tmp_path / "none.png")
    (tmp_path / "zero.png").touch()
    with pytest.raises(InputError, match="is empty"):
        load_image(tmp_path / "zero.png")
    with pytest.raises(InputError, match="is a folder"):
        load_image(tmp_path)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(InputError, match="not a picture"):
        load_image(tmp_path / "text.png")


@pytest.mark.parametrize("excess", [1.5, 3.0])  # where Pillow warns, and where it raises
def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, excess: float) -> None:
    path = saved(Image.new("RGB", (100, 100)), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(10_000 / excess))
    with pytest.raises(InputError, match="million pixels; scale it down"):
        load_image(path)


def test_too_small(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is 100x15; both sides need 16 pixels or more"):
        load_image(saved(Image.new("RGB", (100, 15)), tmp_path / "thin.png"))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1080, 1920, (400, 720)), (500, 500, (720, 720)), (1920, 1080, (720, 400)), (1104, 1472, (400, 720))],
)
def test_the_nearest_aspect_ratio_is_chosen(height: int, width: int, expected: tuple[int, int]) -> None:
    assert choose_size(height, width, SIZES_720) == expected


def test_ties_go_to_a_later_entry_only_at_equal_length_error() -> None:
    assert choose_size(100, 100, [(64, 64), (128, 128)]) == (64, 64)  # length errors 36 and 28
    assert choose_size(96, 96, [(64, 64), (128, 128)]) == (128, 128)  # 32 and 32


def test_an_empty_size_table_is_refused() -> None:
    with pytest.raises(InputError, match="size"):
        choose_size(10, 10, [])


@pytest.mark.parametrize(
    ("height", "width"), [(322, 517), (47, 31), (33, 47), (16, 999), (999, 16), (40, 72), (41, 72)]
)
@pytest.mark.parametrize("size", SIZES_720)
def test_a_white_picture_stays_white_to_the_edges(height: int, width: int, size: tuple[int, int]) -> None:
    """No black line where the original truncates (height 322 to 400 gives 399 rows there)."""
    fitted = fit_image(np.full((height, width, 3), 255, dtype=np.uint8), size)
    assert fitted.shape == (1, 3, *size)
    assert fitted.min() > 1 - 1e-5


def test_original_rounding_leaves_the_black_line() -> None:
    white = np.full((322, 560, 3), 255, dtype=np.uint8)
    fitted = fit_image(white, (400, 690), original_rounding=True)
    assert fitted[..., -1, :].max() == -1
    assert fitted[..., :-1, :].min() > 1 - 1e-5


def test_the_centre_is_cropped_without_distortion() -> None:
    """A wide picture with a square in its middle: the square stays square and in the middle."""
    picture = np.zeros((50, 150, 3), dtype=np.uint8)
    picture[20:30, 70:80] = 255
    fitted = fit_image(picture, (100, 100))[0, 0] > 0
    rows, columns = torch.nonzero(fitted, as_tuple=True)
    assert (rows.min().item(), rows.max().item()) == (40, 59)
    assert (columns.min().item(), columns.max().item()) == (40, 59)


@pytest.mark.parametrize(
    ("shape", "multiple", "size"),
    [
        ((480, 832), 16, (480, 832)),
        ((1080, 1920), 16, (480, 848)),
        ((1920, 1080), 16, (848, 480)),
        ((1080, 1920), 32, (480, 832)),
        ((1, 100_000), 16, (16, 199_840)),
    ],
)
def test_a_size_near_a_number_of_pixels_keeps_the_shape(
    shape: tuple[int, int], multiple: int, size: tuple[int, int]
) -> None:
    assert size_near(*shape, 480 * 832, multiple) == size


@pytest.mark.parametrize("size", [(32, 48), (48, 32), (40, 40), (31, 33)])
@pytest.mark.parametrize("shape", [(57, 101), (101, 57), (64, 64), (20, 21)])
def test_the_placement_is_that_of_the_fit(shape: tuple[int, int], size: tuple[int, int]) -> None:
    ramp = np.add.outer(np.arange(shape[0]) * 2, np.arange(shape[1])).astype(np.uint8) // 2
    picture = np.repeat(ramp[..., None], 3, axis=2)
    scaled, (top, left) = placement(*shape, size)
    whole = fit_image(picture, scaled)
    assert torch.equal(fit_image(picture, size), whole[..., top : top + size[0], left : left + size[1]])
