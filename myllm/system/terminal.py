"""Room: text → a terminal: what it may show, and streams whose reader may leave.

Knows nothing of who writes it.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from typing import TextIO

from myllm.system.streams import reader_left, silence
from myllm.system.wrapping import terminal_width, wrapped

log = logging.getLogger(__name__)

# What a terminal obeys instead of showing it: the control characters but tab and line end, and
# the marks that turn the direction of what follows, so that a text reads as another one.
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` without what a terminal would obey: it can neither move the cursor nor hide text.

    A control character is shown by its symbol, what has none by a dot.

    >>> printable("a\\r\\nb\\x1b[2J")
    'a\\nb␛[2J'
    """
    return OBEYED.sub(_symbol, text.replace("\r\n", "\n"))


def _symbol(obeyed: re.Match[str]) -> str:
    code = ord(obeyed[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else "\N{MIDDLE DOT}"


def one_line(text: object) -> str:
    """`text` for a message: printable, its line ends blanks."""
    return re.sub(r"\s*\n\s*", " ", printable(str(text)))


def say(*lines: object, indent: int = 0) -> None:
    """Prints lines, in which there may be names that others have chosen; on a terminal none is
    wider than that, but for those that begin with blanks, to be copied.

    Args:
        lines: what to print.
        indent: columns that the rest of a broken line is moved by.
    """
    width = terminal_width(sys.stdout)
    for line in lines:
        parts = printable(str(line)).split("\n")
        print("\n".join(wrapped(part, width, indent) for part in parts))


class Screen:
    """Standard output for what a model writes: as it is, or on a terminal what that may show.

    Text comes in pieces, and a line end of two characters may be in two of them.
    """

    def __init__(self, stream: TextIO) -> None:
        """
        Args:
            stream: where to.
        """
        self._stream, self._held = stream, ""

    def write(self, piece: str) -> None:
        """Shows a piece at once, but for a carriage return at its end."""
        if self._stream.isatty():
            piece = self._held + piece
            self._held = "\r" if piece.endswith("\r") else ""
            piece = printable(piece.removesuffix(self._held) if self._held else piece)
        self._stream.write(piece)
        self._stream.flush()

    def end(self, line_end: str = "\n") -> None:
        """Shows what was held back, and ends the line."""
        held, self._held = self._held, ""
        self._stream.write(printable(held) + line_end)
        self._stream.flush()


class PatientStream:
    """A stream that outlives its reader: a training run must not end because a terminal was
    closed, `head` has seen enough, or the disk that holds its log is full."""

    def __init__(self, stream: TextIO) -> None:
        """
        Args:
            stream: where to write for as long as that works.
        """
        self._stream: TextIO | None = stream

    def write(self, text: str) -> int:
        """Writes, if somebody still reads."""
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Passes on what was written."""
        self._try(lambda stream: stream.flush())

    def isatty(self) -> bool:
        """Whether a person reads."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """The descriptor of the stream."""
        if self._stream is None:
            raise OSError("the reader has left")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        """How text becomes bytes."""
        return self._stream.encoding if self._stream is not None else "utf-8"

    def _try(self, work: Callable[[TextIO], object]) -> None:
        if self._stream is None:
            return
        try:
            work(self._stream)
        except OSError as error:
            if not reader_left(error, self._stream):
                log.warning("cannot write to standard output: %s; going on without", error)
            silence(self._stream)
            self._stream = None
