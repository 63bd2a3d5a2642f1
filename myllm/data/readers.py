"""Room: a file → pieces of text, and what of it is no document. Knows nothing of folders.

A kind of file that can be read is a reader and its entry in `READERS`, under the name that
`recognise` gives the kind. A reader holds a bounded part of the file at a time.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from myllm.data.recognise import JSON, JSON_LINES, TEXT, value_at
from myllm.errors import InputError
from myllm.reading import Reading
from myllm.registry import Registry

PIECE_BYTES = 1 << 20  # text read at once
LINE_END = re.compile(r"\S\n(?=\S)")  # a single one, which no pre-token spans
MAX_ROW_CHARACTERS = 1 << 26  # a row of JSON has to be held whole


@dataclass(frozen=True)
class Source:
    """One file of text: what it is, and how it is encoded."""

    path: str
    size_bytes: int
    sha256: str
    kind: str = TEXT
    encoding: str = "utf-8"


class Unusable(InputError):
    """A file that holds no text that can be read.

    Args:
        reason: in two or three words, by which such files are counted.
        message: the line for a person who named this file.
        detail: what a count adds to the file's name.
    """

    def __init__(self, reason: str, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.reason, self.detail = reason, detail


class NotEncoded(Unusable):
    """A byte that is not in the encoding."""

    def __init__(self, source: Source, at: int, why: str) -> None:
        super().__init__(
            f"not {source.encoding}",
            f"{source.path} is not {source.encoding}: byte {at} ({why}); name the encoding of "
            "such files (--fallback-encoding latin-1), or replace what cannot be read "
            "(--encoding-errors replace)",
            f"byte {at}",
        )


Piece = tuple[str, bool]
"""Some text, and whether a document ends with it."""


@dataclass(frozen=True)
class Left:
    """A part of a file that is no document.

    Attributes:
        reason: in two or three words, by which such parts are counted.
        where: its place in the file.
        fields: what it has in place of the field of the text, with the length of each.
        is_error: whether a person who wants all of the file should hear of it.
    """

    reason: str
    where: str
    fields: dict[str, int] | None = None
    is_error: bool = True


Reader = Callable[[Source, Reading], Iterator[Piece | Left]]
"""Reads a file in pieces; raises `Unusable`, with the place, where it cannot go on."""


def read_pieces(source: Source, reading: Reading) -> Iterator[Piece]:
    """The text of one file in pieces, by the reader of its kind.

    Raises:
        InputError: the file is not what it was taken for.
    """
    for piece in READERS[source.kind](source, reading):
        if not isinstance(piece, Left):
            yield piece


# ------------------------------------------------------------------------------ plain text


def read_plain_text(source: Source, reading: Reading) -> Iterator[Piece | Left]:
    """One document, or with a separator several, cut into pieces of about a megabyte.

    A line end behind a separator belongs to it.

    Raises:
        Unusable: bytes that are not in the encoding, or null characters (file and offset).
    """
    separator = reading.separator
    rest, begins = "", False  # whether a separator stands before `rest`
    for text in decoded(source, reading):
        rest += text
        if separator is not None and separator in rest:
            *documents, rest = rest.split(separator)
            for document in documents:
                yield from _last_pieces(_without_line_end(document) if begins else document)
                begins = True
        while len(rest) > PIECE_BYTES + len(separator or ""):  # no separator is cut
            if begins:
                rest, begins = _without_line_end(rest), False
            cut = _cut_position(rest)
            yield rest[:cut], False
            rest = rest[cut:]
    if separator is None:
        yield rest, True
    else:
        yield from _last_pieces(_without_line_end(rest) if begins else rest)


def _last_pieces(text: str) -> Iterator[Piece | Left]:
    """The end of a document, unless there is nothing in it."""
    if not text.strip():
        yield Left("empty document", "between separators", is_error=False)
        return
    while len(text) > PIECE_BYTES:
        cut = _cut_position(text)
        yield text[:cut], False
        text = text[cut:]
    yield text, True


def _without_line_end(text: str) -> str:
    return text.removeprefix("\r").removeprefix("\n")


def _cut_position(text: str) -> int:
    return last_place(LINE_END, text) or PIECE_BYTES


def last_place(place: re.Pattern[str], text: str, start: int = 0) -> int | None:
    """Where to cut a text so that a piece begins at `start`: after the last such place in the
    second half of what a piece may be."""
    half = PIECE_BYTES // 2
    ends = [match.end() for match in place.finditer(text, start + half, start + PIECE_BYTES)]
    return ends[-1] if ends else None


def decoded(source: Source, reading: Reading) -> Iterator[str]:
    """The characters of a file, block by block, without a byte order mark and a DOS end of file.

    Raises:
        Unusable: bytes that are not in the encoding, or null characters (file and offset).
    """
    decoder = codecs.getincrementaldecoder(source.encoding)(reading.encoding_errors)
    with open(source.path, "rb") as file:
        offset = n_characters = 0
        held = ""  # a 0x1A that may be the last character
        while True:
            block = file.read(PIECE_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeError as error:  # UnicodeDecodeError, or a codec's own
                at = offset - pending + getattr(error, "start", 0)
                raise NotEncoded(source, at, getattr(error, "reason", str(error))) from None
            if "\0" in text:
                raise Unusable(
                    "null characters",
                    f"{source.path} contains null characters, the first at character "
                    f"{n_characters + text.index(chr(0))}: it is binary, or they must be removed",
                )
            if n_characters == 0:
                text = text.removeprefix("\ufeff")  # a byte order mark is not text
            offset += len(block)
            n_characters += len(text)
            text = held + text
            held = "\x1a" if text.endswith("\x1a") else ""
            yield text.removesuffix("\x1a")
            if not block:
                return


# ------------------------------------------------------------------------------ rows of JSON


def read_json_lines(source: Source, reading: Reading) -> Iterator[Piece | Left]:
    """A document per line, in the text field of its object; a string is a text by itself.

    Raises:
        Unusable: as `decoded`.
    """
    for number, line in enumerate(_lines(source, reading), 1):
        where = f"line {number}"
        if line is None:
            yield Left("row too long", where)
        elif line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                yield Left("row that is no JSON", where)
            else:
                yield document_of(row, where, reading.text_field)


def _lines(source: Source, reading: Reading) -> Iterator[str | None]:
    """The lines of a file; None for one that is too long to be held."""
    parts: list[str] = []
    size = 0
    for text in decoded(source, reading):
        first, *others = text.split("\n")
        parts.append(first)
        size += len(first)
        if size > MAX_ROW_CHARACTERS:
            parts.clear()
        if others:
            yield None if size > MAX_ROW_CHARACTERS else "".join(parts)
            yield from others[:-1]
            parts, size = [others[-1]], len(others[-1])
    yield None if size > MAX_ROW_CHARACTERS else "".join(parts)


def document_of(row: Any, where: str, field: str) -> Piece | Left:
    """The text of a row, or why there is none."""
    text = row if isinstance(row, str) else None
    if isinstance(row, dict):
        text = value_at(row, field)
    if not isinstance(text, str):
        return Left("row without text", where, _fields(row))
    if not text.strip():
        return Left("empty text", where, is_error=False)
    if "\0" in text:
        return Left("row with null characters", where)
    return text.encode("utf-8", "replace").decode(), True  # JSON can hold half a surrogate pair


def _fields(row: Any, depth: int = 3) -> dict[str, int]:
    """The fields of an object by name, those within others too; how long each one's text is."""
    found: dict[str, int] = {}
    for name, value in row.items() if isinstance(row, dict) else ():
        below = _fields(value, depth - 1) if depth > 1 else {}
        if below:
            found |= {f"{name}.{inner}": length for inner, length in below.items()}
        else:
            found[name] = len(value) if isinstance(value, str) else 0
    return found


