"""Media files made on the spot, with numpy, Pillow and the same ffmpeg."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from omniavatar.media import ffmpeg


def tone(seconds: float, sample_rate: int, *, level: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    """A sine: (samples,) float32."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    return (level * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def noise_burst(seconds: float, sample_rate: int, *, start: float, length: float = 0.1) -> np.ndarray:
    """Silence with one burst of white noise that begins at `start` seconds: (samples,) float32."""
    sound = np.zeros(round(seconds * sample_rate), dtype=np.float32)
    first, count = round(start * sample_rate), round(length * sample_rate)
    sound[first : first + count] = np.random.default_rng(0).uniform(-0.8, 0.8, count)
    return sound


def write_wav(path: Path, sound: np.ndarray, sample_rate: int) -> Path:
    """Write (samples,) or (samples, channels) as 16-bit PCM."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if sound.ndim == 1 else sound.shape[1])
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(np.rint(sound * 32767).astype("<i2").tobytes())
    return path


def write_float_wav(path: Path, sound: np.ndarray, sample_rate: int) -> Path:
    """Write (samples,) as 32-bit float PCM, whatever the values."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(sound.astype("<f4").tobytes())
    form = ["-f", "f32le", "-ar", str(sample_rate), "-ac", "1", "-i", ffmpeg.url(raw)]
    ffmpeg.run([*form, "-c:a", "pcm_f32le", ffmpeg.url(path)])
    return path


def convert(original: Path, path: Path, *options: str) -> Path:
    """Encode a media file anew; the format follows the suffix of `path`."""
    ffmpeg.run(["-i", ffmpeg.url(original), *options, ffmpeg.url(path)])
    return path


def gradient_frames(count: int, height: int, width: int) -> np.ndarray:
    """Frames from dark to bright, so that each differs from its neighbours: (count, height, width, 3) uint8."""
    levels = np.linspace(20, 230, count).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def write_lossless(path: Path, frames: np.ndarray, fps: int = 25) -> Path:
    """Frames (t, height, width, 3) uint8 as a Matroska video that keeps every value."""
    raw = path.with_suffix(".rgb")
    raw.write_bytes(frames.tobytes())
    form = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{frames.shape[2]}x{frames.shape[1]}", "-r", str(fps)]
    ffmpeg.run([*form, "-i", ffmpeg.url(raw), "-c:v", "ffv1", "-pix_fmt", "bgr0", ffmpeg.url(path)])
    return path


def single_line(error: BaseException) -> str:
    """The message of an error, after making sure that it is one line."""
    message = str(error)
    assert message
    assert "\n" not in message
    return message


def numbered_frames(count: int, height: int, width: int) -> np.ndarray:
    """Frames that show their number as eight black or white bars: (count, height, width, 3) uint8."""
    bits = (np.arange(count)[:, None] >> np.arange(8)) & 1
    bars = np.repeat(bits * 200 + 28, width // 8, axis=1).astype(np.uint8)
    return np.broadcast_to(bars[:, None, :, None], (count, height, width, 3)).copy()


def numbers_in(frames: np.ndarray) -> list[int]:
    """The numbers that frames (t, height, width, 3) of `numbered_frames` show, whatever an encoder made of them."""
    bars = np.stack([bar.mean(1) for bar in np.array_split(frames.mean((1, 3)), 8, axis=1)], axis=1)
    return [int(number) for number in (bars > 128) @ (1 << np.arange(8))]
