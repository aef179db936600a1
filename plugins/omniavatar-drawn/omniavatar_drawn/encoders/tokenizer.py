"""Makes a small tokenizer: byte pairs (Sennrich et al. 2016, arXiv:1508.07909) over lower-case bytes.

    write_tokenizer(train_tokenizer(texts, vocab=1024), folder)

Ids as in UMT5: 0 pads, 1 ends a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omniavatar.errors import InputError

SPECIALS = ("<pad>", "</s>", "<unk>")
BYTES = 256


def train_tokenizer(texts: Iterable[str], vocab: int) -> Any:
    """A transformers tokenizer of at most `vocab` entries, which knows any text: all bytes have an entry."""
    if vocab < len(SPECIALS) + BYTES:
        raise InputError(f"a vocabulary of {vocab} has no room for all bytes; needed are {len(SPECIALS) + BYTES}")
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer's folder under the class name that all versions of transformers know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), "tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(f"{json.dumps(config, indent=2)}\n", encoding="utf-8")
