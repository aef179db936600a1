"""How a file says that its pictures are to be shown: pixel shape, fields, colours, times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from omniavatar.errors import InputError
from omniavatar.media import ffmpeg
from omniavatar.media.timeline import probe_timeline, read_frames
from omniavatar.media.video import probe_video, read_video
from tests.media.samples import single_line

BARS = "smptehdbars=s=64x48:r=25:d=0.4"
USUAL = "format=yuv420p,setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
TO_HDR = f"{USUAL},zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt2020:m=bt2020nc:npl=203:r=tv"


def made(path: Path, picture: str, filters: str, *options: str, codec: str = "ffv1") -> Path:
    """A short video of a test picture of ffmpeg's."""
    ffmpeg.run(["-f", "lavfi", "-i", picture, "-vf", filters, "-c:v", codec, *options, ffmpeg.url(path)])
    return path


def read_both_ways(path: Path, size: tuple[int, int]) -> Sequence[np.ndarray]:
    """The first frames as a video to follow and as a training clip."""
    return read_video(path, fps=25, size=size)[:2], read_frames(probe_timeline(path), 0, 2, fps=25, size=size)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize(("shape", "size"), [("2", (48, 128)), ("1/2", (48, 32)), ("64/45", (48, 91))])
def test_pixels_that_are_not_square(tmp_path: Path, suffix: str, shape: str, size: tuple[int, int]) -> None:
    codec = "ffv1" if suffix == "mkv" else "libx264"
    path = made(tmp_path / f"a.{suffix}", BARS, f"setsar={shape}", codec=codec)
    info = probe_video(path)
    assert (info.height, info.width) == probe_timeline(path).size == size
    assert read_video(path).shape[1:] == (*size, 3)


def test_a_square_of_a_stretched_video_is_its_middle(tmp_path: Path) -> None:
    """128x48 as shown: 32 columns at either side are cut off, which are 16 stored ones."""
    path = made(tmp_path / "a.mkv", "color=black:s=64x48:r=25:d=0.4", "drawbox=x=16:w=32:color=white:t=fill,setsar=2")
    for frames in read_both_ways(path, (48, 64)):
        assert frames[:, :, 4:-4].min() > 200


def test_stretched_pixels_of_a_turned_video(tmp_path: Path) -> None:
    path = made(tmp_path / "a.mp4", BARS, "setsar=2", codec="libx264")
    ffmpeg.run(["-display_rotation", "90", "-i", ffmpeg.url(path), "-c", "copy", ffmpeg.url(tmp_path / "turned.mp4")])
    info = probe_video(tmp_path / "turned.mp4")
    assert (info.height, info.width) == probe_timeline(tmp_path / "turned.mp4").size == (128, 48)


def combs(frame: np.ndarray) -> float:
    """How much of a frame (h w 3) differs from the rows above and below."""
    rows = frame.astype(int).mean(axis=2)
    return float((np.abs(2 * rows[1:-1] - rows[:-2] - rows[2:]) > 250).mean())


def test_fields_become_whole_frames(tmp_path: Path) -> None:
    """A white bar that moves between the two fields of a frame leaves combs: rows that differ from both neighbours."""
    moving = "color=black:s=64x48:r=50:d=0.4,format=gray,geq=lum='255*between(X,3*N,3*N+15)'"
    path = made(
        *(tmp_path / "a.mp4", moving, "tinterlace=interleave_top,setfield=tff,format=yuv420p"),
        *("-flags", "+ildct+ilme", "-x264opts", "tff=1"),
        codec="libx264",
    )
    assert probe_video(path).looks.interlaced
    assert probe_video(path).frames_at(25) == len(read_video(path, fps=25)) == 10
    stored = read_video(made(tmp_path / "b.mkv", moving, "tinterlace=interleave_top,setfield=prog"))
    for frames in read_both_ways(path, (48, 64)):
        assert combs(frames[1]) < 0.01 < combs(stored[1])


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hdr_is_toned_down(tmp_path: Path, transfer: str) -> None:
    usual = made(tmp_path / "usual.mkv", BARS, USUAL)
    hdr = made(tmp_path / "hdr.mkv", BARS, f"{TO_HDR}:t={transfer},format=yuv444p10le")
    assert probe_video(hdr).looks.transfer == transfer
    for ours, expected in zip(read_both_ways(hdr, (48, 64)), read_both_ways(usual, (48, 64)), strict=True):
        assert np.abs(ours.astype(int) - expected).mean() < 12


def test_an_ffmpeg_without_the_filters_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hdr = made(tmp_path / "hdr.mkv", BARS, f"{TO_HDR}:t=smpte2084,format=yuv444p10le")
    monkeypatch.setattr("omniavatar.media.looks._has_filters", lambda *names: False)
    assert len(read_video(hdr, size=(48, 64))) == 10
    assert "hdr.mkv' has the colours of HDR and will look pale: this ffmpeg has no zscale and tonemap" in caplog.text


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "gif", "webp", "ts"])
@pytest.mark.parametrize("fps", [25, 16, 30])
def test_the_length_of_a_video_of_variable_rate(tmp_path: Path, suffix: str, fps: int) -> None:
    """Five pictures a second, then twenty: fewer are stored than its rate says."""
    codec = {"mkv": "ffv1", "gif": "gif", "webp": "libwebp_anim"}.get(suffix, "libx264")
    slow_then_fast = "testsrc2=s=64x48:r=20:d=2,select='not(mod(n,4))+gt(t,1)'"
    path = made(tmp_path / f"a.{suffix}", slow_then_fast, "null", "-fps_mode", "vfr", codec=codec)
    length = probe_video(path).frames_at(fps)
    assert length == len(read_video(path, fps=fps))
    assert length == pytest.approx(2 * fps, abs=1)


@pytest.mark.parametrize("size", ["8192x64", "64x8192"])
def test_extreme_shapes(tmp_path: Path, size: str) -> None:
    path = made(tmp_path / "a.mkv", f"color=s={size}:r=25:d=0.08", "null")
    for probe in (probe_video, probe_timeline):
        with pytest.raises(InputError, match=f"is {size}; one side may be 100 times as long as the other") as caught:
            probe(path)
        single_line(caught.value)