def read_json(source: Source, reading: Reading) -> Iterator[Piece | Left]:
    """A document per element of an array, or per object where several follow each other.

    Raises:
        Unusable: as `decoded`; JSON that cannot be parsed, or a row too long to be held.
    """
    for number, row in enumerate(_values(source, reading), 1):
        yield document_of(row, f"row {number}", reading.text_field)


def _values(source: Source, reading: Reading) -> Iterator[Any]:
    """The rows of a file of JSON, parsed one at a time from a bounded part of its text."""
    texts = decoded(source, reading)
    parse = json.JSONDecoder().raw_decode
    buffer, at, passed = "", 0, 0
    inside = ended = False  # an array; the file
    while True:
        at = _BETWEEN.match(buffer, at).end()  # type: ignore[union-attr]  # it matches anything
        if buffer[at : at + 1] == ("]" if inside else "["):
            inside, at = not inside, at + 1
            continue
        try:
            row, end = parse(buffer, at)
            if ended or end < len(buffer):  # else it may be a number that goes on
                yield row
                at = end
                continue
        except (ValueError, RecursionError) as error:
            if ended and at == len(buffer):
                return
            if ended or len(buffer) - at > MAX_ROW_CHARACTERS or _is_broken(error, buffer):
                place = passed + getattr(error, "pos", at)
                raise Unusable("JSON that cannot be read", _broken(source, place)) from None
        passed, buffer = passed + at, buffer[at:]
        buffer, ended = _longer(buffer, texts)
        at = 0


_BETWEEN = re.compile(r"[\s,]*")


def _longer(buffer: str, texts: Iterator[str]) -> tuple[str, bool]:
    """At least twice as much text, so that a long row is not parsed too often; whether it ends."""
    parts, size = [buffer], 0
    for text in texts:
        parts.append(text)
        size += len(text)
        if size > len(buffer):
            return "".join(parts), False
    return "".join(parts), True


def _is_broken(error: ValueError | RecursionError, buffer: str) -> bool:
    """Whether more text cannot help: the error is not at the end of what there is."""
    if not isinstance(error, json.JSONDecodeError):
        return True  # too deep, or a number of too many digits
    return error.pos < len(buffer) - 32 and not error.msg.startswith("Unterminated string")


def _broken(source: Source, place: int) -> str:
    return (
        f"{source.path} is no JSON at character {place}, or has a row of more than "
        f"{MAX_ROW_CHARACTERS:,} characters"
    )


# The kinds of files that can be read. A new one is a reader and a line here; `recognise` tells
# which files are of the kind, and what it says of the others is left out or refused by name.
READERS: Registry[Reader] = Registry("kind of text", {
    TEXT: read_plain_text,
    JSON_LINES: read_json_lines,
    JSON: read_json,
})  # fmt: skip
