"""The sound: which row drives which frame, what enters which block, and that length costs no memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from omniavatar.checkpoints import Bundle
from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.scopes import Forward, Job
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import InputError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.media.audio import load_waveform
from omniavatar.models.audio_adapter import AudioAdapter
from omniavatar.models.wav2vec import normalize
from omniavatar.testing import FakeAudioAdapter, FakeAudioEncoder, GivenModels
from omniavatar.units import Audio
from omniavatar.units.audio import AudioTrack, framed
from tests.media.samples import write_wav
from tests.models.networks import randomized, relative_error
from tests.scenes import Scene, denoising_units, fake_engine, fake_models, request, video_of

ROW = 640  # samples of a row at 25 fps


def staircase(rows: int) -> np.ndarray:
    """A sound whose row n has the level 0.01 n: (samples,) float32."""
    return np.repeat(np.arange(rows, dtype=np.float32) * 0.01, ROW)


def row_values(rows: int, silence: float = 0.0) -> list[float]:
    """What FakeAudioEncoder makes of `staircase`: one number a row, with rows of silence in front."""
    wave = np.concatenate([np.zeros(round(silence * 16000), np.float32), staircase(rows)])
    return normalize(torch.from_numpy(wave))[::ROW].tolist()


class Look:
    """Keeps what is added to the tokens before every block, by branch and block."""

    def __init__(self) -> None:
        self.added: dict[tuple[str, int], list[Tensor]] = {}

    @hookimpl(wrapper=True)
    def before_block(self, forward: Forward, index: int) -> Iterator[None]:
        before = forward.x
        yield
        self.added.setdefault((forward.branches[0].name, index), []).append(forward.x - before)


def run(
    sound: Path | None,
    *units: PipelineUnit,
    models: GivenModels | None = None,
    seconds: float | None = None,
    scale: float = 1,
    fps: int = 25,
    **settings: Any,
) -> tuple[Job, Scene, Look]:
    scene, look = Scene(texts=(0.0, 0.0)), Look()
    plan = [scene, Audio(**{"silence": 0, **settings}), *denoising_units(scale=scale), *units]
    engine = fake_engine(plan, models=models, observers=[look])
    inputs = {} if sound is None else {"audio": sound}
    return engine.generate(request(seconds, inputs=inputs, fps=fps)), scene, look


@pytest.fixture
def stairs(tmp_path: Path) -> Path:
    """12 rows of sound, so 13 frames in two windows."""
    return write_wav(tmp_path / "stairs.wav", staircase(12), 16000)


# Rows and frames


def test_row_n_minus_1_drives_frame_n(stairs: Path) -> None:
    """FakeAudioAdapter shows the row of the last frame of each latent frame: frames 0, 4, 8 of the window."""
    job, scene, _ = run(stairs)
    rows = row_values(12)
    assert job.frames == 13
    first, second = (window["audio_residuals"][0, 0, :, 0].tolist() for window in scene.windows)
    assert first == pytest.approx([0.0, rows[3], rows[7], 0.0], abs=1e-3)
    assert second == pytest.approx([rows[3], rows[7], rows[11], 0.0], abs=1e-3)


def test_silence_in_front_moves_the_rows(stairs: Path) -> None:
    job, scene, _ = run(stairs, silence=0.16)
    rows = row_values(12, silence=0.16)
    assert job.frames == 17
    assert scene.windows[0]["audio_residuals"][0, 0, 2, 0] == pytest.approx(rows[7], abs=1e-3)


@pytest.mark.parametrize(("silence", "fps"), [(0, 25), (0.3, 25), (0.3, 30)])
def test_the_sound_of_the_file_starts_one_frame_after_the_silence(stairs: Path, silence: float, fps: int) -> None:
    job, *_ = run(stairs, silence=silence, fps=fps)
    assert job["audio_delay"] == silence + 1 / fps


def test_the_sound_enters_its_frames_before_its_blocks(stairs: Path) -> None:
    _, _, look = run(stairs)
    rows = row_values(12)
    per_frame = torch.tensor([0.0, rows[3], rows[7]]).repeat_interleave(4)  # 2x2 tokens a frame
    expected = per_frame[None, :, None].expand(1, 12, 4)
    for index in range(4):
        added = look.added["positive", index][0]
        torch.testing.assert_close(added, expected if index in (1, 2) else torch.zeros_like(added), atol=1e-3, rtol=0)


def test_a_branch_without_sound_hears_rows_of_zeros(stairs: Path) -> None:
    adapter = randomized(AudioAdapter(audio_in_dim=1, audio_hidden_size=6, dim=4, num_layers=6))
    _, scene, look = run(stairs, models=fake_models(audio_adapter=adapter), scale=3)
    silent = adapter(torch.zeros(1, 9, 1))
    assert list(adapter.entry_blocks) == [2, 3]
    for position, index in enumerate(adapter.entry_blocks):
        expected = silent[:, position].repeat_interleave(4, dim=1)
        assert expected.abs().max() > 0.1, "the layers make something of silence"
        torch.testing.assert_close(look.added["negative", index][0], expected, atol=1e-5, rtol=0)
        assert not torch.allclose(look.added["positive", index][0], expected, atol=1e-2)
    torch.testing.assert_close(scene.windows[0]["audio_silence"], framed(silent), atol=1e-5, rtol=0)


def test_the_sound_is_projected_once_per_window_whatever_the_number_of_calls(stairs: Path) -> None:
    models = fake_models()
    job, *_ = run(stairs, models=models, scale=3)
    adapter, encoder, dit = (models.networks[role] for role in ("audio_adapter", "audio_encoder", "dit"))
    assert dit.calls == 2 * 2 * len(job.spans)
    assert adapter.calls == 2 * len(job.spans)
    assert encoder.lengths == [12], "one pass for the whole sound"


class ExtraToken(PipelineUnit):
    """Puts a token that belongs to no frame in front, and takes it off again."""

    name = "extra-token"

    @hookimpl
    def embed(self, forward: Forward) -> None:
        forward.x = torch.cat([torch.full_like(forward.x[:, :1], 9.0), forward.x], dim=1)
        forward.frame_index = torch.cat([torch.tensor([-1]), forward.frame_index])

    @hookimpl
    def unembed(self, forward: Forward) -> None:
        forward.x = forward.x[:, 1:]


def test_a_token_of_no_frame_hears_nothing(stairs: Path) -> None:
    _, plain, _ = run(stairs)
    _, extended, look = run(stairs, ExtraToken())
    for index in (1, 2):
        added = look.added["positive", index][0]
        assert (added[:, 0] == 0).all()
        assert (added[:, -1] != 0).all()
    assert video_of(extended).equal(video_of(plain))


# Lengths


def test_without_a_sound_the_mouth_rests_and_the_request_sets_the_length() -> None:
    job, scene, _ = run(None, seconds=0.4)
    assert job.frames == 11
    assert job["audio_track"] is None
    for window in scene.windows:
        assert window["audio_residuals"] is window["audio_silence"]
        assert window["audio_residuals"].shape == (1, 2, 3 + 1, 1)


def test_without_sound_and_length_it_is_said_what_to_give() -> None:
    with pytest.raises(InputError, match="give one with --seconds, or a sound"):
        run(None)


@pytest.mark.parametrize(("seconds", "frames"), [(0.2, 6), (0.48, 13), (5.0, 13), (0.001, 2)])
def test_a_length_asked_for_cuts_the_sound_but_does_not_stretch_it(stairs: Path, seconds: float, frames: int) -> None:
    job, *_ = run(stairs, seconds=seconds)
    assert job.frames == frames


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


def test_framed_appends_a_frame_of_nothing() -> None:
    residuals = torch.ones(1, 2, 3, 4)
    assert framed(residuals)[:, :, :3].equal(residuals)
    assert (framed(residuals)[:, :, -1] == 0).all()
    assert FakeAudioAdapter()(torch.ones(1, 9, 1)).shape == (1, 2, 3, 1)


@pytest.mark.parametrize("settings", ["silence=-1", "silence=11", "segment=-1", "frame_count=round"])
def test_settings_are_checked(settings: str, catalog: Catalog) -> None:
    with pytest.raises(PlanError, match="unit 'audio': "):
        build_plan(f"audio({settings})", catalog)
