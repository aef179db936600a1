"""The sound: which row drives which frame, how long the video is, and that length costs no memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from omniavatar.checkpoints import Bundle
from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.run import Result
from omniavatar.errors import InputError, PlanError
from omniavatar.media.audio import load_waveform
from omniavatar.media.sound import Soundtrack
from omniavatar.models.wav2vec import normalize
from omniavatar.testing import FakeAudioEncoder, GivenModels
from omniavatar.units import Audio
from omniavatar.units.audio import AudioTrack
from tests.media.samples import write_wav
from tests.models.networks import relative_error
from tests.scenes import Scene, denoising_units, fake_engine, fake_models, request

ROW = 640  # samples of a row at 25 fps


def staircase(rows: int) -> np.ndarray:
    """A sound whose row n has the level 0.01 n: (samples,) float32."""
    return np.repeat(np.arange(rows, dtype=np.float32) * 0.01, ROW)


def row_values(rows: int, silence: float = 0.0) -> list[float]:
    """What FakeAudioEncoder makes of `staircase`: one number a row, with rows of silence in front."""
    wave = np.concatenate([np.zeros(round(silence * 16000), np.float32), staircase(rows)])
    return normalize(torch.from_numpy(wave))[::ROW].tolist()


def run(
    sound: Any,
    *,
    models: GivenModels | None = None,
    seconds: float | None = None,
    fps: int = 25,
    **settings: Any,
) -> tuple[Result, Scene]:
    scene = Scene(texts=(0.0, 0.0))
    engine = fake_engine([scene, Audio(**{"silence": 0, **settings}), *denoising_units()], models=models)
    inputs = {} if sound is None else {"audio": sound}
    return engine.generate(request(seconds, inputs=inputs, fps=fps)), scene


@pytest.fixture
def stairs(tmp_path: Path) -> Path:
    """12 rows of sound, so 13 frames in two windows."""
    return write_wav(tmp_path / "stairs.wav", staircase(12), 16000)


# Rows and frames


def test_row_n_minus_1_drives_frame_n(stairs: Path) -> None:
    result, scene = run(stairs)
    rows = row_values(12)
    assert result.frames == 13
    first, second = (window["audio_rows"][0, :, 0].tolist() for window in scene.windows)
    assert first == pytest.approx([0.0, *rows[:8]], abs=1e-3)
    assert second == pytest.approx(rows[3:], abs=1e-3)


def test_silence_in_front_moves_the_rows(stairs: Path) -> None:
    result, scene = run(stairs, silence=0.16)
    rows = row_values(12, silence=0.16)
    assert result.frames == 17
    assert scene.windows[0]["audio_rows"][0, 1:, 0].tolist() == pytest.approx(rows[:8], abs=1e-3)


@pytest.mark.parametrize(("silence", "fps"), [(0, 25), (0.3, 25), (0.3, 30)])
def test_the_sound_of_the_file_starts_one_frame_after_the_silence(stairs: Path, silence: float, fps: int) -> None:
    _, scene = run(stairs, silence=silence, fps=fps)
    window = scene.windows[0]
    assert window["audio_delay"] == silence + 1 / fps
    assert window["soundtrack"] == Soundtrack(stairs, delay_seconds=silence + 1 / fps)


@pytest.mark.parametrize("seconds", [0.2, 5])
def test_no_more_is_read_than_the_video_lasts_and_what_sets_its_level(seconds: float) -> None:
    """A minute behind the end of the video."""
    result, scene = run((np.ones(200 * 16000, np.float32), 16000), seconds=seconds)
    assert len(scene.windows[0]["audio_track"].wave) == result.frames * 640 + 60 * 16000


def test_the_sound_is_encoded_once_whatever_the_number_of_windows(stairs: Path) -> None:
    models = fake_models()
    _, scene = run(stairs, models=models)
    assert len(scene.windows) == 2
    assert models.networks["audio_encoder"].lengths == [12], "one pass for the whole sound"


# Lengths


def test_without_a_sound_there_are_no_rows_and_the_request_sets_the_length() -> None:
    result, scene = run(None, seconds=0.44)
    assert result.frames == 11
    assert scene.windows[0]["audio_track"] is None
    assert [window["audio_rows"] for window in scene.windows] == [None, None]


def test_what_dropped_sounds_are_replaced_by(stairs: Path, tiny_models: Bundle) -> None:
    """Zeros, or the row of a long silence, which an encoder with edges makes in its middle."""
    assert run(stairs)[1].windows[0]["silent_rows"] is None
    encoder = tiny_models.load("audio_encoder", device="cpu", dtype=torch.float32)
    _, scene = run(stairs, models=fake_models(audio_encoder=encoder), dropped="silence")
    expected = encoder(torch.zeros(1, 100 * ROW), 100)[:, 50:51]
    for window in scene.windows:
        assert relative_error(window["silent_rows"], expected) < 1e-3
    assert relative_error(scene.windows[0]["audio_rows"][:, 5:6], expected) > 1e-2


def test_without_sound_and_length_it_is_said_what_to_give() -> None:
    with pytest.raises(InputError, match="no audio is given, so the length of the video is unknown; give one"):
        run(None)


@pytest.mark.parametrize(("seconds", "frames"), [(0.2, 5), (0.52, 13), (5.0, 13), (0.001, 1)])
def test_a_length_asked_for_cuts_the_sound_but_does_not_stretch_it(stairs: Path, seconds: float, frames: int) -> None:
    result, _ = run(stairs, seconds=seconds)
    assert result.frames == frames


def test_frames_are_counted_exactly_or_as_the_original_did(tmp_path: Path) -> None:
    """7 rows of samples: 7 * 640 / 16000 * 25 is a little more than 7 in floating point."""
    sound = write_wav(tmp_path / "seven.wav", staircase(7), 16000)
    assert run(sound)[0].frames == 8
    assert run(sound, frame_count="original")[0].frames == 9


def test_a_sound_of_any_rate_and_number_of_channels(tmp_path: Path) -> None:
    stereo = np.tile(np.linspace(-0.5, 0.5, 22050, dtype=np.float32)[:, None], (1, 2))
    assert run(write_wav(tmp_path / "stereo.wav", stereo, 44100))[0].frames == 1 + 13  # 12.5 rows, rounded up


def test_a_video_without_sound_is_no_voice(portrait: Path) -> None:
    with pytest.raises(InputError, match=r"portrait\.png"):
        run(portrait)


def test_an_empty_sound_is_refused() -> None:
    with pytest.raises(InputError, match="the sound has no samples"):
        AudioTrack(np.zeros(0, np.float32), 25, FakeAudioEncoder(), 0)


# Long sounds


def in_windows(track: AudioTrack, total: int, window: int = 105, overlap: int = 53) -> Tensor:
    """All rows, asked for as the windows of a video do; most ends of pieces lie where two windows overlap."""
    parts = [track.rows(-1, window - 1, total)]
    for start in range(window - overlap, total - overlap, window - overlap):
        rows = track.rows(start - 1, min(start - 1 + window, total), total)
        parts.append(rows[overlap:])
    return torch.cat(parts)


def test_ten_minutes_are_encoded_in_pieces_of_bounded_length_each_once() -> None:
    total = 600 * 25
    wave = np.sin(np.arange(total * ROW, dtype=np.float32) * 1e-4)
    encoder = FakeAudioEncoder()
    track = AudioTrack(wave, 25, encoder, segment=120)
    rows = in_windows(track, total)
    assert len(encoder.lengths) == 5
    assert max(encoder.lengths) == (120 + 2 * 4) * 25
    assert len(track._pieces) <= 2
    whole = AudioTrack(wave, 25, FakeAudioEncoder(), segment=0).rows(-1, total, total)
    assert rows.shape == whole.shape
    torch.testing.assert_close(rows, whole, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def voice(speech: Path) -> np.ndarray:
    """12 seconds."""
    return np.resize(load_waveform(speech), 12 * 16000)


def test_pieces_are_close_to_one_pass_and_a_track_that_is_not_split_is_exact(
    tiny_models: Bundle, voice: np.ndarray
) -> None:
    """The encoder's group norm and attention see the whole clip, so pieces differ: by 10 % at most, 4 % on average."""
    encoder: Any = tiny_models.load("audio_encoder", device="cpu", dtype=torch.float32)
    with torch.inference_mode():
        whole = AudioTrack(voice, 25, encoder, segment=0).rows(0, 300, 300)
        exact = AudioTrack(voice, 25, encoder, segment=12).rows(0, 300, 300)
        pieces = AudioTrack(voice, 25, encoder, segment=5).rows(0, 300, 300)
        direct = encoder(normalize(torch.from_numpy(voice))[None], 300)[0]
    assert whole.equal(direct)
    assert exact.equal(whole)
    assert not pieces.equal(whole)
    assert relative_error(pieces, whole) < 0.1
    assert float((pieces - whole).norm() / whole.norm()) < 0.04


def test_rows_behind_the_end_of_the_sound_are_silence() -> None:
    track = AudioTrack(staircase(4), 25, FakeAudioEncoder(), segment=0)
    rows = track.rows(2, 8, 8)
    assert (rows[:2] != 0).all()
    assert (rows[2:] == 0).all()


def test_the_row_before_the_sound_is_zero() -> None:
    rows = AudioTrack(staircase(4), 25, FakeAudioEncoder(), segment=0).rows(-1, 4, 4)
    assert rows.shape == (5, 1)
    assert rows[0] == 0
    assert rows[1] < -1


@pytest.mark.parametrize("settings", ["silence=-1", "silence=11", "segment=-1", "frame_count=round"])
def test_settings_are_checked(settings: str, catalog: Catalog) -> None:
    with pytest.raises(PlanError, match="unit 'audio': "):
        build_plan(f"audio({settings})", catalog)
