"""Training a small UMT5 encoder and its tokenizer to know what texts say about faces.

    python -m omniavatar_drawn.encoders.text_encoder out/text --minutes 20

writes `out/text/text_encoder.safetensors`, `out/text/tokenizer/`, a log and a checkpoint to go on from, and tells how
much of what unseen captions and texts written by hand state is known.

A linear head reads every attribute of a face, its scene and its manner (or that the text does not state it) from the
mean over a text's tokens, and from each token alone. The head is thrown away.
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

from omniavatar.errors import InputError, OmniError
from omniavatar.models.umt5 import UMT5Encoder
from omniavatar.training.gradients import Batch
from omniavatar.training.trainer import Report, Settings, Trainer
from omniavatar.units.prompt import clean
from omniavatar_drawn.encoders.descriptions import ATTRIBUTES, Description, description, labels, of_caption
from omniavatar_drawn.encoders.paraphrases import PARAPHRASES
from omniavatar_drawn.encoders.tokenizer import train_tokenizer, write_tokenizer
from omniavatar_drawn.faces import Identity, Performance

CONFIG: dict[str, Any] = {
    "vocab": 1024,
    "dim": 96,
    "dim_attn": 96,
    "dim_ffn": 256,
    "num_heads": 4,
    "num_layers": 3,
    "num_buckets": 32,
    "shared_pos": False,
}
LENGTH = 64
"""Tokens that a text is cut to."""

HELD_OUT = 1_000_000
"""Faces and wordings from this number on are not trained on."""


class TextEncoderSettings(BaseModel):
    """On how many texts, and what counts how much."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    texts: int = Field(32, ge=1, description="texts of a micro-batch")
    unstated: float = Field(0.3, ge=0, description="weight of seeing that an attribute is not stated")
    tokens: float = Field(0.5, ge=0, description="weight of what single tokens know; that of all together is 1")


