"""Room: text → a terminal: what it may show, and streams whose reader may leave."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TextIO

from myllm.system.streams import reader_left, silence

log = logging.getLogger(__name__)


def printable(text: str) -> str:
    """`text` without the control characters that a terminal would obey."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


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
