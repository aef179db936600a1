"""The prompt: text to embeddings once per video, to the transformer's width once per window and branch."""

from __future__ import annotations

import html
import logging
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from omniavatar.engine.conditions import BringsConditions
from omniavatar.engine.residency import IdleInSteps
from omniavatar.engine.unit import PipelineUnit, UnitInputs, UnitSettings
from omniavatar.errors import CheckpointError, InputError, parsing
from omniavatar.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from omniavatar.engine.draft import Draft
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.scopes import Branch, Forward, Job

log = logging.getLogger(__name__)

NEGATIVE_PROMPT = (
    "static picture, frozen face, blurred, low quality, compression artefacts, overexposed, subtitles, watermark, "
    "deformed hands, extra fingers, fused fingers, distorted face, crooked teeth, extra limbs, cluttered background"
)
USUAL_FOLDERS = (Path("../tokenizer"), Path())
"""Where other programs put a text encoder's tokenizer, from its folder: diffusers beside it, transformers into it."""
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json")
LONGEST = 100_000
"""Letters of a text that is looked at; 512 tokens are a few thousand, and tokenizers are slow on megabytes."""
SHOWN = 200
"""Letters of what is cut off that a warning shows."""


class Prompt(PipelineUnit, BringsConditions, IdleInSteps):
    """Text conditioning: what the video shows, and what it must not show.

    The negative prompt is used by guidance branches that drop the condition "text". A text longer than `length` is cut,
    and a warning says which words are lost; one of more than 100,000 letters is refused. Units that need other texts
    call the value `encode_text`: a text -> its embedding (1 n text_dim).
    """

    name = "prompt"
    provides = ("prompt_embedding", "negative_embedding", "encode_text")
    nulls: ClassVar = {"text": {"prompt_embedding": "negative_embedding"}}
    roles = ("text_encoder",)
    idle_in_steps = ("text_encoder",)

    class Settings(UnitSettings):
        negative: str = Field(NEGATIVE_PROMPT, max_length=LONGEST, description="what guidance steers away from")
        length: int = Field(512, ge=8, le=512, description="tokens that the text is padded or cut to")
        tokenizer: Path = Field(
            Path("google/umt5-xxl"),
            description="tokenizer folder; a relative path starts beside the text encoder's file, whose own comes next",
        )

    class Inputs(UnitInputs):
        prompt: str = Field(
            "A person looks into the camera and talks.", max_length=LONGEST, description="what the video shows"
        )

    settings: Settings

    @hookimpl(wrapper=True)
    def check_request(self, draft: Draft) -> Iterator[None]:
        """The tokenizer is loaded, after all that takes no time."""
        yield
        self._tokenizer(draft.engine)

    @hookimpl
    def begin_job(self, job: Job) -> None:
        engine = job.engine
        job["encode_text"] = partial(self.encode, engine, what="text")
        job["prompt_embedding"] = self.encode(engine, job.inputs(self).prompt)
        job["negative_embedding"] = self._negative(engine)

    def _negative(self, engine: Engine) -> Tensor:
        """The embedding of the negative prompt, which is the same for all videos of an engine with these settings."""
        settings = self.settings
        embedding: Tensor = kept(
            engine, "prompt.negative", settings, lambda: self.encode(engine, settings.negative, "negative prompt")
        )
        return embedding

    @hookimpl
    def embed(self, forward: Forward) -> None:
        forward.conditions["text"] = forward.memory.once("prompt.text", lambda: forward.stacked(self._text_of(forward)))

    def _text_of(self, forward: Forward) -> Callable[[Branch], Tensor]:
        """For a branch, the text as the blocks take it (b n d)."""

        def text(branch: Branch) -> Tensor:
            embedding = branch["negative_embedding" if branch.drops("text") else "prompt_embedding"]
            result: Tensor = forward.network.embed_text(embedding)
            return result

        return text

    def encode(self, engine: Engine, text: str, what: str = "prompt") -> Tensor:
        """The embedding of one text (1 n text_dim); rows beyond its last token are zero.

        what: what is said of a text that is too long. Raises CheckpointError without a tokenizer, and InputError for
        more than `LONGEST` letters.
        """
        if len(text) > LONGEST:
            raise InputError(f"the {what} has {len(text)} letters; give {LONGEST} at most")
        tokenizer, text, length = self._tokenizer(engine), clean(text), self.settings.length
        lost = words_beyond(text, length, lambda part: len(tokenizer(part, verbose=False)["input_ids"]))
        if lost:
            log.log(
                logging.INFO if text == NEGATIVE_PROMPT else logging.WARNING,  # the default is nobody's own
                "the %s is longer than the %d tokens that are kept, so its last words do nothing: %s",
                *(what, length, shorten(" ".join(lost), SHOWN, placeholder=" ...")),
            )
        tokens = tokenizer(text, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        encoder = engine.model("text_encoder")
        ids, mask = tokens["input_ids"].to(engine.device), tokens["attention_mask"].to(engine.device)
        embedding: Tensor = encoder(ids, mask)
        return embedding.to(engine.dtype)

    def _tokenizer(self, engine: Engine) -> Any:
        """The tokenizer of an engine, loaded when it is first used."""
        folders = [engine.models.beside("text_encoder", path) for path in (self.settings.tokenizer, *USUAL_FOLDERS)]
        folder = next((folder for folder in folders if holds_tokenizer(folder)), folders[0])
        inside = None if folder.is_dir() else engine.models.tokenizer("text_encoder")
        return kept(engine, "prompt.tokenizer", folder, inside or (lambda: load_tokenizer(folder)))


def kept(engine: Engine, name: str, key: Hashable, make: Callable[[], Any]) -> Any:
    """What `make` gives for this key; the engine keeps it until there is another key."""
    last = engine.values.get(name)
    if last is None or last[0] != key:
        last = engine.values[name] = key, make()
    return last[1]


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder has one of the files that a tokenizer consists of."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, of which no code is run. Raises CheckpointError if there is none."""
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise CheckpointError(
            f"no tokenizer folder at {folder}, and none lies in the text encoder's file; "
            "put the folder google/umt5-xxl of Wan's repository there, or name one with prompt(tokenizer=FOLDER)"
        )
    unread = f"no tokenizer can be read from {folder}"
    with parsing(lambda reason: CheckpointError(f"{unread} ({reason}); download it again")):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def words_beyond(text: str, length: int, tokens: Callable[[str], int]) -> list[str]:
    """The words at the end of a text that do not fit into `length` tokens, the one that fits in part included."""
    if tokens(text) <= length:
        return []
    words = text.split()
    fitting = bisect_right(range(1, len(words) + 1), length, key=lambda count: tokens(" ".join(words[:count])))
    return words[fitting:]


def clean(text: str) -> str:
    """Repair broken characters and HTML entities, and fold white space, as the text encoder was trained with."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
