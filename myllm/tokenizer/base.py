"""Room: what every tokenizer has (`Tokenizer`), and how bytes are written in vocabularies."""

from __future__ import annotations

import codecs
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from myllm.errors import InputError
from myllm.kinds import TOKENIZERS

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

END_OF_TEXT = "<|endoftext|>"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

TRAINED: dict[str, type[Tokenizer]] = {}  # those that others have trained, by kind

TextSource: TypeAlias = str | Path | Iterable[str | Path]
"""A text, a UTF-8 file (as a `Path`), or an iterable of both."""


class Tokenizer(ABC):
    """What every tokenizer has. Text is `str`, ids are `list[int]`.

    Attributes:
        kind: its name in `kinds.TOKENIZERS`, in `--tokenizer` and in `tokenizer.json`.
        learns: whether `train` takes anything from the text.
        has_size: whether a vocabulary size can be asked for; such a kind overrides `build`.
    """

    kind: ClassVar[str]
    learns: ClassVar[bool] = True
    has_size: ClassVar[bool] = False

    @classmethod
    def build(cls, vocab_size: int) -> Tokenizer:
        """An untrained one. A kind that can be told the size of its vocabulary (`has_size`)
        overrides this.

        Args:
            vocab_size: the size to reach in training.

        Raises:
            InputError: a vocabulary too small for the kind.
        """
        return cls()

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
    def eos_token_id(self) -> int:
        """The id that separates documents. No text encodes to it."""

    @property
    def eos_token(self) -> str:
        """The name of that token."""
        return END_OF_TEXT

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids at which a model has ended its text: `eos_token_id` first, rarely others."""
        return (self.eos_token_id,)

    def ids_without_token(self, vocab_size: int) -> list[int]:
        """The ids of a model's vocabulary that stand for nothing: no text has them, and nothing
        that writes may draw them.

        Args:
            vocab_size: the model's, which others pad to a round number.
        """
        return list(range(self.vocab_size, vocab_size))

    @property
    def unknown_ids(self) -> tuple[int, ...]:
        """The ids that stand for any character which the vocabulary lacks: to be read, never to be
        written."""
        return ()

    @property
    def prefix_ids(self) -> list[int]:
        """The ids that stand before a text for a model to continue; often none."""
        return []

    @property
    def bos_token_id(self) -> int:
        """The id that begins a text for a model; `eos_token_id` where there is none of its own."""
        return (self.prefix_ids or [self.eos_token_id])[0]

    def line_start(self) -> list[int]:
        """The ids of what stands before a line of a text: a line end; where the vocabulary has
        none, a blank, or else its first token that stands for something."""
        for text in ("\n", " "):
            ids = self.encode(text)
            if ids and not self.count_unknown(np.array(ids)):
                return ids
        usual = (id for id in range(self.vocab_size) if id not in self.unknown_ids)
        return [next((id for id in usual if self.token_bytes(id)), self.eos_token_id)]

    @property
    def chat_template(self) -> str | None:
        """How other programs turn a conversation into a text (Jinja). It is never run here."""
        return None

    def to_engine(self) -> Engine:
        """The same tokenizer as one of the `tokenizers` library, which other programs read.

        Raises:
            InputError: this kind cannot be one.
        """
        raise InputError(f"a {self.kind} tokenizer cannot be exported: no other program knows it")

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
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD.

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

    def foreign_share(self, ids: np.ndarray) -> float:
        """How much of a text is in a writing that the vocabulary was not made of, from 0 to 1; 0
        where that cannot be told."""
        return 0.0

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
            content = json.loads(Path(path).read_bytes().decode("utf-8-sig", "surrogatepass"))
        except OSError as error:
            raise InputError(f"cannot read tokenizer {path}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise InputError(f"{path} is not a tokenizer: it is not valid JSON") from None
        kind = content.get("kind") if isinstance(content, dict) else None
        found: type[Tokenizer] | None = None
        if isinstance(kind, str):
            found = TOKENIZERS.get(kind) or TRAINED.get(kind)
        if found is None:
            raise InputError(f"{path} is not a tokenizer: its kind is {kind!r}")
        if not issubclass(found, cls):
            raise InputError(f"{path} holds a {kind} tokenizer, not a {cls.kind} one")
        try:
            return found.from_dict(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} is not a usable {kind} tokenizer: {error}") from None


class EngineTokenizer(Tokenizer):
    """A tokenizer whose encoding is the `tokenizers` library's.

    A subclass sets `_engine`, and `_bytes`: what each id stands for.
    """

    _engine: Engine
    _bytes: list[bytes]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        clean = [without_surrogates(text) for text in texts]
        encodings = self._engine.encode_batch_fast(clean, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def token_bytes(self, id: int) -> bytes:
        if not 0 <= id < len(self._bytes):
            raise InputError(f"id {id} is not in the vocabulary of {self.vocab_size}")
        return self._bytes[id]

    @property
    def vocab_size(self) -> int:
        return len(self._bytes)

    def to_engine(self) -> Engine:
        return self._engine


def iterate_texts(source: TextSource) -> Iterator[str]:
    """The texts of a `TextSource`, a large file in pieces cut after a line where there is one."""
    if isinstance(source, str):
        yield source
    elif isinstance(source, Path):
        with source.open(encoding="utf-8", newline="") as file:
            while text := file.read((1 << 20) - 1):
                yield text + file.readline(1 << 20)
    else:
        for item in source:
            yield from iterate_texts(item)


def without_surrogates(text: str) -> str:
    """A lone surrogate is not a character; the library would refuse the whole text for it."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _byte_names() -> list[str]:
    """The printable character that stands for each byte in `vocab` and `merges`.

    The same table as GPT-2's: printable bytes stand for themselves, the others are moved above
    U+0100, so that a vocabulary can be read and is exchangeable with other programs.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(moved)) for byte in range(256)]


BYTE_NAMES = _byte_names()
NAME_TO_BYTE = {name: byte for byte, name in enumerate(BYTE_NAMES)}
