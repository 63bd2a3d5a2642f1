"""Room: files, folders, standard input → pieces of text. Knows nothing of tokens.

Text passes through in pieces, so that memory does not grow with it. A format is a reader and its
entry in `READERS`.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from myllm.config import DataConfig
from myllm.errors import InputError
from myllm.registry import Registry

log = logging.getLogger(__name__)

PIECE_BYTES = 1 << 20  # text read at once
CONTROL = re.compile(
    rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]"
)  # text in 8-bit encodings has none of these


@dataclass(frozen=True)
class Source:
    """One text file."""

    path: str
    size_bytes: int
    sha256: str


Piece = tuple[str, bool]
"""Some text, and whether a document ends with it."""

Reader = Callable[[Source, DataConfig], Iterator[Piece]]
"""Reads a file in pieces; raises `InputError` with the place of what it cannot read."""


def find_sources(config: DataConfig) -> list[Source]:
    """The text files that `config.paths` names, in a fixed order, each with its SHA-256.

    Folders are searched recursively; hidden and empty files in them are skipped, and so are
    binary ones without a reader, which is announced. Standard input is kept as a file in
    `config.data_dir`.

    Raises:
        InputError: no such file, an empty one, or no text in a folder.
    """
    try:
        paths = [path for name in config.paths for path in _files_of(name, config)]
        return [Source(_utf8_name(p), p.stat().st_size, _sha256(p)) for p in paths]
    except OSError as error:
        name = str(error.filename)
        shown = name if len(name) < 200 else name[:40] + "…"
        raise InputError(f"cannot use {shown}: {error.strerror}") from None


def _files_of(name: str, config: DataConfig) -> list[Path]:
    path = _spool_stdin(Path(config.data_dir)) if name == "-" else Path(name)
    if path.is_dir():
        return _text_files(path, config.encoding)
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        raise InputError(f"no such file or folder: {name}") from None
    if size_bytes == 0:
        raise InputError(f"{name} is empty: there is no text to learn from")
    return [path]


def _utf8_name(path: Path) -> str:
    """The path as text that can be written down."""
    name = path.as_posix()
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise InputError(f"the file name {shown} is not UTF-8: rename the file") from None
    return name


def _text_files(folder: Path, encoding: str) -> list[Path]:
    found: list[Path] = []
    binary: list[Path] = []
    wide = codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
    for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix()):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file() or path.stat().st_size == 0:
            continue
        (found if wide or _suffix(path) or not _is_binary(path) else binary).append(path)
    if not found:
        what = f"only binary files, such as {binary[0].name}" if binary else "no text files"
        raise InputError(f"{folder} contains {what}: give a folder of texts")
    if binary:
        log.info("skipped %d binary files in %s, such as %s", len(binary), folder, binary[0])
    return found


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return CONTROL.search(file.read(8192)) is not None


def _spool_stdin(folder: Path) -> Path:
    """Standard input as a file named after its hash, so that a resumed run finds it again."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".stdin-{os.getpid()}"
    digest = hashlib.sha256()
    with partial.open("wb") as file:
        while block := sys.stdin.buffer.read(PIECE_BYTES):
            digest.update(block)
            file.write(block)
    if partial.stat().st_size == 0:
        partial.unlink()
        raise InputError("standard input is empty: there is no text to learn from")
    path = folder / f"stdin-{digest.hexdigest()[:12]}.txt"
    os.replace(partial, path)
    return path


def read_pieces(source: Source, config: DataConfig) -> Iterator[Piece]:
    """The text of one file in pieces, by the reader of its suffix.

    Raises:
        InputError: the file is not what its suffix says, or not in the encoding.
    """
    return READERS[_suffix(source.path)](source, config)


def read_plain_text(source: Source, config: DataConfig) -> Iterator[Piece]:
    """One document, cut into pieces of about a megabyte.

    Raises:
        InputError: bytes that are not in the encoding, or null characters (file and offset).
    """
    rest = ""
    for text in _decoded(source, config):
        rest += text
        while len(rest) > PIECE_BYTES:
            cut = _cut_position(rest)
            yield rest[:cut], False
            rest = rest[cut:]
    yield rest, True


def read_jsonl(source: Source, config: DataConfig) -> Iterator[Piece]:
    """A document per line, in its field `text`.

    Raises:
        InputError: as `read_plain_text`, or a line that is not such an object (file and number).
    """
    rest, number = "", 0
    for text in (*_decoded(source, config), "\n"):
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            number += 1
            if line.strip():
                yield _text_field(line, f"{source.path}, line {number}"), True


READERS: Registry[Reader] = Registry("text format", {
    "": read_plain_text,  # and whatever has no reader of its own
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
})  # fmt: skip


def _suffix(path: str | Path) -> str:
    """The key of `READERS` for a file: its last suffix, whatever its case, if it has a reader."""
    suffix = Path(path).suffix.lower()
    return suffix if suffix in READERS else ""


def _text_field(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise InputError(f'{where}: not a JSON object with a string "text"')
    if "\0" in text:
        raise InputError(f"{where}: the text contains null characters; remove them")
    return text.encode("utf-8", "replace").decode()  # JSON can hold half a surrogate pair


def _decoded(source: Source, config: DataConfig) -> Iterator[str]:
    """The characters of a file, without a byte order mark, block by block."""
    encoding = codecs.lookup(config.encoding).name
    decoder = codecs.getincrementaldecoder(encoding)(config.encoding_errors)
    with open(source.path, "rb") as file:
        offset = n_characters = 0
        while True:
            block = file.read(PIECE_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{source.path} is not {encoding}: byte {offset - pending + error.start} "
                    f"({error.reason}); name its encoding (--encoding latin-1), or replace what "
                    "cannot be read (--encoding-errors replace)"
                ) from None
            if "\0" in text:
                raise InputError(
                    f"{source.path} contains null characters, the first at character "
                    f"{n_characters + text.index(chr(0))}: it may be binary, or UTF-16 "
                    "(--encoding utf-16); otherwise remove them"
                )
            if n_characters == 0:
                text = text.removeprefix("\ufeff")  # a byte order mark is not text
            offset += len(block)
            n_characters += len(text)
            yield text
            if not block:
                return


def _cut_position(text: str) -> int:
    """Where to cut a long text: after the last single line end, which no pre-token spans."""
    half = PIECE_BYTES // 2
    cuts = [match.end() for match in re.finditer(r"\S\n(?=\S)", text[half:PIECE_BYTES])]
    return half + cuts[-1] if cuts else PIECE_BYTES


def text_name(config: DataConfig) -> str:
    """A short name for a text: of its first file or folder, fit for a folder's name."""
    first = config.paths[0] if config.paths else "text"
    name = "stdin" if first == "-" else Path(os.path.realpath(first)).name
    name = "python-docs" if name.startswith("python-docs-") else Path(name).stem
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:60] or "text"


def text_hash(sources: list[Source], config: DataConfig) -> str:
    """Changes whenever the text does, and not with where it is."""
    parts = [f"{_suffix(s.path) or Path(s.path).suffix} {s.sha256}" for s in sources]
    parts += [codecs.lookup(config.encoding).name, config.encoding_errors]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
