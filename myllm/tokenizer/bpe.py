"""Room: text ↔ ids by byte pairs. Knows nothing of files of tokens or models."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from myllm.errors import InputError
from myllm.tokenizer.base import (
    BYTE_NAMES,
    END_OF_TEXT,
    NAME_TO_BYTE,
    EngineTokenizer,
    TextSource,
    iterate_texts,
    without_surrogates,
)
from myllm.tokenizer.long_runs import cut_long_runs

LEAST_MERGES = 200  # with fewer, any text is spelled byte by byte
LEAST_BYTES = 12  # fewer may be a name


class BPETokenizer(EngineTokenizer):
    """Byte-level byte-pair encoding with GPT-2's pre-tokenization: any text round-trips.

    Training and encoding are the `tokenizers` library's; what is ours is what it was built from
    (`vocab`, `merges`), so that a loaded tokenizer cannot differ from the saved one.

    >>> tokenizer = BPETokenizer(vocab_size=300).train("low lower lowest " * 50)
    >>> tokenizer.decode(tokenizer.encode("lower 你好"))
    'lower 你好'
    """

    kind = "bpe"
    has_size = True

    def __init__(self, vocab_size: int = 10000) -> None:
        """
        Args:
            vocab_size: the size to reach in training: 256 bytes, end of text, and merges. A short
                text gives fewer; the property `vocab_size` tells the real number.

        Raises:
            InputError: fewer than 257.
        """
        if vocab_size < 257:
            raise InputError(
                f"vocab_size {vocab_size}: byte-level BPE needs at least 257 (256 bytes and "
                "end of text)"
            )
        self.target_vocab_size = vocab_size
        self._build({**{ch: id for id, ch in enumerate(BYTE_NAMES)}, END_OF_TEXT: 256}, [])

    def _build(self, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
        """Sets `vocab` and `merges` and all that follows from them."""
        from tokenizers import Tokenizer as Engine
        from tokenizers import decoders, models, pre_tokenizers

        names = {id: name for name, id in vocab.items()}
        if sorted(names) != list(range(len(vocab))):
            raise InputError("its ids are not 0, 1, 2 …")
        self.vocab = vocab
        self.merges = merges
        self._engine = Engine(models.BPE(vocab=vocab, merges=merges))
        self._engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._engine.decoder = decoders.ByteLevel()
        self._bytes = [
            b"" if names[id] == END_OF_TEXT else bytes(NAME_TO_BYTE[ch] for ch in names[id])
            for id in range(len(names))
        ]

    @classmethod
    def build(cls, vocab_size: int) -> BPETokenizer:
        return cls(vocab_size)

    def train(self, source: TextSource) -> BPETokenizer:
        from tokenizers import Tokenizer as Engine
        from tokenizers import models, pre_tokenizers, trainers

        engine = Engine(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=self.target_vocab_size - 1,  # end of text comes last, added below
            initial_alphabet=BYTE_NAMES,
            show_progress=False,
        )
        texts = map(without_surrogates, iterate_texts(source))
        engine.train_from_iterator(cut_long_runs(texts), trainer)
        model = json.loads(engine.to_str())["model"]
        vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
        merges = [(left, right) for left, right in model["merges"]]
        self._build({**vocab, END_OF_TEXT: len(vocab)}, merges)
        return self

    def foreign_share(self, ids: np.ndarray) -> float:
        """The bytes of a text that no merge has joined to others. Of text like that which the
        merges were learned from it is a small part, and nearly all of another alphabet."""
        if len(self.merges) < LEAST_MERGES or not len(ids):
            return 0.0
        lengths = np.array([len(self._bytes[id]) for id in ids.tolist()], np.int64)
        n_bytes = int(lengths.sum())
        return float((lengths == 1).sum() / n_bytes) if n_bytes >= LEAST_BYTES else 0.0

    @property
    def eos_token_id(self) -> int:
        return self.vocab[END_OF_TEXT]

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "target_vocab_size": self.target_vocab_size,
            "vocab": self.vocab,
            "merges": [list(pair) for pair in self.merges],
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> BPETokenizer:
        vocab, merges = content["vocab"], [(left, right) for left, right in content["merges"]]
        if not all(type(id) is int for id in vocab.values()):
            raise InputError("an id is not an integer")
        if lacking := {*BYTE_NAMES, END_OF_TEXT} - set(vocab):
            raise InputError(f"its vocabulary lacks {len(lacking)} bytes or special tokens")
        for pair in merges:
            if not all(isinstance(part, str) and part in vocab for part in (*pair, "".join(pair))):
                raise InputError(f"the merge {pair} is not in its vocabulary")
        target_vocab_size = content["target_vocab_size"]
        if type(target_vocab_size) is not int:
            raise InputError(f"its target_vocab_size, {target_vocab_size!r}, is not an integer")
        tokenizer = cls(target_vocab_size)
        tokenizer._build(dict(vocab), merges)
        return tokenizer
