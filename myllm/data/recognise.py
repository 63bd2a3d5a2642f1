"""Room: a file's first bytes, and its name → what kind of file it is, and how it is encoded.

Knows nothing of how a kind is read. Content goes before the suffix; the suffix only lowers the
evidence that is asked for.
"""

from __future__ import annotations

import codecs
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from myllm.reading import Reading

HEAD_BYTES = 8192
WINDOW_BYTES = 1 << 22  # where the first rows of JSON must end, to be recognised without a suffix
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # no text in an 8-bit encoding has these
TEXT, JSON_LINES, JSON = "text", "JSON lines", "JSON"
BINARY = "binary file"
SUFFIXES = {".jsonl": JSON_LINES, ".ndjson": JSON_LINES, ".json": JSON}  # what they promise
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark begins alike
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

# (offset, bytes, kind) of binary files, and of three kinds that a text editor can open
TEXTUAL = (b"%PDF-", b"{\\rtf", b"%!PS-Adobe")
SIGNATURES: list[tuple[int, bytes, str]] = [
    (0, b"%PDF-", "PDF document"),
    (0, b"{\\rtf", "RTF document"),
    (0, b"%!PS-Adobe", "PostScript document"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Office document"),
    (60, b"BOOKMOBI", "Kindle book"),
    (0, b"AT&TFORM", "DjVu document"),
    (0, b"PK\x03\x04", "zip archive"),  # `_zip_kind` looks inside
    (0, b"PK\x05\x06", "zip archive"),
    (0, b"\x1f\x8b", "gzip file"),
    (0, b"BZh", "bzip2 file"),
    (0, b"\xfd7zXZ\x00", "xz file"),
    (0, b"\x28\xb5\x2f\xfd", "zstd file"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (0, b"Rar!\x1a\x07", "rar archive"),
    (257, b"ustar", "tar archive"),
    *((0, start, "image") for start in (
        b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\x00",
        b"MM\x00*", b"\x00\x00\x01\x00", b"8BPS",
    )),
    (8, b"WEBP", "image"),
    (4, b"ftyp", "video or photo"),
    *((0, start, "sound or video") for start in (
        b"RIFF", b"ID3", b"\xff\xfb", b"fLaC", b"OggS", b"\x1a\x45\xdf\xa3",
    )),
    (0, b"SQLite format 3\x00", "SQLite database"),
    (0, b"PAR1", "Parquet table"),
    (0, b"ARROW1", "Arrow table"),
    (0, b"\x89HDF", "HDF5 file"),
    (0, b"\x93NUMPY", "NumPy array"),
    (0, b"GGUF", "GGUF model"),
    *((0, start, "program") for start in (
        b"\x7fELF", b"MZ", b"\xca\xfe\xba\xbe", b"\xcf\xfa\xed\xfe", b"\x00asm",
    )),
    *((0, start, "font") for start in (b"\x00\x01\x00\x00", b"OTTO", b"wOFF", b"wOF2")),
]  # fmt: skip

ZIP_KINDS = {  # how a name inside begins → what the archive is
    "word/": "Word document",
    "xl/": "Excel document",
    "ppt/": "PowerPoint document",
    "META-INF/container.xml": "EPUB book",
    "content.xml": "OpenDocument file",
}
_AS_TEXT = "save it as plain text (.txt) and name that"
_NO_TEXT = "there is no text in it"
_AS_ROWS = 'export its texts as JSON lines ({"text": …}) and name those'
REMEDIES = {
    **dict.fromkeys(ZIP_KINDS.values(), _AS_TEXT),
    **dict.fromkeys(("RTF document", "PostScript document", "old Office document"), _AS_TEXT),
    **dict.fromkeys(("Kindle book", "DjVu document"), _AS_TEXT),
    "PDF document": "take its text out (pdftotext FILE.pdf FILE.txt) and name that",
    "gzip file": "unpack it (gunzip FILE) or pipe it in (gunzip -c FILE | myllm … -)",
    **dict.fromkeys(("bzip2 file", "xz file", "zstd file"), "unpack it"),
    **dict.fromkeys(("zip archive", "7z archive", "rar archive", "tar archive"), "unpack it"),
    **dict.fromkeys(("SQLite database", "Parquet table", "Arrow table"), _AS_ROWS),
    **dict.fromkeys(("image", "video or photo", "sound or video"), _NO_TEXT),
    **dict.fromkeys(("GGUF model", "program", "font", "NumPy array", "HDF5 file"), _NO_TEXT),
    BINARY: "give texts, such as .txt, .md or .jsonl",
}


@dataclass(frozen=True)
class Recognised:
    """What a file is.

    Attributes:
        kind: a key of `readers.READERS`, or what else it is.
        encoding: of its text, as a codec's name.
        looks_binary: whether its beginning has control characters that texts do not have.
    """

    kind: str
    encoding: str
    looks_binary: bool = False


def recognise(file: BinaryIO, path: str, reading: Reading) -> Recognised:
    """What an open file is, by its beginning; its encoding is found, or the one in `reading`."""
    head = file.read(HEAD_BYTES)
    whole = len(head) < HEAD_BYTES
    encoding, marked = _encoding(head, reading)
    binary = CONTROL.search(head.removesuffix(b"\x1a") if whole else head) is not None
    if not marked and (binary or head.startswith(TEXTUAL)):
        for offset, start, kind in SIGNATURES:
            if head.startswith(start, offset):
                return Recognised(_zip_kind(file) if kind == "zip archive" else kind, encoding)
    wide = _is_wide(encoding)
    kind = _text_kind(_window(file, head, encoding), Path(path).suffix.lower(), reading)
    return Recognised(kind, encoding, binary and not wide)


# ------------------------------------------------------------------------------ encodings


def _encoding(head: bytes, reading: Reading) -> tuple[str, bool]:
    """The encoding of a text that begins so, and whether the text itself says so."""
    configured = codecs.lookup(reading.encoding).name
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            same = encoding == "utf-8" and configured == "utf-8-sig"
            return (configured if same else encoding), True
    if not _is_wide(configured):
        return _wide_without_mark(head) or configured, False
    if configured in ("utf-16", "utf-32"):  # these ask for a mark
        return _wide_without_mark(head) or f"{configured}-le", False
    return configured, False


def _is_wide(encoding: str) -> bool:
    return encoding.startswith(("utf-16", "utf-32"))


def _wide_without_mark(head: bytes) -> str | None:
    """UTF-16 without a byte order mark: the null bytes of blanks and line ends are all at even
    places, or all at odd ones, and what is read so is made of printable characters."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    if (even == 0) == (odd == 0):
        return None
    encoding = "utf-16-le" if odd else "utf-16-be"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return None
    printable = all(c.isprintable() or c.isspace() for c in text.removesuffix("\x1a"))
    return encoding if printable and max(even, odd) * 100 > len(text) else None


# ------------------------------------------------------------------------------ JSON or text


def _window(file: BinaryIO, head: bytes, encoding: str) -> str:
    """The first characters; of what may be JSON, two lines, if they end within the window."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    text = decoder.decode(head).removeprefix("\ufeff").lstrip()
    if not text.startswith(("{", "[")):
        return text
    parts, size, n_lines = [text], len(head), text.count("\n")
    while n_lines < 2 and size < WINDOW_BYTES and (block := file.read(1 << 16)):
        parts.append(decoder.decode(block))
        size += len(block)
        n_lines += parts[-1].count("\n")
    return "".join(parts)


def _text_kind(text: str, suffix: str, reading: Reading) -> str:
    """JSON lines, other JSON, or text. A suffix of JSON is believed; anywhere else the first row
    must have a text, or a second row follow it, as a text may begin with a brace, too."""
    promised = SUFFIXES.get(suffix, TEXT)
    line, _, rest = text.partition("\n")
    if text.startswith("{"):
        row = _parsed(json.loads, line)
        if promised == TEXT:
            second = _parsed(json.loads, rest.lstrip().partition("\n")[0])
            rows = has_text(row, reading.text_field) or row and isinstance(second, dict)
            return JSON_LINES if rows else TEXT
        spread_out = line.strip() == "{" or row is None and promised == JSON
        return JSON if spread_out else JSON_LINES
    if text.startswith("["):
        if promised != TEXT:
            return JSON
        found = _parsed(json.JSONDecoder().raw_decode, text[1:].lstrip())
        return JSON if found and has_text(found[0], reading.text_field) else TEXT
    return TEXT if promised == JSON else promised


def _parsed(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except (ValueError, RecursionError):
        return None


def has_text(row: Any, field: str) -> bool:
    """Whether a row of JSON is an object with a string in `field`."""
    return isinstance(row, dict) and isinstance(value_at(row, field), str)


def value_at(row: dict[str, Any], field: str) -> Any:
    """The value of a field, or of a field within fields: `data.text`."""
    if field in row or "." not in field:
        return row.get(field)
    name, _, inner = field.partition(".")
    below = row.get(name)
    return value_at(below, inner) if isinstance(below, dict) else None


# ------------------------------------------------------------------------------ archives


def _zip_kind(file: BinaryIO) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "zip archive"
    for start, kind in ZIP_KINDS.items():
        if any(name.startswith(start) for name in names):
            return kind
    return "zip archive"
