"""The sound: wav2vec2 features per video frame."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from omniavatar.engine.conditions import BringsConditions
from omniavatar.engine.outline import Length
from omniavatar.engine.unit import AudioFile, PipelineUnit, UnitInputs, UnitSettings
from omniavatar.engine.windows import audio_rows
from omniavatar.errors import InputError
from omniavatar.hookspecs import hookimpl
from omniavatar.lazy import functional, np, torch
from omniavatar.media.audio import load_waveform
from omniavatar.media.sound import Soundtrack

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.engine import Engine
    from omniavatar.engine.outline import Outline
    from omniavatar.engine.scopes import Job, Window
    from omniavatar.media.sound import Samples

SAMPLE_RATE = 16000
BEYOND = 60.0
"""Seconds of sound behind the end of the video that are read."""


class Audio(PipelineUnit, BringsConditions):
    """Speech that the mouth follows; it also sets the length of the video.

    Frame 0 is the picture itself; frame n goes with row n-1 of the features. Without an audio the mouth rests and the
    length comes from --seconds.
    """

    name = "audio"
    provides = ("audio_track", "soundtrack", "audio_delay", "audio_rows", "silent_rows")
    nulls: ClassVar = {"audio": {"audio_rows": "silent_rows"}}
    roles = ("audio_encoder",)

    class Settings(UnitSettings):
        silence: float = Field(0.3, ge=0, le=10, description="silence put in front of the audio, seconds")
        frame_count: Literal["exact", "original"] = Field(
            "exact",
            description="'original' counts frames in floating point as the first OmniAvatar program did, and the image "
            "itself on top of --seconds",
        )
        segment: float = Field(
            120, ge=0, description="a longer audio is encoded in overlapping pieces of this length, seconds; 0: never"
        )
        dropped: Literal["zeros", "silence"] = Field(
            "zeros",
            description="what guidance compares with, and training puts in place of an audio that it drops: rows of "
            "zeros, or those of a silent recording; with 'silence' a higher audio scale opens the mouth wider",
        )

    class Inputs(UnitInputs):
        audio: AudioFile | None = Field(None, description="the voice: any audio or video file that ffmpeg reads")

    settings: Settings

    @hookimpl
    def plan_length(self, video: Outline) -> Length | None:
        """As long as the sound, which is read when the job begins."""
        if self._counts_picture and video.frames is not None:
            video.frames += 1  # there the picture itself comes on top of the length that is asked for
        return None if video.inputs(self).audio is None else Length(self._rows_of)

    @property
    def _counts_picture(self) -> bool:
        return self.settings.frame_count == "original"

    def _rows_of(self, job: Job) -> int:
        """How many frames the sound lasts, the picture included; what has been read of it stays in the job."""
        wave = load_waveform(job.inputs(self).audio, SAMPLE_RATE, seconds=heard_seconds(job))
        wave = np.concatenate([np.zeros(round(self.settings.silence * SAMPLE_RATE), wave.dtype), wave])
        job["audio.wave"] = wave
        return 1 + audio_rows(len(wave), SAMPLE_RATE, job.fps, float_ceil=self._counts_picture)

    @hookimpl
    def begin_job(self, job: Job) -> None:
        source: Path | Samples | None = job.inputs(self).audio
        delay = self.settings.silence + 1 / job.fps
        job["audio_delay"] = delay
        job["soundtrack"] = None if source is None else Soundtrack(source, delay)
        job["audio_track"] = None
        job["silent_rows"] = self._silence(job.engine) if self.settings.dropped == "silence" else None
        if source is not None:
            encoder = job.engine.model("audio_encoder")
            job["audio_track"] = AudioTrack(job.pop("audio.wave"), job.fps, encoder, self.settings.segment)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        span, track = window.span, window["audio_track"]
        window["audio_rows"] = None
        if track is not None:
            rows = track.rows(span.start - 1, span.stop - 1, window.job.spans[-1].stop - 1)
            window["audio_rows"] = rows[None].to(window.engine.dtype)

    def _silence(self, engine: Engine) -> Tensor:
        """The row of features in the middle of a silent recording (1 1 feature_dim)."""
        fps, seconds = 25, 2
        track = AudioTrack(np.zeros(seconds * SAMPLE_RATE, np.float32), fps, engine.model("audio_encoder"), 0)
        middle = seconds * fps // 2
        return track.rows(middle, middle + 1, seconds * fps)[None].to(engine.dtype)


def heard_seconds(job: Job) -> float | None:
    """How much of a sound is read for a video whose length is known: `BEYOND` more than it lasts; None for all.

    What is behind the video's end sets the level that the encoder hears the sound at, and little else.
    """
    return None if job.frames is None else job.frames / job.fps + BEYOND


class AudioTrack:
    """The features of a whole sound, one row per video frame, encoded when they are asked for.

    wave: the sound at 16 kHz (n,), silence in front included. encoder: `omniavatar.models.wav2vec.AudioEncoder`.
    segment: a longer track is encoded in pieces of this many seconds, each with MARGIN seconds of sound on both sides,
    so that memory does not grow with the length; 0 encodes any length in one pass.
    """

    MARGIN = 4.0

    def __init__(self, wave: np.ndarray, fps: int, encoder: Any, segment: float) -> None:
        if len(wave) == 0:
            raise InputError("the sound has no samples; give one that lasts at least one frame")
        from omniavatar.models.wav2vec import normalize  # imports transformers, which takes seconds

        self.wave = normalize(torch.from_numpy(wave))
        self.fps = fps
        self.encoder = encoder
        self.segment_rows = round(segment * fps)
        self._pieces: dict[int, Tensor] = {}

    def rows(self, start: int, stop: int, total: int) -> Tensor:
        """Rows [start, stop) of `total` (stop-start, feature_dim), float32; row -1, in front of the sound, is zero."""
        parts = [torch.zeros(max(0, -start), self.encoder.feature_dim, device=self._device)]
        position = max(0, start)
        size = self.segment_rows if 0 < self.segment_rows < total else total
        while position < stop:
            index = position // size
            end = min(stop, (index + 1) * size)
            piece = self._encoded(index, size, total)
            parts.append(piece[position - index * size : end - index * size])
            position = end
        return torch.cat(parts)

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.encoder.parameters()).device
        return device

    def _encoded(self, index: int, size: int, total: int) -> Tensor:
        """Piece `index` of `size` rows; it and the one before are kept, since windows ask in order and overlap."""
        if index not in self._pieces:
            margin = round(self.MARGIN * self.fps)
            begin, end = index * size, min((index + 1) * size, total)
            first, last = max(0, begin - margin), min(end + margin, total)
            features = self.encoder(self._samples(first, last), last - first)[0]
            self._pieces = {key: piece for key, piece in self._pieces.items() if key == index - 1}
            self._pieces[index] = features[begin - first : end - first].clone()
        return self._pieces[index]

    def _samples(self, first: int, last: int) -> Tensor:
        """The sound of rows [first, last) (1 n), zeros after its end."""
        begin, end = (row * SAMPLE_RATE // self.fps for row in (first, last))
        wave = self.wave[begin:end]
        return functional.pad(wave, (0, end - begin - len(wave)))[None].to(self._device)
