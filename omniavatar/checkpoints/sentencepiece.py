"""Tokenizers that lie in model files as sentencepiece models (Kudo and Richardson 2018, arXiv:1808.06226).

Such a model is a protocol buffer; what is read here are the pieces of a unigram model and how a text is prepared
(https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto); the library tokenizers does the
rest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from omniavatar.errors import CheckpointError, parsing

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What stands for a space in a piece."""
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
"""Types of pieces: for what no piece is; such as </s>, which no text contains; those never cut; bytes."""
UNIGRAM = 1
PIECES, TRAINER, NORMALIZER = 1, 2, 3
"""Fields of a model."""
Fields = dict[int, list[Any]]


def tokenizer(model: bytes, place: str) -> Any:
    """A fast tokenizer of transformers. Raises CheckpointError, about this place, if it is not a unigram model."""
    damaged = f"{place} is no sentencepiece model"
    remedy = "name a tokenizer folder with prompt(tokenizer=FOLDER)"
    with parsing(lambda reason: CheckpointError(f"{damaged} ({reason}); {remedy}")):
        fields = message(model)
        trainer = message(fields.get(TRAINER, [b""])[-1])
        if number(trainer, 3, UNIGRAM) != UNIGRAM:
            raise ValueError("it is of another kind than unigram")
        pieces = [message(piece) for piece in fields[PIECES]]
        return fast_tokenizer(pieces, trainer, message(fields.get(NORMALIZER, [b""])[-1]))


def fast_tokenizer(pieces: list[Fields], trainer: Fields, preparation: Fields) -> Any:
    """The tokenizer of these pieces, which puts </s> behind a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = [(piece[1][-1].decode(), real(piece, 2)) for piece in pieces]
    kinds = [number(piece, 3, 1) for piece in pieces]
    unknown, end, padding = (number(trainer, field, default) for field, default in ((40, 0), (42, 2), (43, -1)))
    built = Tokenizer(models.Unigram(vocabulary, unk_id=unknown, byte_fallback=BYTE in kinds))
    steps: list[Any] = []
    if preparation.get(2, [b""])[-1]:
        steps.append(normalizers.Precompiled(preparation[2][-1]))
    if number(preparation, 4, 1):
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    built.normalizer = normalizers.Sequence(steps)
    scheme = "always" if number(preparation, 3, 1) else "never"
    built.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    built.decoder = decoders.Metaspace(replacement=SPACE)
    names = [name for name, _ in vocabulary]
    built.post_processor = processors.TemplateProcessing(single=f"$A {names[end]}", special_tokens=[(names[end], end)])
    built.add_special_tokens([name for name, kind in zip(names, kinds, strict=True) if kind == CONTROL])
    built.add_tokens([name for name, kind in zip(names, kinds, strict=True) if kind == USER_DEFINED])
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        pad_token=names[padding if padding >= 0 else 0],
        eos_token=names[end],
        unk_token=names[unknown],
    )


# --- protocol buffers (https://protobuf.dev/programming-guides/encoding)


def message(data: bytes) -> Fields:
    """The values of a message by the numbers of their fields. Raises ValueError for what is no message."""
    fields: Fields = {}
    for field, value in values(data):
        fields.setdefault(field, []).append(value)
    return fields


def values(data: bytes) -> Iterator[tuple[int, Any]]:
    position = 0
    while position < len(data):
        tag, position = varint(data, position)
        field, kind = tag >> 3, tag & 7
        if kind == 0:
            value, position = varint(data, position)
            yield field, value
            continue
        if kind == 2:
            length, position = varint(data, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of the kind {kind}")
        if length > len(data) - position:
            raise ValueError("a field is longer than the rest")
        yield field, data[position : position + length]
        position += length


def varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where the next begins."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than 64 bits")


def number(fields: Fields, field: int, default: int) -> int:
    """A whole number with its sign."""
    value = fields.get(field, [default])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {field} is no number")
    return value - 2**64 if value >= 2**63 else value


def real(fields: Fields, field: int) -> float:
    """A number of four bytes."""
    (value,) = struct.unpack("<f", fields.get(field, [bytes(4)])[-1])
    return float(value)