class TextEncoderTask:
    """A text encoder that learns what texts state; see `omniavatar.training.trainer.Task`.

    The last norm is not trained, so that tokens have a root mean square of 1.
    """

    def __init__(self, encoder: UMT5Encoder, tokenizer: Any, settings: TextEncoderSettings) -> None:
        vocab, dim = encoder.token_embedding.weight.shape
        if len(tokenizer) > vocab:
            raise InputError(f"the tokenizer has {len(tokenizer)} entries, the text encoder knows {vocab}")
        self.encoder = encoder.train().requires_grad_(True)
        self.encoder.norm.requires_grad_(False)
        self.tokenizer = tokenizer
        self.settings = settings
        self.sizes = [1 + len(values) for values in ATTRIBUTES.values()]
        self.head = nn.Linear(dim, sum(self.sizes))

    def parameters(self) -> Mapping[str, nn.Parameter]:
        encoder = {name: w for name, w in self.encoder.named_parameters("encoder") if w.requires_grad}
        return {**encoder, **dict(self.head.named_parameters("head"))}

    def batch(self, draw: torch.Generator) -> Batch:
        """`ids` and `mask` (b n) of texts and the `labels` (b attributes) of what they state."""
        random = np.random.default_rng(int(torch.randint(2**62, (), generator=draw)))
        return self.tokenized([description(random) for _ in range(self.settings.texts)])

    def tokenized(self, descriptions: Sequence[Description]) -> dict[str, Tensor]:
        """A micro-batch of these texts."""
        texts = [clean(one.text) for one in descriptions]
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        numbers = torch.tensor([labels(one) for one in descriptions])
        return {"ids": tokens["input_ids"], "mask": tokens["attention_mask"], "labels": numbers}

    def loss(self, batch: Batch) -> Tensor:
        mask = batch["mask"].bool()
        of_tokens = self.head(self.encoder(batch["ids"], batch["mask"])).float()
        total: Tensor = self.error(mean_of(of_tokens, mask), batch["labels"])
        rows = batch["labels"][:, None].expand(*mask.shape, -1)[mask]
        return total + self.settings.tokens * self.error(of_tokens[mask], rows)

    def error(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """Cross-entropy of (n logits) and (n attributes): the mean over attributes; -1 counts as no error.

        An attribute that few texts state counts as much as one that all state; not stating it counts less.
        """
        total = torch.zeros(())
        for part, number in zip(logits.split(self.sizes, dim=-1), numbers.unbind(-1), strict=True):
            errors = functional.cross_entropy(part, number, ignore_index=-1, reduction="none")
            for kind, weight in ((number > 0, 1.0), (number == 0, self.settings.unstated)):
                total = total + weight * (errors * kind).sum() / kind.sum().clamp(min=1)
        return total / len(self.sizes)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put trained weights in place, those of the head as well."""
        with torch.no_grad():
            for name, parameter in self.parameters().items():
                parameter.copy_(weights[name])

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """The encoder in half precision and the tokenizer's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        names = self.encoder.state_dict()
        tensors = {name: weights.get(f"encoder.{name}", tensor) for name, tensor in names.items()}
        halves = {name: tensor.detach().cpu().half().contiguous() for name, tensor in tensors.items()}
        save_file(halves, folder / "text_encoder.safetensors")
        write_tokenizer(self.tokenizer, folder / "tokenizer")

    @torch.inference_mode()
    def read(self, descriptions: Sequence[Description]) -> Tensor:
        """What texts state, by the number of the value (texts attributes), from the mean over tokens."""
        batch = self.tokenized(descriptions)
        logits = mean_of(self.head(self.encoder(batch["ids"], batch["mask"])), batch["mask"].bool())
        return torch.stack([part.argmax(-1) for part in logits.split(self.sizes, dim=-1)], dim=-1)


def mean_of(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean over the tokens of a text: (b n d), (b n) bool -> (b d)."""
    kept = tokens.masked_fill(~mask[..., None], 0)
    return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class Scores:
    """Parts of what texts state that are read as stated; `silent`: of what they do not state."""

    captions: float
    paraphrases: float
    silent: float
    worst: str


def evaluate(task: TextEncoderTask, captions: int = 1000) -> Scores:
    """The scores on captions of unseen faces and on the texts written by hand."""
    seeds = range(HELD_OUT, HELD_OUT + captions)
    unseen = [of_caption(Identity.from_seed(seed), Performance.from_seed(seed)) for seed in seeds]
    read, truth = task.read(unseen), torch.tensor([labels(one) for one in unseen])
    right, stated = read == truth, truth > 0
    by_name = {name: float(right[:, n][stated[:, n]].float().mean()) for n, name in enumerate(ATTRIBUTES)}
    worst = min(by_name, key=lambda name: by_name[name])
    other, other_truth = task.read(PARAPHRASES), torch.tensor([labels(one) for one in PARAPHRASES])
    return Scores(
        captions=float(right[stated].float().mean()),
        paraphrases=float((other == other_truth)[other_truth > 0].float().mean()),
        silent=float(right[truth == 0].float().mean()),
        worst=f"{worst} {by_name[worst]:.4f}",
    )


def tokenizer_of(folder: Path, vocab: int, texts: int = 20_000) -> Any:
    """The tokenizer in a folder; if there is none yet, one trained on descriptions."""
    from transformers import PreTrainedTokenizerFast

    if not folder.is_dir():
        random = np.random.default_rng(0)
        trained = train_tokenizer((clean(description(random).text) for _ in range(texts)), vocab)
        write_tokenizer(trained, folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--steps", default=6000, show_default=True, type=click.IntRange(1), help="updates of the weights")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="stop after this time; start again to go on")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="of the CPU")
def main(folder: Path, steps: int, minutes: float | None, threads: int) -> None:
    """Train the text encoder of the tiny avatar into FOLDER."""
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        task = TextEncoderTask(
            UMT5Encoder(**CONFIG), tokenizer_of(folder / "tokenizer", CONFIG["vocab"]), TextEncoderSettings()
        )
        settings = Settings(
            steps=steps, learning_rate=2e-3, schedule="cosine", warmup=min(200, steps - 1), ema=0.998,
            max_minutes=minutes, save_every=500,
        )  # fmt: skip
        trainer = Trainer(task, settings, folder, listeners=[_tell])
        if trainer.run():
            task.load(trainer.result())
            click.echo(json.dumps(asdict(evaluate(task))))
    except OmniError as error:
        raise click.ClickException(str(error)) from None


def _tell(report: Report) -> None:
    if report.step % 100 == 0:
        click.echo(f"step {report.step}  loss {report.loss:.5f}  {report.seconds:.3f} s")


if __name__ == "__main__":
    main()
