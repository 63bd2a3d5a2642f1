"""Room: what was left out while texts were read → one line for each kind of news.

Knows nothing of files.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

log = logging.getLogger(__name__)


class Counts:
    """Things counted by what they are, with the first of each.

    >>> counts = Counts()
    >>> counts.add("image", "a.png")
    >>> counts.add("image", "b.png")
    >>> counts.add("not utf-8", "old.txt, byte 7")
    >>> print(counts)
    image 2 (a.png, …), not utf-8 1 (old.txt, byte 7)
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def __str__(self) -> str:
        return ", ".join(
            f"{what} {n} ({shown(first)}{', …' if n > 1 else ''})"
            for what, (n, first) in self._found.items()
        )

    def add(self, what: str, name: str, n: int = 1) -> None:
        """Counts `n` more of a kind; the name is shown if it is the first."""
        before, first = self._found.get(what, (0, name))
        self._found[what] = before + n, first

    def update(self, other: Counts) -> None:
        """Counts all that another has counted, too."""
        for what, (n, first) in other._found.items():
            self.add(what, first, n)

    def kinds(self) -> list[str]:
        """What has been counted."""
        return list(self._found)


@dataclass
class Report:
    """News of reading.

    Attributes:
        passed: files, folders and rows that are not read.
        separators: what ends documents in other programs, and is read as text.
    """

    passed: Counts = field(default_factory=Counts)
    separators: Counts = field(default_factory=Counts)

    def update(self, other: Report) -> None:
        """Adds the news of another one."""
        self.passed.update(other.passed)
        self.separators.update(other.separators)

    def tell(self) -> None:
        """Announces them."""
        if self.passed:
            coded = any(kind.startswith("not ") for kind in self.passed.kinds())
            remedy = "; --fallback-encoding latin-1 reads files of another encoding"
            log.info("passed over: %s%s", self.passed, remedy if coded else "")
        if self.separators:
            log.info(
                "read as text: %s; --separator '%s' ends a document there",
                self.separators, self.separators.kinds()[0],
            )  # fmt: skip


def shown(name: str) -> str:
    """A file's name for a message: on one line, with no character that a terminal obeys."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    return text if len(text) < 200 else f"{text[:100]}…{text[-60:]}"
