"""The tokenizer in the metadata of a T5 as GGUF: sentencepiece's unigram model (Kudo 2018, arXiv:1804.10959)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniavatar.sdk import CheckpointError, parsing, shown
from omniavatar_gguf.header import read_contents

TOKENS = "tokenizer.ggml.tokens"
SPACE = "▁"
"""What stands for a space in a piece."""
CONTROL, USER_DEFINED, BYTE = 3, 4, 6
"""Types of pieces: such as </s>, which no text contains; those that are never cut; bytes, for unknown characters."""


@dataclass(frozen=True)
class GgufTokenizer:
    """A tokenizer that is made when it is called."""

    file: Path

    def __call__(self) -> Any:
        """A fast tokenizer of transformers. Raises CheckpointError if the file's is of another kind, or incomplete."""
        values = read_contents(self.file).values
        model = values.get("tokenizer.ggml.model")
        if model != "t5":
            raise CheckpointError(f"{self.file}: its tokenizer is of the kind {shown(model)}, and only 't5' is read")
        with parsing(lambda reason: CheckpointError(f"{self.file}: its tokenizer is damaged ({reason})")):
            return unigram(values)


def unigram(values: Any) -> Any:
    """The tokenizer that the keys `tokenizer.ggml.*` describe."""
    from tokenizers import Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    tokens, scores = values[TOKENS], values["tokenizer.ggml.scores"].tolist()
    types = values["tokenizer.ggml.token_type"].tolist()
    unknown = values.get("tokenizer.ggml.unknown_token_id", 2)
    end, padding = values["tokenizer.ggml.eos_token_id"], values["tokenizer.ggml.padding_token_id"]
    pieces = list(zip(tokens, scores, strict=True))
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=BYTE in types))
    tokenizer.normalizer = normalizer(values)
    tokenizer.pre_tokenizer = pre_tokenizer(values)
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE)
    if values.get("tokenizer.ggml.add_eos_token", True):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {tokens[end]}", special_tokens=[(tokens[end], end)]
        )
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL])
    tokenizer.add_tokens([token for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=tokens[padding], eos_token=tokens[end], unk_token=tokens[unknown]
    )


def normalizer(values: Any) -> Any:
    """What is done to a text first: the characters of the model's own table, then spaces."""
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    charsmap = values.get("tokenizer.ggml.precompiled_charsmap")
    if charsmap is not None and len(charsmap):
        steps.append(normalizers.Precompiled(charsmap.tobytes()))
    if values.get("tokenizer.ggml.remove_extra_whitespaces", True):
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence(steps)


def pre_tokenizer(values: Any) -> Any:
    from tokenizers import pre_tokenizers

    prepend = "always" if values.get("tokenizer.ggml.add_space_prefix", True) else "never"
    return pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=prepend)
