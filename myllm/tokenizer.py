"""Room: text ↔ ids. `CharTokenizer`, `BPETokenizer`. Knows nothing of files of tokens or models.

To add a tokenizer: a subclass of `Tokenizer` with the methods below, one line in `TOKENIZERS`.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np

from myllm.errors import InputError, lookup

END_OF_TEXT = "<|endoftext|>"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

TextSource: TypeAlias = str | Path | Iterable[str | Path]
"""A text, a UTF-8 file (as a `Path`), or an iterable of both."""


class Tokenizer(ABC):
    """What every tokenizer has. Text is `str`, ids are `list[int]`."""

    kind: ClassVar[str]

    @abstractmethod
    def train(self, source: TextSource) -> Tokenizer:
        """Builds the vocabulary from texts (see `TextSource`); returns itself."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Special-token strings inside it are plain text."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of many texts as int arrays (n,), encoded on all cores."""

    @abstractmethod
    def token_bytes(self, id: int) -> bytes:
        """The UTF-8 bytes that a token stands for; empty for a special token.

        Raises:
            InputError: the id is not in the vocabulary.
        """

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""

    @property
    @abstractmethod
    def end_of_text_id(self) -> int:
        """The id that separates documents. No text encodes to it."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All that the tokenizer was built from."""

    @classmethod
    @abstractmethod
    def from_dict(cls, content: dict[str, Any]) -> Tokenizer:
        """The tokenizer that `to_dict` described.

        Raises:
            InputError: the content is not of this form.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD.

        Raises:
            InputError: an id is not in the vocabulary.
        """
        return "".join(self.decode_stream(ids))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of each id as soon as its characters are whole.

        A character whose bytes are spread over several tokens comes with the last of them, so
        the pieces join to exactly what `decode` gives.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for id in ids:
            yield decoder.decode(self.token_bytes(id))
        yield decoder.decode(b"", final=True)

    def count_unknown(self, ids: np.ndarray) -> int:
        """How many of `ids` stand for a character that the vocabulary lacks."""
        return 0

    def byte_counts(self) -> np.ndarray:
        """Number of bytes of each token, int64 (V,): what makes bits per byte of a loss."""
        return np.array([len(self.token_bytes(id)) for id in range(self.vocab_size)], np.int64)

    @property
    def content_hash(self) -> str:
        """SHA-256 of the content: two tokenizers with the same hash encode alike."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer as UTF-8 JSON."""
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=0)
        Path(path).write_bytes(text.encode("utf-8", errors="surrogatepass"))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Reads a saved tokenizer; on a subclass, only that kind.

        Raises:
            InputError: no such file, or not a tokenizer of this kind.
        """
        try:
            content = json.loads(Path(path).read_bytes().decode("utf-8", "surrogatepass"))
        except OSError as error:
            raise InputError(f"cannot read tokenizer {path}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise InputError(f"{path} is not a tokenizer: it is no valid JSON") from None
        kind = content.get("kind") if isinstance(content, dict) else None
        if not isinstance(kind, str) or kind not in TOKENIZERS:
            raise InputError(f"{path} is not a tokenizer: its kind is {kind!r}")
        found = TOKENIZERS[kind]
        if not issubclass(found, cls):
            raise InputError(f"{path} holds a {kind} tokenizer, not a {cls.kind} one")
        try:
            return found.from_dict(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} is not a usable {kind} tokenizer: {error}") from None


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

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "characters": "".join(self.char_to_id)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> CharTokenizer:
        if not isinstance(content["characters"], str):
            raise InputError("its characters are not a string")
        return cls(content["characters"])


class BPETokenizer(Tokenizer):
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
        self._build({**{ch: id for id, ch in enumerate(_BYTE_NAMES)}, END_OF_TEXT: 256}, [])

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
            b"" if names[id] == END_OF_TEXT else bytes(_NAME_TO_BYTE[ch] for ch in names[id])
            for id in range(len(names))
        ]

    def train(self, source: TextSource) -> BPETokenizer:
        from tokenizers import Tokenizer as Engine
        from tokenizers import models, pre_tokenizers, trainers

        engine = Engine(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=self.target_vocab_size - 1,  # end of text comes last, added below
            initial_alphabet=_BYTE_NAMES,
            show_progress=False,
        )
        engine.train_from_iterator(map(_without_surrogates, iterate_texts(source)), trainer)
        model = json.loads(engine.to_str())["model"]
        vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
        merges = [(left, right) for left, right in model["merges"]]
        self._build({**vocab, END_OF_TEXT: len(vocab)}, merges)
        return self

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        clean = [_without_surrogates(text) for text in texts]
        encodings = self._engine.encode_batch_fast(clean, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def token_bytes(self, id: int) -> bytes:
        if not 0 <= id < len(self._bytes):
            raise InputError(f"id {id} is not in the vocabulary of {self.vocab_size}")
        return self._bytes[id]

    @property
    def vocab_size(self) -> int:
        return len(self.vocab)

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
        if lacking := {*_BYTE_NAMES, END_OF_TEXT} - set(vocab):
            raise InputError(f"its vocabulary lacks {len(lacking)} bytes or special tokens")
        for pair in merges:
            if not all(isinstance(part, str) and part in vocab for part in (*pair, "".join(pair))):
                raise InputError(f"the merge {pair} is not in its vocabulary")
        tokenizer = cls(int(content["target_vocab_size"]))
        tokenizer._build(dict(vocab), merges)
        return tokenizer


TOKENIZERS: dict[str, type[Tokenizer]] = {"bpe": BPETokenizer, "char": CharTokenizer}


def build_tokenizer(kind: str, vocab_size: int) -> Tokenizer:
    """An untrained tokenizer of a kind named in `TOKENIZERS`.

    Args:
        kind: `bpe` or `char`.
        vocab_size: the size to reach, for a kind that has the choice.

    Raises:
        ConfigError: unknown kind.
        InputError: a vocabulary too small for the kind.
    """
    lookup("tokenizer", kind, TOKENIZERS)
    return BPETokenizer(vocab_size) if kind == BPETokenizer.kind else TOKENIZERS[kind]()


def iterate_texts(source: TextSource) -> Iterator[str]:
    """The texts of a `TextSource`, a large file in pieces cut after a line."""
    if isinstance(source, str):
        yield source
    elif isinstance(source, Path):
        with source.open(encoding="utf-8", newline="") as file:
            while lines := file.readlines(1 << 20):
                yield "".join(lines)
    else:
        for item in source:
            yield from iterate_texts(item)


def _without_surrogates(text: str) -> str:
    """A lone surrogate is no character; the library would refuse the whole text for it."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _byte_names() -> list[str]:
    """The printable character that stands for each byte in `vocab` and `merges`.

    The same table as GPT-2's: printable bytes stand for themselves, the others are moved above
    U+0100, so that a vocabulary can be read and is exchangeable with other programs.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(moved)) for byte in range(256)]


_BYTE_NAMES = _byte_names()
_NAME_TO_BYTE = {name: byte for byte, name in enumerate(_BYTE_NAMES)}
