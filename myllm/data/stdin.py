"""Room: standard input → a file, as it can be read only once. Knows nothing of what is in it."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from io import BufferedReader
from pathlib import Path

from myllm.errors import InputError
from myllm.system.atomic import TEMPORARY, discard, disk, write_errors

log = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20


def keep_stdin(folder: Path) -> Path:
    """Standard input as a file named after its hash, so that a resumed run finds it again.

    Raises:
        InputError: it is closed, empty or unreadable, or the folder cannot be written.
        DiskFullError: there is no room for it.
    """
    stream = _stream()
    what, remedy = "keep standard input", "free some space, or name another --data-dir"
    partial = folder / f"{TEMPORARY}stdin-{os.getpid()}"
    digest, size_bytes = hashlib.sha256(), 0

    def copy(path: Path) -> None:
        nonlocal size_bytes
        with path.open("wb") as file:
            while block := _block(stream):
                size_bytes += len(block)
                digest.update(block)
                file.write(block)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        disk.write(partial, copy)
        if size_bytes == 0:
            raise InputError("standard input is empty: there is no text to learn from")
        path = folder / f"stdin-{digest.hexdigest()[:12]}.txt"
        disk.rename(partial, path)
    except OSError as error:
        discard(partial)
        with write_errors(what, folder, size_bytes, remedy):
            raise error
    except BaseException:  # a signal, too
        discard(partial)
        raise
    return path


def _stream() -> BufferedReader:
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or stream.closed:
        raise InputError("standard input is closed: pipe a text into it, or name files")
    if stream.isatty():
        log.info(
            "reading the text from the terminal; it ends with Ctrl-D (Windows: Ctrl-Z, Enter)"
        )
    return stream  # type: ignore[no-any-return]


def _block(stream: BufferedReader) -> bytes:
    try:
        # what there is, not all of a block: a signal is seen between two reads only
        return stream.read1(BLOCK_BYTES)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read standard input: {error}") from None
