"""Room: text ↔ ids. `CharTokenizer`, `BPETokenizer`. Knows nothing of files of tokens or models.

To add a tokenizer: a subclass of `Tokenizer` with its methods, one line in `TOKENIZERS`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from myllm.errors import InputError
from myllm.imported_tokenizer import ImportedTokenizer
from myllm.tokenizer_base import (
    BYTE_NAMES,
    END_OF_TEXT,
    NAME_TO_BYTE,
    REPLACEMENT,
    TOKENIZERS,
    TRAINED,
    EngineTokenizer,
    TextSource,
    Tokenizer,
    iterate_texts,
    without_surrogates,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine


class CharTokenizer(Tokenizer):
    """One token per character; id 0 stands for every character not seen in training.

    >>> tokenizer = CharTokenizer().train("hello")
    >>> tokenizer.encode("hole!")
    [2, 4, 3, 1, 0]
    >>> tokenizer.decode([2, 1, 3, 3, 4])
    'hello'
    """

    kind = "char"

    def __init__(self, characters: str = "") -> None:
        """
        Args:
            characters: the vocabulary in the order of its ids, which begin at 1.

        Raises:
            InputError: null characters, or a character twice.
        """
        if "\0" in characters:
            raise InputError("the vocabulary contains null characters")
        if len(set(characters)) != len(characters):
            raise InputError("the vocabulary contains a character twice")
        self.char_to_id = {ch: id for id, ch in enumerate(characters, start=1)}
        self.id_to_char = {id: ch for ch, id in self.char_to_id.items()}
        # code point → id, so that a long text is one array look-up
        self._table = np.zeros(max(map(ord, characters), default=0) + 2, np.uint32)
        for ch, id in self.char_to_id.items():
            self._table[ord(ch)] = id

    def train(self, source: TextSource) -> CharTokenizer:
        """Takes the characters of `source`, sorted, as the vocabulary; returns itself.

        Raises:
            InputError: the text contains null characters (also a `ValueError`).
        """
        characters: set[str] = set()
        for text in iterate_texts(source):
            if "\0" in text:
                raise InputError(f"the text contains null characters, at {text.index(chr(0))}")
            characters.update(text)
        self.__init__("".join(sorted(characters)))  # type: ignore[misc]
        return self

    def encode(self, text: str) -> list[int]:
        return [self.char_to_id.get(ch, 0) for ch in text]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy looks up outside Python's lock
            return list(pool.map(self._encode_array, texts))

    def _encode_array(self, text: str) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        return self._table[np.minimum(points, len(self._table) - 1)]  # the last entry is 0

    def token_bytes(self, id: int) -> bytes:
        if id == 0:
            return REPLACEMENT.encode()
        if id == self.end_of_text_id:
            return b""
        if id not in self.id_to_char:
            raise InputError(f"id {id} is not in the vocabulary of {self.vocab_size}")
        return self.id_to_char[id].encode("utf-8", "surrogatepass")

    def count_unknown(self, ids: np.ndarray) -> int:
        return int((np.asarray(ids) == 0).sum())

    @property
    def vocab_size(self) -> int:
        return len(self.char_to_id) + 2  # the unknown character, end of text

    @property
    def end_of_text_id(self) -> int:
        return len(self.char_to_id) + 1

    def to_engine(self) -> Engine:
        from tokenizers import Regex
        from tokenizers import Tokenizer as Engine
        from tokenizers import decoders, models, pre_tokenizers

        unknown = REPLACEMENT if REPLACEMENT not in self.char_to_id else "<unk>"
        vocab = {unknown: 0, **self.char_to_id, END_OF_TEXT: self.end_of_text_id}
        engine = Engine(models.WordLevel(vocab, unk_token=unknown))
        engine.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        engine.decoder = decoders.Fuse()
        return engine

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "characters": "".join(self.char_to_id)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> CharTokenizer:
        if not isinstance(content["characters"], str):
            raise InputError("its characters are not a string")
        return cls(content["characters"])


class BPETokenizer(EngineTokenizer):
    """Byte-level byte-pair encoding with GPT-2's pre-tokenization: any text round-trips.

    Training and encoding are the `tokenizers` library's; what is ours is what it was built from
    (`vocab`, `merges`), so that a loaded tokenizer cannot differ from the saved one.

    >>> tokenizer = BPETokenizer(vocab_size=300).train("low lower lowest " * 50)
    >>> tokenizer.decode(tokenizer.encode("lower 你好"))
    'lower 你好'
    """

    kind = "bpe"

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

        self.vocab = vocab
        self.merges = merges
        self._engine = Engine(models.BPE(vocab=vocab, merges=merges))
        self._engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._engine.decoder = decoders.ByteLevel()
        names = {id: name for name, id in vocab.items()}
        if sorted(names) != list(range(len(vocab))):
            raise InputError("its ids are not 0, 1, 2 …")
        self._bytes = [
            b"" if names[id] == END_OF_TEXT else bytes(NAME_TO_BYTE[ch] for ch in names[id])
            for id in range(len(names))
        ]

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
        engine.train_from_iterator(map(without_surrogates, iterate_texts(source)), trainer)
        model = json.loads(engine.to_str())["model"]
        vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
        merges = [(left, right) for left, right in model["merges"]]
        self._build({**vocab, END_OF_TEXT: len(vocab)}, merges)
        return self

    @property
    def end_of_text_id(self) -> int:
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
            raise InputError("an id is no integer")
        if lacking := {*BYTE_NAMES, END_OF_TEXT} - set(vocab):
            raise InputError(f"its vocabulary lacks {len(lacking)} bytes or special tokens")
        for pair in merges:
            if not all(isinstance(part, str) and part in vocab for part in (*pair, "".join(pair))):
                raise InputError(f"the merge {pair} is not in its vocabulary")
        tokenizer = cls(int(content["target_vocab_size"]))
        tokenizer._build(dict(vocab), merges)
        return tokenizer


TOKENIZERS |= {"bpe": BPETokenizer, "char": CharTokenizer}
TRAINED |= {"imported": ImportedTokenizer}


def build_tokenizer(kind: str, vocab_size: int) -> Tokenizer:
    """An untrained tokenizer of a kind named in `TOKENIZERS`.

    Args:
        kind: `bpe` or `char`.
        vocab_size: the size to reach, for a kind that has the choice.

    Raises:
        ConfigError: unknown kind.
        InputError: a vocabulary too small for the kind.
    """
    found = TOKENIZERS[kind]
    return BPETokenizer(vocab_size) if found is BPETokenizer else found()
