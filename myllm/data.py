"""Room: text sources → token files on disk. Knows nothing of models; imports no torch.

    [Source] ──read_pieces──▶ text ──tokenizer──▶ tokens.npy

A prepared folder holds `tokens.npy` (all documents, each followed by end of text),
`tokens.json` (counts, hashes, sources) and `tokenizer.json`.
Text passes through in pieces, so that memory does not grow with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from myllm.config import DataConfig
from myllm.errors import InputError
from myllm.sources import PIECE_BYTES, Source, find_sources, read_pieces, text_hash, text_name
from myllm.storage import (
    Damaged,
    check_files,
    discard,
    disk,
    made_by_one_process,
    read_manifest,
    require_room,
    sealed_folder,
    write_errors,
)
from myllm.tokenizer import Tokenizer, build_tokenizer

log = logging.getLogger(__name__)

Range = tuple[int, int]
"""A half-open interval of positions in a token file."""

BATCH_CHARACTERS = 1 << 21  # text encoded at once: what the memory of preparing is bounded by
SAMPLE_BYTES = 64 << 20  # text from which byte pairs are learned
MIN_TOKENS = 64  # below this nothing can be learned or measured
SIDECAR = "tokens.json"
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
    source_paths: list[str]
    train_ranges: list[Range]
    val_ranges: list[Range]

    def tokens(self) -> np.ndarray:
        """All ids (n_tokens,), mapped from disk, not read into memory."""
        return np.load(self.folder / "tokens.npy", mmap_mode="r", allow_pickle=False)


def split_ranges(n_tokens: int, val_split: str = "spread") -> tuple[list[Range], list[Range]]:
    """Training and validation ranges of a text of `n_tokens`: disjoint, and together all of it.

    A tenth (of a long text less) is held out: `spread` in up to ten pieces, because the last
    tenth alone is often of another kind than the rest; or the `end`, as published figures do.

    Raises:
        InputError: fewer than `MIN_TOKENS`.
    """
    if n_tokens < MIN_TOKENS:
        raise InputError(
            f"the text has {n_tokens} tokens, the least is {MIN_TOKENS}: give a longer text "
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


def choose_vocab_size(n_bytes: int) -> int:
    """A vocabulary that a text of `n_bytes` can fill: about 2 √bytes, in steps of 64."""
    return min(8192, max(320, round(2 * math.sqrt(n_bytes) / 64) * 64))


def prepare(
    config: DataConfig,
    vocab_size: int,
    tokenizer: Tokenizer | None = None,
    out: Path | None = None,
) -> TokenFile:
    """Turns the texts of `config` into a token file, or finds the one that was made before.

    Args:
        config: the sources and how to read them.
        vocab_size: what the tokenizer shall reach; 0 chooses it from the text's length.
        tokenizer: one that is trained already (then none is trained).
        out: the folder to make; by default one in `config.data_dir`, named after the content.

    Raises:
        InputError: the texts cannot be used, or `out` holds something else.
        DiskFullError: no room for the token file.
    """
    if not config.paths:
        raise InputError(
            "the run was imported and has no text of its own: name one, or train on one with "
            "myllm train FILE --from RUN"
        )
    if len(config.paths) == 1 and os.path.isfile(os.path.join(config.paths[0], "tokens.json")):
        found = open_token_file(Path(config.paths[0]), config.val_split)
        if tokenizer is not None and found.tokenizer.content_hash != tokenizer.content_hash:
            raise InputError(f"{config.paths[0]} was prepared with another tokenizer")
        return found
    sources = find_sources(config)
    fingerprint = text_hash(sources, config)
    n_bytes = sum(source.size_bytes for source in sources)
    vocab_size = vocab_size or choose_vocab_size(n_bytes)
    wanted = tokenizer.content_hash if tokenizer else f"{config.tokenizer} {vocab_size}"
    key = hashlib.sha256(f"{fingerprint} {wanted}".encode()).hexdigest()
    name = f"{text_name(config)}-{key[:12]}"
    folder = out or _made_before(config, fingerprint, wanted) or Path(config.data_dir) / name
    try:
        if there := _existing(folder, fingerprint, wanted, config):
            return there
    except InputError as error:
        if out is not None:
            raise
        log.warning("%s; it is made again", error)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}") from None
    what, remedy = "make a token file", "make room, or name another --data-dir"
    with write_errors(what, folder.parent, n_bytes, remedy), made_by_one_process(folder):
        require_room(folder.parent, n_bytes)
        with contextlib.suppress(InputError):
            if there := _existing(folder, fingerprint, wanted, config):
                return there  # another process has made it meanwhile
        if out is None:
            discard(folder)
        facts: dict[str, Any] = {"format": 2, "made_for": wanted, "text_hash": fingerprint}
        facts["sources"] = [asdict(source) for source in sources]
        with sealed_folder(folder, SIDECAR, facts) as unfinished:
            if tokenizer is None:
                tokenizer = _train_tokenizer(sources, config, vocab_size, n_bytes)
            facts |= _write_tokens(unfinished, sources, config, tokenizer)
            facts["tokenizer_hash"] = tokenizer.content_hash
    return open_token_file(folder, config.val_split)


def _existing(folder: Path, fingerprint: str, wanted: str, config: DataConfig) -> TokenFile | None:
    """What was prepared before in `folder`.

    Raises:
        InputError: it is damaged, or something else is there.
    """
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return None
    if not folder.is_dir() or not (folder / SIDECAR).exists():
        raise InputError(f"{folder} exists and holds something else: name another --out")
    if not _is_of(_sidecar(folder), fingerprint, wanted):
        raise InputError(
            f"{folder} holds something else, another text's tokens: name another --out"
        )
    return open_token_file(folder, config.val_split)


def _made_before(config: DataConfig, fingerprint: str, wanted: str) -> Path | None:
    """A folder with the ids of this text by this tokenizer, whatever it was made for."""
    for path in sorted(Path(config.data_dir).glob(f"{text_name(config)}-*/{SIDECAR}")):
        try:
            if _is_of(_sidecar(path.parent), fingerprint, wanted):
                return path.parent
        except InputError:
            continue  # damaged: made again, if it is the one
    return None


def _is_of(sidecar: dict[str, Any], fingerprint: str, wanted: str) -> bool:
    tokenizers = (sidecar["made_for"], sidecar["tokenizer_hash"])
    return sidecar["text_hash"] == fingerprint and wanted in tokenizers


def open_token_file(folder: Path, val_split: str = "spread") -> TokenFile:
    """Opens a prepared folder and checks that its parts belong together.

    Args:
        folder: made by `prepare`.
        val_split: which part of it is held out (see `split_ranges`).

    Raises:
        InputError: something is missing, damaged or of another tokenizer.
    """
    remedy = "delete the folder and prepare it again"
    try:
        sidecar = _sidecar(folder)
        check_files(folder, SIDECAR, ("tokenizer.json", "tokens.npy"))
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
        tokens = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
    except Damaged as error:
        raise InputError(f"{error}; {remedy}") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{folder / 'tokens.npy'} cannot be read ({error}); {remedy}") from None
    n_tokens = sidecar["n_tokens"]
    if tokens.shape != (n_tokens,) or tokens.dtype != _id_dtype(tokenizer):
        raise InputError(f"{folder / 'tokens.npy'} is not what tokens.json describes; {remedy}")
    if _largest_id(folder / "tokens.npy", tokens.dtype) >= tokenizer.vocab_size:
        raise InputError(f"{folder / 'tokens.npy'} has ids beyond its vocabulary; {remedy}")
    train_ranges, val_ranges = split_ranges(n_tokens, val_split)
    counts = {name: sidecar[name] for name in ("n_characters", "n_bytes", "n_documents")}
    return TokenFile(
        folder, tokenizer, n_tokens, text_hash=sidecar["text_hash"],
        source_paths=[str(source.get("path")) for source in sidecar["sources"]],
        train_ranges=train_ranges, val_ranges=val_ranges, **counts,
    )  # fmt: skip


def fitting_context(token_file: TokenFile, context_length: int) -> int:
    """The context length, or for a short text one that its ranges hold twice; announced."""
    longest = max(end - start for start, end in token_file.train_ranges)
    fitting = max(8, longest // 2)
    if context_length <= fitting:
        return context_length
    log.warning(
        "the text is short (%d tokens): the context is %d tokens, not %d",
        token_file.n_tokens, fitting, context_length,
    )  # fmt: skip
    return fitting


def encode_file(path: str, tokenizer: Tokenizer, config: DataConfig) -> np.ndarray:
    """The ids of a text file or folder in memory, each document followed by end of text.

    Raises:
        InputError: the text cannot be read.
    """
    one = DataConfig(
        (path,), encoding=config.encoding, encoding_errors=config.encoding_errors,
        data_dir=config.data_dir,
    )  # fmt: skip
    batches = _batches(find_sources(one), one, tokenizer)
    return np.concatenate([ids for batch in batches for ids in batch.ids])


def _train_tokenizer(
    sources: list[Source], config: DataConfig, vocab_size: int, n_bytes: int
) -> Tokenizer:
    tokenizer = build_tokenizer(config.tokenizer, vocab_size)
    stride = 1
    if config.tokenizer == "bpe" and n_bytes > SAMPLE_BYTES:
        stride = math.ceil(n_bytes / SAMPLE_BYTES)
        log.info("learning byte pairs from one part in %d of the text", stride)
    pieces = (text for source in sources for text, _ in read_pieces(source, config))
    return tokenizer.train(text for i, text in enumerate(pieces) if i % stride == 0)


@dataclass
class _Batch:
    ids: list[np.ndarray]
    n_characters: int
    n_bytes: int
    n_documents: int


def _batches(sources: list[Source], config: DataConfig, tokenizer: Tokenizer) -> Iterator[_Batch]:
    end = np.array([tokenizer.eos_token_id], np.uint32)
    texts: list[str] = []
    ends: list[bool] = []

    def encoded() -> _Batch:
        ids = tokenizer.encode_batch(texts)
        joined = [part for i, e in zip(ids, ends) for part in ((i, end) if e else (i,))]
        n_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        return _Batch(joined, sum(map(len, texts)), n_bytes, sum(ends))

    held = 0
    for source in sources:
        for text, ends_document in read_pieces(source, config):
            # a piece is cut once more, so that one long document occupies all cores
            parts = _halved(text)
            texts += parts
            ends += [False] * (len(parts) - 1) + [ends_document]
            held += len(text)
            if held >= BATCH_CHARACTERS:
                yield encoded()
                texts, ends, held = [], [], 0
    if texts:
        yield encoded()


def _halved(text: str) -> list[str]:
    if len(text) < PIECE_BYTES // 4:
        return [text]
    middle = re.search(r"\S\n(?=\S)", text[len(text) // 2 :])
    cut = len(text) // 2 + middle.end() if middle else len(text)
    return [text[:cut], text[cut:]] if cut < len(text) else [text]


def _write_tokens(
    folder: Path, sources: list[Source], config: DataConfig, tokenizer: Tokenizer
) -> dict[str, int]:
    """Writes ids and tokenizer; returns the counts."""
    dtype = _id_dtype(tokenizer)
    counts = dict(n_tokens=0, n_characters=0, n_bytes=0, n_documents=0)

    def write(path: Path) -> None:
        with path.open("wb") as file:
            _write_header(file, dtype, 0)
            for batch in _batches(sources, config, tokenizer):
                for ids in batch.ids:
                    file.write(ids.astype(dtype).tobytes())
                    counts["n_tokens"] += len(ids)
                for name in ("n_characters", "n_bytes", "n_documents"):
                    counts[name] += getattr(batch, name)
            _write_header(file, dtype, counts["n_tokens"])

    disk.write(folder / "tokens.npy", write)
    split_ranges(counts["n_tokens"])  # a text that is too short is refused before it has a name
    disk.write(folder / "tokenizer.json", tokenizer.save)
    return counts


def _write_header(file: BinaryIO, dtype: np.dtype, n_tokens: int) -> None:
    """Writes the .npy header; NumPy leaves room in it for the count to grow in place."""
    file.seek(0)
    header = {"descr": dtype.str, "fortran_order": False, "shape": (n_tokens,)}
    np.lib.format.write_array_header_1_0(file, header)


def _largest_id(path: Path, dtype: np.dtype) -> int:
    """Reads the file in blocks: pages of a mapped file would stay in memory."""
    largest = 0
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        while block := file.read(1 << 24):
            largest = max(largest, int(np.frombuffer(block, dtype).max()))
    return largest


def _id_dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def _sidecar(folder: Path) -> dict[str, Any]:
    """What `tokens.json` says.

    Raises:
        InputError: it is missing, altered, or not of a prepared folder.
    """
    wanted = {
        "made_for": str, "tokenizer_hash": str, "text_hash": str, "sources": list,
        "n_tokens": int, "n_characters": int, "n_bytes": int, "n_documents": int,
    }  # fmt: skip
    try:
        content = read_manifest(folder, SIDECAR)
    except Damaged as error:
        raise InputError(f"{error}: delete {folder} and prepare it again") from None
    if not all(type(content.get(name)) is kind for name, kind in wanted.items()):
        raise InputError(f"{folder} is not a prepared folder: name another, or prepare one")
    return content
