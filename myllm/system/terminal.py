"""Room: text → a terminal: what it may show, and streams whose reader may leave."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TextIO


def printable(text: str) -> str:
    """`text` without the control characters that a terminal would obey."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


class PatientStream:
    """A stream that outlives its reader: a training run must not end because a terminal was
    closed or `head` has seen enough."""

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
        except OSError:  # EPIPE of a pipe, EIO of a closed terminal
            silence(self._stream)
            self._stream = None


def silence(stream: TextIO) -> None:
    """Sends what is left in a stream's buffer nowhere, so that closing it cannot fail either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
