"""The prompt: text to embeddings once per video, to the transformer's context once per window and branch."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any, ClassVar

import ftfy
from pydantic import Field
from torch import Tensor

from omniavatar.engine.engine import Engine
from omniavatar.engine.scopes import Branch, Forward, Job
from omniavatar.engine.unit import PipelineUnit, UnitInputs, UnitSettings
from omniavatar.errors import CheckpointError
from omniavatar.hookspecs import hookimpl

NEGATIVE_PROMPT = (
    "static picture, frozen face, blurred, low quality, compression artefacts, overexposed, subtitles, watermark, "
    "deformed hands, extra fingers, fused fingers, distorted face, crooked teeth, extra limbs, cluttered background"
)


class Prompt(PipelineUnit):
    """Text conditioning: what the video shows, and what it must not show.

    The negative prompt is used by guidance branches that drop the condition "text".
    """

    name = "prompt"
    provides = ("prompt_embedding", "negative_embedding")
    nulls: ClassVar = {"text": {"prompt_embedding": "negative_embedding"}}
    roles = ("text_encoder",)
    idle_in_steps = ("text_encoder",)

    class Settings(UnitSettings):
        negative: str = Field(NEGATIVE_PROMPT, description="what guidance steers away from")
        length: int = Field(512, ge=8, le=512, description="tokens that the text is padded or cut to")
        tokenizer: Path = Field(
            Path("google/umt5-xxl"),
            description="tokenizer folder; a relative path starts beside the text encoder's file",
        )

    class Inputs(UnitInputs):
        prompt: str = Field("A person looks into the camera and talks.", description="what the video shows")

    settings: Settings

    @hookimpl
    def begin_job(self, job: Job) -> None:
        job["prompt_embedding"] = self.encode(job.engine, job.inputs(self).prompt)
        job["negative_embedding"] = self.encode(job.engine, self.settings.negative)

    @hookimpl
    def embed(self, forward: Forward) -> None:
        forward.context = forward.memory.once("prompt.context", lambda: forward.stacked(self._context_of(forward)))

    def _context_of(self, forward: Forward) -> Any:
        """For a branch, the transformer's context (b n d)."""

        def context(branch: Branch) -> Tensor:
            embedding = branch["negative_embedding" if branch.drops("text") else "prompt_embedding"]
            result: Tensor = forward.network.embed_text(embedding)
            return result

        return context

    def encode(self, engine: Engine, text: str) -> Tensor:
        """The embedding of one text (1 n text_dim); rows beyond its last token are zero."""
        tokens = self._tokenizer(engine)(
            clean(text), padding="max_length", truncation=True, max_length=self.settings.length, return_tensors="pt"
        )
        encoder = engine.model("text_encoder")
        ids, mask = tokens["input_ids"].to(engine.device), tokens["attention_mask"].to(engine.device)
        embedding: Tensor = encoder(ids, mask)
        return embedding.to(engine.dtype)

    def _tokenizer(self, engine: Engine) -> Any:
        from transformers import AutoTokenizer

        folder = engine.models.beside("text_encoder", self.settings.tokenizer)
        if not folder.is_dir():
            raise CheckpointError(
                f"no tokenizer folder at {folder}; put it there or name one with prompt(tokenizer=FOLDER)"
            )
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise CheckpointError(f"no tokenizer can be read from {folder} ({reason}); download it again") from error


def clean(text: str) -> str:
    """Repair broken characters and HTML entities, and fold white space, as the text encoder was trained with."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
