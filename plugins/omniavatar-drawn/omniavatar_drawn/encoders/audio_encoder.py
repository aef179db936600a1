"""Training a small wav2vec2 to hear what a mouth does, for a transformer that is trained on its features later.

    python -m omniavatar_drawn.encoders.audio_encoder out/audio --minutes 25

writes the Hugging Face folder `out/audio/wav2vec2`, its log and a checkpoint to go on from, and tells how well a linear
function of the features gives the mouth of voices that were not trained on. It needs espeak-ng.

From the features of a row, as the audio unit gives them to the adapter, a linear head reads opening and width of the
mouth (`omniavatar_drawn.faces.mouth`) at the row and at both its neighbours, which makes features smooth in time.
The head is thrown away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import Wav2Vec2Config

from omniavatar.errors import InputError, OmniError
from omniavatar.models.wav2vec import AudioEncoder, normalize
from omniavatar.training.gradients import Batch
from omniavatar.training.trainer import Report, Settings, Trainer
from omniavatar_drawn.encoders.sounds import Recordings, sound
from omniavatar_drawn.faces.mouth import FPS, SAMPLE_RATE, mouth_rows
from omniavatar_drawn.faces.speech import utterance
from omniavatar_drawn.reading.detector import correlation

CONFIG: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "conv_dim": [32, 48, 48, 48, 64, 64, 64],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "vocab_size": 32,
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
}
"""Kernels, strides and norms of wav2vec2-base-960h, everything else smaller."""

HELD_OUT = 1_000_000
"""Utterances from this number on are not trained on."""

_HOP = SAMPLE_RATE // FPS
_WITHOUT_DROPOUT: dict[str, Any] = dict.fromkeys(
    ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "layerdrop"), 0.0
)


class AudioEncoderSettings(BaseModel):
    """On which sounds, and what counts how much."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shortest: float = Field(1.0, ge=0.2, description="seconds of a sound; lengths are spread evenly in their logarithm")
    longest: float = Field(20.0, ge=0.2, description="seconds of a sound")
    seconds: float = Field(32.0, ge=0.2, description="seconds of a micro-batch, about")
    width: float = Field(1.0, ge=0, description="weight of the width of an open mouth; that of its opening is 1")


class AudioEncoderTask:
    """An audio encoder that learns to hear the mouth; see `omniavatar.training.trainer.Task`."""

    def __init__(self, encoder: AudioEncoder, recordings: Recordings, settings: AudioEncoderSettings) -> None:
        if settings.shortest > settings.longest:
            raise InputError(f"the shortest sound, {settings.shortest} s, is longer than the longest")
        self.encoder = encoder.train().requires_grad_(True)
        self.head = nn.Linear(encoder.feature_dim, 3 * 2)
        nn.init.zeros_(self.head.weight)
        self.recordings = recordings
        self.settings = settings

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {**dict(self.encoder.named_parameters(prefix="encoder")), **dict(self.head.named_parameters("head"))}

    def batch(self, draw: torch.Generator) -> Batch:
        """`sounds` (b samples), normalised, and their `mouths` (b rows 2)."""
        settings = self.settings
        random = np.random.default_rng(int(torch.randint(2**62, (), generator=draw)))
        seconds = float(np.exp(random.uniform(np.log(settings.shortest), np.log(settings.longest))))
        samples = round(seconds * FPS) * _HOP
        waves = [sound(self.recordings, samples, random) for _ in range(max(1, round(settings.seconds / seconds)))]
        return {
            "sounds": normalize(torch.from_numpy(np.stack(waves))),
            "mouths": torch.from_numpy(np.stack([mouth_rows(wave) for wave in waves])),
        }

    def loss(self, batch: Batch) -> Tensor:
        features = self.encoder(batch["sounds"], batch["mouths"].shape[1])
        heard = self.head(features).float().unflatten(-1, (3, 2))
        truth = with_neighbours(batch["mouths"])
        error = functional.smooth_l1_loss(heard, truth, beta=0.1, reduction="none")
        opened = (truth[..., 0] / 0.15).clamp(0, 1)
        total: Tensor = error[..., 0].mean() + self.settings.width * (opened * error[..., 1]).mean()
        return total

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """The encoder as a Hugging Face folder `wav2vec2`, in half precision."""
        prefix = "encoder.model."
        tensors = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        write_folder(folder / "wav2vec2", self.encoder.model.config, tensors)


def with_neighbours(mouths: Tensor) -> Tensor:
    """Rows (b t 2) with the row before and the row after each, (b t 3 2); the ends are their own neighbours."""
    padded = torch.cat([mouths[:, :1], mouths, mouths[:, -1:]], dim=1)
    return torch.stack([padded[:, :-2], padded[:, 1:-1], padded[:, 2:]], dim=2)


def new_encoder(config: Mapping[str, Any], seed: int = 0) -> AudioEncoder:
    """An encoder with random weights, without dropout.

    The first layer's norm takes the loudness out of a sound. Its epsilon is a yardstick for channels of small weights:
    they tell a track that is too quiet for a voice from others. These weights are kept as they are drawn.
    """
    torch.manual_seed(seed)
    encoder = AudioEncoder(Wav2Vec2Config(**config, **_WITHOUT_DROPOUT))
    first = encoder.model.feature_extractor.conv_layers[0].conv.weight
    quiet = len(first) // 8
    with torch.no_grad():
        first[:quiet] *= 0.003 / first[:quiet].flatten(1).norm(dim=1)[:, None, None]
    first.register_hook(lambda gradient: torch.cat([torch.zeros_like(gradient[:quiet]), gradient[quiet:]]))
    return encoder


