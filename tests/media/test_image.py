"""Pictures in: every mode becomes upright 8-bit RGB, every size fits, every damage is one line."""

from __future__ import annotations

from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import Tensor

from omniavatar.errors import InputError
from omniavatar.media.image import choose_size, fit_image, image_input, load_image, placement, resized, size_near
from tests.media.samples import single_line
from tests.media.samples_icc import rgb_profile

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


# What is in memory, and what a file says about how it is to be shown


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_pictures_in_memory_are_those_of_a_file(tmp_path: Path) -> None:
    pixels = noise(24, 32, 3)
    image = Image.fromarray(pixels)
    path = saved(image, tmp_path / "a.png")
    tensor = torch.from_numpy(pixels)
    with open(path, "rb") as file:
        given = [
            *(
                path,
                str(path),
                path.read_bytes(),
                bytearray(path.read_bytes()),
                file,
                BytesIO(path.read_bytes()),
                image,
            ),
            *(pixels, pixels.transpose(2, 0, 1), pixels / 255, tensor, tensor.permute(2, 0, 1), tensor / 255),
            *((tensor.double() / 255).requires_grad_(), np.asarray(image)),
        ]
        for value in given:
            np.testing.assert_array_equal(load_image(value), pixels, err_msg=str(type(value)))
            np.testing.assert_array_equal(load_image(image_input(value)), pixels)
            assert load_image(value).flags.writeable
        assert file.tell() == 0


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1)])
def test_greys_in_memory(shape: tuple[int, ...]) -> None:
    grey = noise(*shape)
    for value in (grey, grey / 255, torch.from_numpy(grey)):
        np.testing.assert_array_equal(load_image(value), np.broadcast_to(grey.reshape(20, 30, 1), (20, 30, 3)))


def test_what_is_transparent_in_memory_is_laid_on_white() -> None:
    pixels = np.dstack([noise(20, 30, 3), np.zeros((20, 30), np.uint8)])
    assert (load_image(pixels) == 255).all()
    assert (load_image(torch.from_numpy(pixels / 255).permute(2, 0, 1)) == 255).all()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.zeros(3, 512), r"^image: .*, or an array or tensor \(h w 3\), not Tensor \(3, 512\) float32$"),
        (torch.zeros(1, 3, 64, 64), r"not Tensor \(1, 3, 64, 64\) float32$"),
        (np.zeros((64, 64, 2), np.uint8), r"not ndarray \(64, 64, 2\) uint8$"),
        (np.zeros((64, 64, 3), np.int64), "pixels are uint8, or float from 0 to 1, not int64"),
        (np.full((64, 64, 3), 255.0), "pixels of float64 go from 0 to 1, these from 255 to 255"),
        (np.full((64, 64, 3), np.nan), "these from nan to nan"),
        (np.zeros((8, 64, 3), np.uint8), "is 64x8; both sides need 16 pixels or more"),
        (5, "not int$"),
        ([], "not list$"),
        (b"", "is empty"),
        (BytesIO(), "is empty"),
        (StringIO("x"), "open the file with mode 'rb'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "is not a picture that Pillow can read; try PNG"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "it is HEIC, as phones store photographs; export it as JPEG"),
        ("", "the path is empty"),
        (Path(), "the path is empty"),
        ("~/no-such-picture.png", "'~/no-such-picture.png' does not exist"),
        (Image.new("L", (10_000, 9_000)), "more than 89 million pixels"),
        (Image.new("L", (100_000, 16)), "is 100000x16; one side may be 100 times as long as the other at most"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_what_is_no_picture_is_one_line(value: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        load_image(value)
    assert len(single_line(caught.value)) < 200


def test_home_and_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(Image.new("RGB", (20, 20), "red"), tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    for path in ("~/a.png", Path("~/link.png")):
        assert load_image(path)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize(("stored", "seen"), [((186, 149, 121), (200, 150, 120)), ((112, 179, 72), (60, 180, 60))])
def test_colour_profiles_are_applied(kind: str, stored: tuple[int, ...], seen: tuple[int, ...]) -> None:
    quality = {} if kind == "PNG" else {"quality": 100}
    content = encoded(Image.new("RGB", (32, 32), stored), kind, icc_profile=rgb_profile(), **quality)
    np.testing.assert_allclose(load_image(content)[16, 16], seen, atol=3)
    if kind in ("PNG", "WEBP"):
        clear = encoded(Image.new("RGBA", (32, 32), (*stored, 255)), kind, icc_profile=rgb_profile(), **quality)
        np.testing.assert_allclose(load_image(clear)[16, 16], seen, atol=3)


def test_a_profile_of_srgb_or_a_bad_one_changes_nothing() -> None:
    pixels = noise(64, 64, 3)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"nonsense" * 40):
        given = load_image(encoded(Image.fromarray(pixels), icc_profile=profile))
        assert np.abs(given.astype(int) - pixels).max() <= 1


def test_an_extreme_shape_is_cropped_before_it_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaled first it would be 3 GB."""
    picture = np.zeros((16, 100_000, 3), np.uint8)
    picture[:, 50_000 - 4 : 50_000 + 4] = 255
    sizes: list[int] = []

    def noted(image: np.ndarray, size: tuple[int, int]) -> Tensor:
        sizes.append(size[0] * size[1])
        return resized(image, size)

    monkeypatch.setattr("omniavatar.media.image.resized", noted)
    fitted = fit_image(picture, (400, 400))
    assert max(sizes) <= 400 * 1600
    assert fitted.shape == (1, 3, 400, 400)
    assert fitted[0, 0, 200, 200] == 1
    assert fitted[0, 0, 200, 50] == -1
