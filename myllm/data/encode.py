"""Room: text sources → their ids, batch by batch. Knows nothing of files of tokens.

Text passes through in batches of bounded size, so that memory does not grow with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from myllm.config import DataConfig
from myllm.data.readers import LINE_END, PIECE_BYTES, Piece, Source, last_place, read_pieces
from myllm.data.token_file import Ids
from myllm.system.patience import patiently
from myllm.system.progress import stage
from myllm.tokenizer import Tokenizer

BATCH_BYTES = 1 << 21  # text encoded at once: the library takes up to 90 times that
WORD_END = re.compile(r"\S(?= \S)")


@dataclass
class EncodedBatch:
    """Some text, encoded.

    Attributes:
        ids: (n,) each, in order; an end of text follows each document.
        n_characters: of the text.
        n_bytes: of the text in UTF-8.
        n_documents: that end in it.
    """

    ids: list[Ids]
    n_characters: int
    n_bytes: int
    n_documents: int


def encode_sources(
    sources: list[Source], config: DataConfig, tokenizer: Tokenizer
) -> Iterator[EncodedBatch]:
    """Reads and encodes texts, in order.

    Raises:
        InputError: a text cannot be read.
    """
    with stage("encoding", sum(source.size_bytes for source in sources)) as advance:
        for parts in _batches(_parts(sources, config)):
            batch = _encoded(parts, tokenizer)
            advance(batch.n_bytes)
            yield batch


def _batches(parts: Iterator[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    held = 0
    for part in parts:
        n_bytes = _n_bytes(part[0])
        if batch and held + n_bytes > BATCH_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(part)
        held += n_bytes
    if batch:
        yield batch


def small_texts(texts: Iterable[str]) -> Iterator[str]:
    """The texts, long ones cut after a line, or before a word: there tokens do not change."""
    for text in texts:
        start = 0
        while len(text) - start > PIECE_BYTES:
            end = last_place(LINE_END, text, start) or last_place(WORD_END, text, start)
            end = end or start + PIECE_BYTES
            yield text[start:end]
            start = end
        yield text[start:] if start else text


def _parts(sources: list[Source], config: DataConfig) -> Iterator[Piece]:
    for source in sources:
        for text, ends_document in read_pieces(source, config):
            # a piece is cut once more, so that one long document occupies all cores
            parts = [part for small in small_texts([text]) for part in _halved(small)]
            yield from ((part, False) for part in parts[:-1])
            yield parts[-1], ends_document


def _halved(text: str) -> list[str]:
    if len(text) < PIECE_BYTES // 4:
        return [text]
    middle = LINE_END.search(text, len(text) // 2)
    cut = middle.end() if middle else len(text)
    return [text[:cut], text[cut:]] if cut < len(text) else [text]


def _encoded(parts: list[Piece], tokenizer: Tokenizer) -> EncodedBatch:
    end = np.array([tokenizer.eos_token_id], np.uint32)
    texts = [text for text, _ in parts]
    found = patiently(lambda: tokenizer.encode_batch(texts))
    ids = [array for one, (_, e) in zip(found, parts) for array in ((one, end) if e else (one,))]
    n_bytes, n_documents = sum(map(_n_bytes, texts)), sum(ends for _, ends in parts)
    return EncodedBatch(ids, sum(map(len, texts)), n_bytes, n_documents)


def _n_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