def write_folder(folder: Path, config: Wav2Vec2Config, tensors: Mapping[str, Tensor]) -> None:
    """A wav2vec2 folder in half precision: config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {name: getattr(config, name) for name in CONFIG}
    text = json.dumps({"model_type": "wav2vec2", **values}, indent=1, default=list)
    (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")
    halves = {name: tensor.detach().cpu().half().contiguous() for name, tensor in tensors.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})


@dataclass(frozen=True)
class Scores:
    """How well mouths are heard: correlation of openings, of widths where open, and the mean opening in silence."""

    opening: float
    width: float
    silence: float


class Listener:
    """A linear function from features to opening and width, fitted to some sounds by least squares."""

    def __init__(self, encoder: AudioEncoder, waves: Sequence[np.ndarray], ridge: float = 1.0) -> None:
        self.encoder = encoder
        features = torch.cat([self.features(wave) for wave in waves]).double()
        truth = torch.cat([torch.from_numpy(mouth_rows(wave)) for wave in waves]).double()
        gram = features.T @ features + ridge * torch.eye(features.shape[1], dtype=torch.float64)
        self.weight = torch.linalg.solve(gram, features.T @ truth)

    @torch.inference_mode()
    def features(self, wave: np.ndarray) -> Tensor:
        """Features and a one (rows f+1), of a sound that is filled up to whole rows as the audio unit does."""
        rows = -(-len(wave) // _HOP)
        whole = functional.pad(normalize(torch.from_numpy(wave)), (0, rows * _HOP - len(wave)))
        return functional.pad(self.encoder(whole[None], rows)[0], (0, 1), value=1.0)

    def hear(self, wave: np.ndarray) -> np.ndarray:
        """Opening and width (rows 2) in 0..1."""
        mouths: np.ndarray = (self.features(wave).double() @ self.weight).clamp(0, 1).float().numpy()
        return mouths

    def scores(self, waves: Sequence[np.ndarray]) -> Scores:
        """Means over sounds; the correlation of widths and the silence are those of all rows together."""
        pairs = [(self.hear(wave), mouth_rows(wave)) for wave in waves]
        openings = [correlation(heard[:, 0], truth[:, 0]) for heard, truth in pairs]
        heard, truth = (np.concatenate(rows) for rows in zip(*pairs, strict=True))
        opened, closed = truth[:, 0] > 0.1, deep_silence([truth for _, truth in pairs])
        return Scores(
            opening=float(np.mean(openings)),
            width=correlation(heard[opened, 1], truth[opened, 1]),
            silence=float(heard[closed, 0].mean()) if closed.any() else 0.0,
        )


def deep_silence(truths: Sequence[np.ndarray]) -> np.ndarray:
    """For all rows one after the other: whether the mouth is closed there and in both neighbours (rows,) bool."""
    masks = [np.convolve(np.pad(truth[:, 0] > 0, 1, mode="edge"), np.ones(3), "valid") == 0 for truth in truths]
    return np.concatenate(masks)


def evaluate(encoder: AudioEncoder, utterances: int = 100) -> Scores:
    """The scores on held-out utterances of 2 to 12 s, heard by a `Listener` that was fitted to 100 others."""
    fitted = [utterance(HELD_OUT - 1 - seed, 8.0) for seed in range(100)]
    fitted += [np.zeros(SAMPLE_RATE, np.float32)] * 3
    tested = [utterance(HELD_OUT + seed, 2.0 + seed % 11) for seed in range(utterances)]
    return Listener(encoder.eval(), fitted).scores(tested)


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--steps", default=2400, show_default=True, type=click.IntRange(1), help="updates of the weights")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="stop after this time; start again to go on")
@click.option("--recordings", default=250, show_default=True, type=click.IntRange(1), help="of 24 s each, to train on")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="of the CPU")
def main(folder: Path, steps: int, minutes: float | None, recordings: int, threads: int) -> None:
    """Train the audio encoder of the tiny avatar into FOLDER."""
    torch.set_num_threads(threads)
    try:
        pool = Recordings.cached(folder / "recordings.npy", range(recordings), 24.0)
        task = AudioEncoderTask(new_encoder(CONFIG), pool, AudioEncoderSettings())
        settings = Settings(
            steps=steps, learning_rate=2e-3, schedule="cosine", warmup=min(200, steps - 1), ema=0.998,
            max_minutes=minutes, save_every=500,
        )  # fmt: skip
        if Trainer(task, settings, folder, listeners=[_tell]).run():
            scores = evaluate(AudioEncoder.from_folder(folder / "wav2vec2"))
            click.echo(json.dumps(asdict(scores)))
    except OmniError as error:
        raise click.ClickException(str(error)) from None


def _tell(report: Report) -> None:
    if report.step % 100 == 0:
        click.echo(f"step {report.step}  loss {report.loss:.5f}  {report.seconds:.2f} s")


if __name__ == "__main__":
    main()
