"""Room: text sources → token files on disk. Knows nothing of models; imports no torch.

    [Source] ──read_pieces──▶ text ──tokenizer──▶ tokens.npy

Text passes through in pieces, so that memory does not grow with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import os
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from myllm.config import DataConfig
from myllm.data.encode import encode_sources, small_texts
from myllm.data.readers import Source, read_pieces
from myllm.data.sources import find_sources, text_hash, text_name
from myllm.data.token_file import (
    SIDECAR,
    SOURCES,
    TOKENIZER,
    TOKENS,
    Ids,
    TokenFile,
    id_dtype,
    open_token_file,
    read_sidecar,
    read_sources,
    split_ranges,
)
from myllm.errors import InputError
from myllm.reading import Reading
from myllm.system.atomic import (
    discard,
    disk,
    listing,
    make_folders,
    require_room,
    sealed_folder,
    write_errors,
)
from myllm.system.locks import made_by_one_process
from myllm.system.patience import patiently
from myllm.system.progress import stage
from myllm.tokenizer import Tokenizer, build_tokenizer

log = logging.getLogger(__name__)

SAMPLE_BYTES = 64 << 20  # text from which byte pairs are learned


def prepare(
    config: DataConfig,
    vocab_size: int,
    tokenizer: Tokenizer | None = None,
    out: Path | None = None,
) -> TokenFile:
    """Turns the texts of `config` into a token file, or finds the one that was made before.

    Args:
        config: the sources and how to read them.
        vocab_size: the size that the tokenizer should reach; 0 chooses it from the text's length.
        tokenizer: one that is trained already (then none is trained).
        out: the folder to make; by default one in `config.data_dir`, named after the content.

    Raises:
        InputError: the texts cannot be used, or `out` holds something else.
        DiskFullError: not enough disk space for the token file.
    """
    if not config.paths:
        raise InputError(
            "the run was imported and has no text of its own: name one, or train on one with "
            "myllm train FILE --from RUN"
        )
    if is_prepared(config):
        return _open_prepared(config, tokenizer)
    order = _place_order(config, vocab_size, tokenizer)
    folder = out or _made_before(order) or order.default_folder
    try:
        found = _existing(folder, order)
    except InputError as error:
        if out is not None:
            raise
        log.warning("%s; it is made again", error)
        found = None
    return found or _make(folder, order, replace=out is None)


def choose_vocab_size(n_bytes: int) -> int:
    """A vocabulary that a text of `n_bytes` can fill: about 2 √bytes, in steps of 64."""
    return min(8192, max(320, round(2 * math.sqrt(n_bytes) / 64) * 64))


@dataclass(frozen=True)
class EncodedText:
    """The ids of a text, and what it is known again by.

    Attributes:
        ids: (n,), each document followed by end of text.
        text_hash: of all of it.
        file_hashes: of each of its files.
    """

    ids: Ids
    text_hash: str
    file_hashes: list[str]


def encode_text(path: str, tokenizer: Tokenizer, config: DataConfig) -> EncodedText:
    """A text file or folder, or one that was prepared before, as ids.

    Raises:
        InputError: the text cannot be read, or was prepared with another tokenizer.
        DiskFullError: there is no room for the ids.
    """
    one = dataclasses.replace(config, paths=(path,), data=None)
    if is_prepared(one):
        if any(getattr(one, f.name) != f.default for f in dataclasses.fields(Reading)):
            raise InputError(
                f"{path} was prepared before: how its text is read cannot be said any more; leave "
                "that out, or name the text itself"
            )
        made = _open_prepared(one, tokenizer)
        hashes = [str(source.get("sha256")) for source in read_sources(made.folder)]
        return EncodedText(made.tokens(), made.text_hash, hashes)
    sources = _find_sources(one)
    hashes = [source.sha256 for source in sources]
    return EncodedText(_encoded(sources, one, tokenizer), text_hash(sources, one), hashes)


def _encoded(sources: list[Source], one: DataConfig, tokenizer: Tokenizer) -> Ids:
    """The ids, mapped from a temporary file that goes with them: memory does not grow."""
    n_bytes, dtype = sum(source.size_bytes for source in sources), id_dtype(tokenizer)
    what, remedy = "encode the text", "free some space, or name another folder in TMPDIR"
    with write_errors(what, Path(tempfile.gettempdir()), n_bytes, remedy):
        with tempfile.TemporaryFile() as file:
            for batch in encode_sources(sources, one, tokenizer):
                for ids in batch.ids:
                    file.write(ids.astype(dtype).tobytes())
            file.flush()
            return np.memmap(file, dtype, "r") if file.tell() else np.empty(0, dtype)


# ------------------------------------------------------------------------------ what is wanted


@dataclass(frozen=True)
class _Order:
    """The token file that is wanted: of which texts, by which tokenizer."""

    config: DataConfig
    sources: list[Source]
    text_hash: str
    vocab_size: int
    tokenizer: Tokenizer | None  # None: one is to be trained

    @property
    def n_bytes(self) -> int:
        return sum(source.size_bytes for source in self.sources)

    @property
    def made_for(self) -> str:
        """The tokenizer: the hash of one that is there, or what is to be trained."""
        if self.tokenizer is not None:
            return self.tokenizer.content_hash
        return f"{self.config.tokenizer} {self.vocab_size}"

    @property
    def default_folder(self) -> Path:
        """Named after the content, so that other content never takes its place."""
        key = hashlib.sha256(f"{self.text_hash} {self.made_for}".encode()).hexdigest()
        return Path(self.config.data_dir) / f"{text_name(self.config)}-{key[:12]}"

    def is_met_by(self, sidecar: dict[str, Any]) -> bool:
        tokenizers = (sidecar["made_for"], sidecar["tokenizer_hash"])
        return sidecar["text_hash"] == self.text_hash and self.made_for in tokenizers


def _place_order(config: DataConfig, vocab_size: int, tokenizer: Tokenizer | None) -> _Order:
    sources = _find_sources(config)
    vocab_size = vocab_size or choose_vocab_size(sum(source.size_bytes for source in sources))
    return _Order(config, sources, text_hash(sources, config), vocab_size, tokenizer)


def _find_sources(config: DataConfig) -> list[Source]:
    with stage("reading"):
        return find_sources(config)


# ------------------------------------------------------------------------------ what is there


def is_prepared(config: DataConfig) -> bool:
    """Whether the one path is not a text, but a folder that was prepared."""
    return len(config.paths) == 1 and os.path.isfile(os.path.join(config.paths[0], SIDECAR))


def _open_prepared(config: DataConfig, tokenizer: Tokenizer | None) -> TokenFile:
    found = open_token_file(Path(config.paths[0]), config.val_split)
    if tokenizer is not None and found.tokenizer.content_hash != tokenizer.content_hash:
        raise InputError(
            f"{config.paths[0]} was prepared with another tokenizer than this model's: name the "
            "text itself"
        )
    return found


def _made_before(order: _Order) -> Path | None:
    """A folder with the ids of this text by this tokenizer, whatever it was made for."""
    pattern = f"{text_name(order.config)}-*/{SIDECAR}"
    for path in sorted(Path(order.config.data_dir).glob(pattern)):
        try:
            if order.is_met_by(read_sidecar(path.parent)):
                return path.parent
        except InputError:
            continue  # damaged: made again, if it is the one
    return None


def _existing(folder: Path, order: _Order) -> TokenFile | None:
    """What was prepared before in `folder`.

    Raises:
        InputError: it is damaged, or something else is there.
    """
    if not folder.exists() or folder.is_dir() and not listing(folder):
        return None
    if not folder.is_dir() or not (folder / SIDECAR).exists():
        raise InputError(f"{folder} exists and holds something else: name another --out")
    if not order.is_met_by(read_sidecar(folder)):
        raise InputError(
            f"{folder} holds something else, another text's tokens: name another --out"
        )
    return open_token_file(folder, order.config.val_split)


# ------------------------------------------------------------------------------ making it


def _make(folder: Path, order: _Order, replace: bool) -> TokenFile:
    """Makes the token file, unless another process makes it meanwhile.

    Args:
        folder: where to.
        order: what to make.
        replace: remove what is there; else there must be nothing.
    """
    make_folders(folder.parent)
    what, remedy = "make a token file", "free some space, or name another --data-dir"
    with write_errors(what, folder.parent, order.n_bytes, remedy), made_by_one_process(folder):
        require_room(folder.parent, order.n_bytes)
        with contextlib.suppress(InputError):
            if found := _existing(folder, order):
                return found
        if replace:
            discard(folder)
        metadata: dict[str, Any] = {
            "format": 3,
            "made_for": order.made_for,
            "text_hash": order.text_hash,
        }
        with sealed_folder(folder, SIDECAR, metadata) as unfinished:
            tokenizer = order.tokenizer or _train_tokenizer(order)
            metadata |= _write_tokens(unfinished, order, tokenizer)
            disk.write(unfinished / SOURCES, lambda path: _write_sources(path, order.sources))
            metadata["tokenizer_hash"] = tokenizer.content_hash
    return open_token_file(folder, order.config.val_split)


def _train_tokenizer(order: _Order) -> Tokenizer:
    tokenizer = build_tokenizer(order.config.tokenizer, order.vocab_size)
    stride = 1
    if order.config.tokenizer == "bpe" and order.n_bytes > SAMPLE_BYTES:
        stride = math.ceil(order.n_bytes / SAMPLE_BYTES)
        log.info("learning byte pairs from one part in %d of the text", stride)
    pieces = (text for source in order.sources for text, _ in read_pieces(source, order.config))
    sample = small_texts(itertools.islice(pieces, 0, None, stride))
    stopped = threading.Event()  # then the thread that learns reads no further
    texts = itertools.takewhile(lambda _: not stopped.is_set(), sample)
    try:
        with stage(f"learning a tokenizer ({order.config.tokenizer})"):
            return patiently(lambda: tokenizer.train(texts))
    finally:
        stopped.set()


def _write_tokens(folder: Path, order: _Order, tokenizer: Tokenizer) -> dict[str, int]:
    """Writes ids and tokenizer; returns the counts."""
    dtype = id_dtype(tokenizer)
    counts = dict(n_tokens=0, n_characters=0, n_bytes=0, n_documents=0)

    def write(path: Path) -> None:
        with path.open("wb") as file:
            _write_header(file, dtype, 0)
            for batch in encode_sources(order.sources, order.config, tokenizer):
                for ids in batch.ids:
                    file.write(ids.astype(dtype).tobytes())
                    counts["n_tokens"] += len(ids)
                for name in ("n_characters", "n_bytes", "n_documents"):
                    counts[name] += getattr(batch, name)
            _write_header(file, dtype, counts["n_tokens"])

    disk.write(folder / TOKENS, write)
    split_ranges(counts["n_tokens"])  # a text that is too short is refused before it has a name
    disk.write(folder / TOKENIZER, tokenizer.save)
    return counts


def _write_sources(path: Path, sources: list[Source]) -> None:
    """A line for each: in the sidecar, which is read as a whole, many would be too many."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for source in sources:
            file.write(json.dumps(dataclasses.asdict(source)) + "\n")


def _write_header(file: BinaryIO, dtype: np.dtype[Any], n_tokens: int) -> None:
    """Writes the .npy header; NumPy leaves room in it for the count to grow in place."""
    file.seek(0)
    header = {"descr": dtype.str, "fortran_order": False, "shape": (n_tokens,)}
    np.lib.format.write_array_header_1_0(file, header)
