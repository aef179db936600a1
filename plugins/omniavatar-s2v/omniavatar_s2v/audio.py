"""The sound: hidden states of wav2vec2 per video frame, encoded once per clip, heard by the tokens of their frame."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from omniavatar.sdk import (
    AudioFile,
    CheckpointError,
    IdleInSteps,
    InputError,
    Length,
    PipelineUnit,
    Soundtrack,
    UnitInputs,
    UnitSettings,
    audio_rows,
    heard_seconds,
    hookimpl,
    load_waveform,
    np,
    torch,
)
from omniavatar_s2v.clips import LEAD
from omniavatar_s2v.shared import FOR_S2V

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.sdk import Branch, Forward, Job, Outline, Window

log = logging.getLogger(__name__)

SAMPLE_RATE = 16000
FEATURE_RATE = 30
"""Rows a second to which hidden states are resampled before each video frame takes the nearest."""
TRAINED_FPS = 16

HEARS = "S2V hears the sound through s2v-audio"


class S2VAudio(PipelineUnit, IdleInSteps):
    """Speech that the mouth follows; it also sets the length of the video.

    Frame n of the video goes with the sound at n / fps seconds. Without a sound the mouth rests and the length comes
    from --seconds. Guidance branches that drop the condition "audio" hear features of zeros.
    """

    name = "s2v-audio"
    provides = ("audio_track", "soundtrack", "audio_delay", "audio_speech", "audio_silence")
    conflicts: ClassVar = {"transformer": FOR_S2V, "audio": HEARS, "audio-adapter": HEARS}
    roles = ("audio_encoder", "s2v_adapter")
    idle_in_steps = ("audio_encoder",)

    class Settings(UnitSettings):
        silence: float = Field(0, ge=0, le=10, description="silence put in front of the sound, seconds")
        segment: float = Field(
            60, ge=0, description="a longer sound is encoded in overlapping pieces of this length, seconds; 0: never"
        )

    class Inputs(UnitInputs):
        audio: AudioFile | None = Field(None, description="the voice, any sound or video file that ffmpeg reads")

    settings: Settings

    @hookimpl
    def plan_length(self, video: Outline) -> Length | None:
        """As long as the sound, which is read when the job begins."""
        return None if video.inputs(self).audio is None else Length(self._frames_of)

    def _frames_of(self, job: Job) -> int:
        """How many frames the sound lasts; what has been read of it stays in the job."""
        wave = load_waveform(job.inputs(self).audio, SAMPLE_RATE, seconds=heard_seconds(job))
        wave = np.concatenate([np.zeros(round(self.settings.silence * SAMPLE_RATE), wave.dtype), wave])
        job["s2v-audio.wave"] = wave
        return audio_rows(len(wave), SAMPLE_RATE, job.fps)

    @hookimpl
    def begin_job(self, job: Job) -> None:
        if job.fps != TRAINED_FPS:
            log.warning("S2V was trained at %d frames a second, the video has %d", TRAINED_FPS, job.fps)
        source = job.inputs(self).audio
        job["audio_delay"] = self.settings.silence
        job["soundtrack"] = None if source is None else Soundtrack(source, self.settings.silence)
        job["audio_track"] = None
        if source is None:
            return
        wave = job.pop("s2v-audio.wave")
        lead = np.zeros(round(LEAD * SAMPLE_RATE / job.fps), wave.dtype)
        encoder = job.engine.model("audio_encoder")
        job["audio_track"] = SpeechTrack(np.concatenate([lead, wave]), encoder, self.settings.segment)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        adapter, span, track = window.engine.model("s2v_adapter"), window.span, window["audio_track"]
        frames = range(span.start + span.given + LEAD, span.stop + LEAD)
        shape = (len(frames), adapter.audio_layers, adapter.audio_dim)
        silence = torch.zeros(1, *shape, device=window.engine.device)
        window["audio_silence"] = window["audio_speech"] = adapter.speech(silence)
        if track is not None:
            features = track.rows([feature_row(frame, window.job.fps) for frame in frames])
            if features.shape != shape:
                raise CheckpointError(
                    f"the audio encoder gives {features.shape[1]} hidden states of {features.shape[2]} values and the "
                    f"S2V transformer takes {shape[1]} of {shape[2]}; give the wav2vec2 model that belongs to it"
                )
            window["audio_speech"] = adapter.speech(features[None].to(window.engine.device))

    @hookimpl
    def after_block(self, forward: Forward, index: int) -> None:
        adapter = forward.engine.model("s2v_adapter")
        if index in adapter.inject_layers:
            speech = forward.memory.once("s2v-audio.speech", lambda: forward.stacked(speech_of))
            here = forward.frame_tokens(forward.window.given_latent_frames)
            if here is not None:
                x = forward.x[:, here.tokens]
                x = x + adapter.heard(adapter.inject_layers.index(index), x, speech[:, here.frames])
                forward.x = forward.x.index_copy(1, here.tokens.flatten(), x.flatten(1, 2))


def speech_of(branch: Branch) -> Tensor:
    """What the tokens of a branch hear (1 t k+2 d)."""
    speech: Tensor = branch["audio_silence" if branch.drops("audio") else "audio_speech"]
    return speech


def feature_row(frame: int, fps: int) -> int:
    """The row that is nearest in time to a video frame, the even one of two; frames are those of the sound."""
    return round(frame * FEATURE_RATE / fps)


class SpeechTrack:
    """The hidden states of a whole sound, resampled to 30 rows a second, encoded when they are asked for.

    wave: the sound at 16 kHz (n,). encoder: `omniavatar.models.wav2vec.AudioEncoder`.
    segment: a longer track is encoded in pieces of this many seconds, each with MARGIN seconds of sound on both sides,
    so that memory does not grow with the length; 0 encodes any length in one pass.
    """

    MARGIN = 4.0

    def __init__(self, wave: np.ndarray, encoder: Any, segment: float) -> None:
        from omniavatar.sdk import normalize_audio  # imports transformers, which takes seconds

        config = encoder.model.config
        self.encoder = encoder
        self.hop = prod(config.conv_stride)
        self.reach = 1 + sum(
            (kernel - 1) * prod(config.conv_stride[:layer]) for layer, kernel in enumerate(config.conv_kernel)
        )
        self.states = (len(wave) - self.reach) // self.hop + 1
        self.length = self.states * FEATURE_RATE * self.hop // SAMPLE_RATE
        if self.length < 1:
            raise InputError(f"the sound has {len(wave)} samples; give one of a tenth of a second or more")
        self.wave = normalize_audio(torch.from_numpy(wave))
        self.piece = round(segment * SAMPLE_RATE / self.hop) or self.states
        self.margin = round(self.MARGIN * SAMPLE_RATE / self.hop)
        self._pieces: dict[int, Tensor] = {}

    def rows(self, indices: Sequence[int]) -> Tensor:
        """Rows (len(indices) layers width) in float32, zeros for those outside the track.

        Row i lies between two hidden states; the first and the last row are the first and the last of those.
        """
        index = torch.tensor(indices)
        is_inside = (index >= 0) & (index < self.length)
        step = (self.states - 1) / max(1, self.length - 1)
        position = index.clamp(0, self.length - 1).double() * step
        before = position.floor().long().clamp(max=max(0, self.states - 2))
        first, last = int(before.min()), min(int(before.max()) + 2, self.states)
        states = self.hidden_states(first, last)
        weight = (position - before).float().to(states.device)[:, None, None]
        before = (before - first).to(states.device)
        after = (before + 1).clamp(max=len(states) - 1)
        rows = torch.lerp(states[before], states[after], weight)
        inside: Tensor = rows * is_inside.to(states.device)[:, None, None]
        return inside

    def hidden_states(self, start: int, stop: int) -> Tensor:
        """Hidden states [start, stop) at the encoder's own rate (stop-start layers width)."""
        parts = []
        for index in range(start // self.piece, -(-stop // self.piece)):
            begin = index * self.piece
            parts.append(self._encoded(index)[max(0, start - begin) : stop - begin])
        return torch.cat(parts)

    def _encoded(self, index: int) -> Tensor:
        """Piece `index`; it and the one before are kept, since windows ask in order and may begin in the last one."""
        if index not in self._pieces:
            begin, end = index * self.piece, min((index + 1) * self.piece, self.states)
            first, last = max(0, begin - self.margin), min(end + self.margin, self.states)
            wave = self.wave[first * self.hop : (last - 1) * self.hop + self.reach]
            sound = wave[None].to(next(self.encoder.parameters()).device)
            layers = self.encoder.hidden_states(self.encoder.conv_features(sound))
            states = torch.stack([layer[0, begin - first : end - first] for layer in layers], dim=1)
            self._pieces = {key: piece for key, piece in self._pieces.items() if key == index - 1}
            self._pieces[index] = states.float()
        return self._pieces[index]
