"""Room: text ↔ ids, by tokenizers of several kinds. Knows nothing of files of tokens or models.

To add a tokenizer: a subclass of `Tokenizer` in a file of its own, one line in `kinds.TOKENIZERS`.
"""

from __future__ import annotations

from myllm.kinds import TOKENIZERS
from myllm.tokenizer.base import (
    BYTE_NAMES,
    END_OF_TEXT,
    NAME_TO_BYTE,
    REPLACEMENT,
    TRAINED,
    EngineTokenizer,
    TextSource,
    Tokenizer,
    iterate_texts,
)
from myllm.tokenizer.bpe import BPETokenizer
from myllm.tokenizer.char import CharTokenizer
from myllm.tokenizer.imported import ImportedTokenizer

__all__ = [
    "BPETokenizer",
    "BYTE_NAMES",
    "CharTokenizer",
    "END_OF_TEXT",
    "EngineTokenizer",
    "ImportedTokenizer",
    "NAME_TO_BYTE",
    "REPLACEMENT",
    "TOKENIZERS",
    "TextSource",
    "Tokenizer",
    "build_tokenizer",
    "iterate_texts",
]

TRAINED |= {"imported": ImportedTokenizer}


def build_tokenizer(kind: str, vocab_size: int) -> Tokenizer:
    """An untrained tokenizer of a kind named in `TOKENIZERS`.

    Args:
        kind: a name in `TOKENIZERS`.
        vocab_size: the size to reach, for a kind that has the choice.

    Raises:
        ConfigError: unknown kind.
        InputError: a vocabulary too small for the kind.
    """
    return TOKENIZERS[kind].build(vocab_size)
