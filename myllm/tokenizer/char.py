"""Room: text ↔ ids, one a character. Knows nothing of files of tokens or models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from myllm.errors import InputError
from myllm.tokenizer.base import (
    END_OF_TEXT,
    REPLACEMENT,
    TextSource,
    Tokenizer,
    iterate_texts,
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
        if id == self.eos_token_id:
            return b""
        if id not in self.id_to_char:
            raise InputError(f"id {id} is not in the vocabulary of {self.vocab_size}")
        return self.id_to_char[id].encode("utf-8", "surrogatepass")

    @property
    def unknown_ids(self) -> tuple[int, ...]:
        return (0,)

    def count_unknown(self, ids: np.ndarray) -> int:
        return len(ids) - int(np.count_nonzero(ids))  # makes no array of that length

    @property
    def vocab_size(self) -> int:
        return len(self.char_to_id) + 2  # the unknown character, end of text

    @property
    def eos_token_id(self) -> int:
        return len(self.char_to_id) + 1

    def to_engine(self) -> Engine:
        from tokenizers import Regex
        from tokenizers import Tokenizer as Engine
        from tokenizers import decoders, models, pre_tokenizers

        unknown = REPLACEMENT if REPLACEMENT not in self.char_to_id else "<unk>"
        vocab = {unknown: 0, **self.char_to_id, END_OF_TEXT: self.eos_token_id}
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
