"""Room: the standard streams → ones that can be used, whatever they are: missing, closed, full.

Knows nothing of what is written.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


class OutputError(OSError):
    """Standard output cannot be written.

    Attributes:
        reader_left: nobody reads any more, which is nobody's fault: `head` has seen enough, or the
            terminal is closed.
    """

    reader_left = False


@contextmanager
def standard_streams() -> Iterator[None]:
    """Within the block all three streams are there, and errors of output are `OutputError`."""
    _open_descriptors()
    before = sys.stdin, sys.stdout, sys.stderr
    # None: the descriptor was closed when Python started, or there are no streams (pythonw)
    sys.stdin = before[0] or open(os.devnull, encoding="utf-8")
    sys.stderr = before[2] or open(os.devnull, "w", encoding="utf-8")
    out = before[1] or open(os.devnull, "w", encoding="utf-8")
    for stream in (out, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show 你好 shows ?
    sys.stdout = cast(TextIO, _Checked(out))
    try:
        yield
    finally:
        try:
            sys.stderr.flush()
        except (OSError, ValueError):
            silence(sys.stderr)
        sys.stdin, sys.stdout, sys.stderr = before


class _Checked:
    """A stream whose errors can be told from those of any other file."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._errors():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._errors():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            told = OutputError(error.errno, error.strerror)
            told.reader_left = reader_left(error, self._stream)
            raise told from None


def reader_left(error: OSError, stream: TextIO) -> bool:
    """Whether a stream cannot be written because nobody reads it any more.

    EIO is what a closed terminal answers, and a disk that fails.
    """
    if isinstance(error, OutputError):
        return error.reader_left
    gone = [errno.EPIPE, errno.ECONNRESET, *([errno.EINVAL] if os.name == "nt" else [])]
    if error.errno != errno.EIO:
        return error.errno in gone
    try:
        return not stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return True


def silence(stream: TextIO) -> None:
    """Sends what is left in a stream's buffer nowhere, so that closing it cannot fail either."""
    with contextlib.suppress(OSError, ValueError):  # it has no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _open_descriptors() -> None:
    """A file that is opened later must not become standard output because that was closed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
