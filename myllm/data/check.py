"""Room: a file → a `Source` that has been read to its end once. Knows nothing of folders.

What a file cannot be used for shows here, before anything is made of it; so that the hash of a
text, its documents and what is announced are those of what is really read.
"""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import os
import shlex
from pathlib import Path

from myllm.data.readers import READERS, Left, NotEncoded, Source, Unusable, decoded
from myllm.data.recognise import BINARY, REMEDIES, TEXT, recognise
from myllm.data.report import Report, shown
from myllm.reading import Reading

EMPTY, NO_TEXTS = "empty file", "file without texts"
# what ends documents in corpora that were made for other programs
SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>")
MAX_SHOWN_FIELDS = 8


def check_file(path: Path, reading: Reading, report: Report, named: bool) -> Source:
    """What a file is, known to be readable.

    Args:
        path: the file.
        reading: how to read it.
        report: is told of what is not read of it.
        named: by a person, who then vouches for it being text in spite of control characters.

    Raises:
        Unusable: it holds no text, or nothing that can be read.
        OSError: the system refuses it.
    """
    name = _utf8_name(path)
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes == 0:
            raise Unusable(EMPTY, f"{shown(name)} is empty: there is no text to learn from")
        what = recognise(file, name, reading)
        if what.kind not in READERS or what.looks_binary and not named:
            raise _foreign(name, what.kind if what.kind not in READERS else BINARY)
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    source = Source(name, size_bytes, sha256, what.kind, what.encoding)
    try:
        _read_through(source, reading, report)
    except NotEncoded:
        if what.looks_binary:
            raise _foreign(name, BINARY) from None
        if reading.fallback_encoding is None:
            raise
        encoding = codecs.lookup(reading.fallback_encoding).name
        source = dataclasses.replace(source, encoding=encoding)
        _read_through(source, reading, report)
    return source


def _utf8_name(path: Path) -> str:
    """The path as text that can be written down."""
    name = path.as_posix()
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        escaped = name.encode("utf-8", "backslashreplace").decode()
        raise Unusable(
            "name that is not UTF-8", f"the file name {escaped} is not UTF-8: rename the file"
        ) from None
    return name


def _foreign(name: str, kind: str) -> Unusable:
    article = "an" if kind[0] in "AEIOaeio" else "a"
    return Unusable(kind, f"{shown(name)} is {article} {kind}: {REMEDIES[kind]}")


def _read_through(source: Source, reading: Reading, report: Report) -> None:
    """Reads all of it; tells what is left out."""
    own = Report()
    if source.kind == TEXT and reading.separator is None:
        n_read = _count_characters(source, reading, own)
        fields: dict[str, int] = {}
    else:
        n_read, fields = _count_documents(source, reading, own)
    if not n_read:
        raise _without_text(source, reading, own, fields)
    report.update(own)


def _count_characters(source: Source, reading: Reading, report: Report) -> int:
    """Of a plain text, whose reader would also look where to cut it, which takes longer."""
    n_read, tail = 0, ""
    for text in decoded(source, reading):
        n_read += len(text)
        for separator in SEPARATORS if ">" in text else ():
            # one may begin in a block and end in the next
            if n := (tail[1 - len(separator) :] + text).count(separator):
                report.separators.add(separator, source.path, n)
        tail = (tail + text)[-max(map(len, SEPARATORS)) :]
    return n_read


def _count_documents(
    source: Source, reading: Reading, report: Report
) -> tuple[int, dict[str, int]]:
    """Documents, or pieces of them; and the fields of rows that have no text."""
    n_read, fields = 0, dict[str, int]()
    for piece in READERS[source.kind](source, reading):
        if not isinstance(piece, Left):
            n_read += 1
            continue
        place = f"{source.path}, {piece.where}"
        if piece.is_error and reading.on_bad_file == "stop":
            raise Unusable(
                piece.reason,
                f"{shown(place)}: {piece.reason}: a row is an object with a text in "
                f'"{reading.text_field}" (--on-bad-file skip passes over others)',
            )
        report.passed.add(piece.reason, place)
        if len(fields) < 1000:
            for name, length in (piece.fields or {}).items():
                fields[name] = max(length, fields.get(name, 0))
    return n_read, fields


def _without_text(
    source: Source, reading: Reading, report: Report, fields: dict[str, int]
) -> Unusable:
    """The error to raise about a file that has been read and holds nothing."""
    name = shown(source.path)
    if not fields:
        found = f": {report.passed}" if report.passed else ""
        reason = NO_TEXTS if report.passed else EMPTY
        return Unusable(reason, f"{name} holds no text{found}")
    listed = ", ".join(list(fields)[:MAX_SHOWN_FIELDS])
    more = ", …" if len(fields) > MAX_SHOWN_FIELDS else ""
    longest = max(fields, key=lambda field: fields[field])
    if reading.text_field in fields and not fields[longest]:
        return Unusable(NO_TEXTS, f"{name}: the texts of all its rows are empty")
    if fields[longest]:
        remedy = f"name the one that holds the text (--text-field {shlex.quote(longest)})"
    else:
        remedy = f'texts are taken from rows such as {{"{reading.text_field}": "…"}}'
    return Unusable(
        NO_TEXTS,
        f'{name}: no row of it has a text in "{reading.text_field}"; the fields are {listed}'
        f"{more}: {remedy}",
        f"fields {listed}{more}",
    )
