"""Room: a token file on disk → its ids, counts, tokenizer and split. Knows nothing of texts.

A prepared folder holds `tokens.npy` (all documents, each followed by end of text),
`tokens.json` (counts, hashes), `sources.jsonl` (a line for each file of text) and
`tokenizer.json`.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from myllm.errors import InputError
from myllm.system.atomic import Damaged, check_files, read_manifest
from myllm.system.progress import stage
from myllm.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Range = tuple[int, int]
"""A half-open interval of positions in a token file."""

Ids = np.ndarray[Any, np.dtype[Any]]
"""Token ids (n,), uint16 or uint32."""

MIN_TOKENS = 64  # below this nothing can be learned or measured
SIDECAR, TOKENS, TOKENIZER = "tokens.json", "tokens.npy", "tokenizer.json"
SOURCES = "sources.jsonl"
REMEDY = "delete the folder and prepare it again"
VALIDATION_SHARE = 0.1
VALIDATION_MAX_TOKENS = 250_000  # enough to measure the loss to a thousandth
VALIDATION_PIECES = 10


@dataclass(frozen=True)
class TokenFile:
    """A prepared text: its folder, its counts, its split."""

    folder: Path
    tokenizer: Tokenizer
    n_tokens: int
    n_characters: int
    n_bytes: int
    n_documents: int
    text_hash: str
    train_ranges: list[Range]
    val_ranges: list[Range]

    def tokens(self) -> Ids:
        """All ids (n_tokens,), mapped from disk, not read into memory, where that can be done."""
        return _mapped(self.folder / TOKENS)

    @property
    def n_train_tokens(self) -> int:
        """Tokens to learn from."""
        return n_tokens_of(self.train_ranges)

    @property
    def n_val_tokens(self) -> int:
        """Tokens that are held out."""
        return n_tokens_of(self.val_ranges)

    def source_paths(self) -> list[str]:
        """The files of text that it was made from, in order.

        Raises:
            InputError: the list of them is damaged.
        """
        return [str(source["path"]) for source in read_sources(self.folder)]


def n_tokens_of(ranges: Sequence[Range]) -> int:
    """The tokens of parts of a text."""
    return sum(end - start for start, end in ranges)


def split_ranges(n_tokens: int, val_split: str = "spread") -> tuple[list[Range], list[Range]]:
    """Training and validation ranges of a text of `n_tokens`: disjoint, and together all of it.

    A tenth (of a long text less) is held out: `spread` in up to ten pieces, because the last
    tenth alone is often of another kind than the rest; or the `end`, as published figures do.

    Raises:
        InputError: fewer than `MIN_TOKENS`.
    """
    if n_tokens < MIN_TOKENS:
        raise InputError(
            f"the text has {n_tokens} tokens, the minimum is {MIN_TOKENS}: give a longer text "
            "(2,000 characters are enough to try, 1,000,000 to see it learn)"
        )
    held_out = min(n_tokens - int(n_tokens * (1 - VALIDATION_SHARE)), VALIDATION_MAX_TOKENS)
    if val_split == "end":
        return [(0, n_tokens - held_out)], [(n_tokens - held_out, n_tokens)]
    n_pieces = max(1, min(VALIDATION_PIECES, held_out // 256))
    length = max(2, held_out // n_pieces)
    val = [
        (start, start + length)
        for start in (
            (2 * i + 1) * n_tokens // (2 * n_pieces) - length // 2 for i in range(n_pieces)
        )
    ]
    edges = [0, *(edge for piece in val for edge in piece), n_tokens]
    return list(zip(edges[::2], edges[1::2])), val


def open_token_file(folder: Path, val_split: str = "spread") -> TokenFile:
    """Opens a prepared folder and checks that its parts belong together.

    Args:
        folder: made by `prepare`.
        val_split: which part of it is held out (see `split_ranges`).

    Raises:
        InputError: something is missing, damaged or of another tokenizer.
    """
    with stage("checking"):
        return _checked(folder, val_split)


def _checked(folder: Path, val_split: str) -> TokenFile:
    try:
        sidecar = read_sidecar(folder)
        check_files(folder, SIDECAR, (TOKENIZER, TOKENS))
        tokenizer = Tokenizer.load(folder / TOKENIZER)
        tokens = _mapped(folder / TOKENS)
    except Damaged as error:
        raise InputError(f"{error}; {REMEDY}") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{folder / 'tokens.npy'} cannot be read ({error}); {REMEDY}") from None
    n_tokens = sidecar["n_tokens"]
    if tokens.shape != (n_tokens,) or tokens.dtype != id_dtype(tokenizer):
        raise InputError(f"{folder / 'tokens.npy'} is not what tokens.json describes; {REMEDY}")
    if _largest_id(folder / TOKENS, tokens.dtype) >= tokenizer.vocab_size:
        raise InputError(f"{folder / 'tokens.npy'} has ids beyond its vocabulary; {REMEDY}")
    train_ranges, val_ranges = split_ranges(n_tokens, val_split)
    counts = {name: sidecar[name] for name in ("n_characters", "n_bytes", "n_documents")}
    return TokenFile(
        folder, tokenizer, n_tokens, text_hash=sidecar["text_hash"],
        train_ranges=train_ranges, val_ranges=val_ranges, **counts,
    )  # fmt: skip


def read_sidecar(folder: Path) -> dict[str, Any]:
    """What `tokens.json` says.

    Raises:
        InputError: it is missing, altered, or not of a prepared folder.
    """
    wanted = {
        "made_for": str, "tokenizer_hash": str, "text_hash": str,
        "n_tokens": int, "n_characters": int, "n_bytes": int, "n_documents": int,
    }  # fmt: skip
    try:
        content = read_manifest(folder, SIDECAR)
    except Damaged as error:
        raise InputError(f"{error}: delete {folder} and prepare it again") from None
    if not all(type(content.get(name)) is kind for name, kind in wanted.items()):
        raise InputError(f"{folder} is not a prepared folder: name another, or prepare one")
    return content


def read_sources(folder: Path) -> list[dict[str, Any]]:
    """The files of text that a prepared folder was made from, in order: path, sha256, ….

    Raises:
        InputError: the list of them is damaged.
    """
    sidecar = read_sidecar(folder)
    try:
        if "sources" in sidecar:  # until format 2 they stood there
            return list(sidecar["sources"])
        check_files(folder, SIDECAR, (SOURCES,))
        with (folder / SOURCES).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except Damaged as error:
        raise InputError(f"{error}; {REMEDY}") from None


def _mapped(path: Path) -> Ids:
    try:
        ids: Ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        if error.errno != errno.ENODEV:  # some network file systems cannot
            raise
        ids = np.load(path, allow_pickle=False)
    return ids


def _largest_id(path: Path, dtype: np.dtype[Any]) -> int:
    """Reads the file in blocks: pages of a mapped file would stay in memory."""
    largest = 0
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        while block := file.read(1 << 24):
            largest = max(largest, int(np.frombuffer(block, dtype).max()))
    return largest


def id_dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The type of ids on disk: two bytes as long as all ids of the vocabulary fit."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def longest_sequence(ranges: Sequence[Range]) -> int:
    """The tokens of the longest sequences that a range of the text holds twice."""
    return max(8, max(end - start for start, end in ranges) // 2)


def fitting_context(token_file: TokenFile, length: int, what: str = "the context is") -> int:
    """The length, or for a short text one that its ranges hold twice; announced."""
    fitting = longest_sequence(token_file.train_ranges)
    if length <= fitting:
        return length
    log.warning(
        "the text is short (%d tokens): %s %d tokens, not %d",
        token_file.n_tokens, what, fitting, length,
    )  # fmt: skip
    return fitting
