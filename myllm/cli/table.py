"""Room: rows of texts → lines that fit a width: columns go, names get shorter. Knows no runs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells

GAP = "  "
UNLIMITED = 10_000  # columns of what is no terminal: a file or program takes lines of any length


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: above it.
        rank: the highest goes first where there is no room; 0 stays.
        least: the width that its texts may be shortened to; 0: they may not.
        is_number: set to the right.
    """

    title: str
    rank: int = 0
    least: int = 0
    is_number: bool = False


def screen_width() -> int:
    """Columns of the terminal, or of the variable COLUMNS."""
    return shutil.get_terminal_size((UNLIMITED, 24)).columns


def fitted(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The lines of a table, its titles first.

    >>> fitted([Column("run", least=9), Column("age", rank=1)], [("a-name-of-12", "2h")], 14)
    ['run        age', 'a-na…f-12  2h']
    >>> fitted([Column("run", least=9), Column("age", rank=1)], [("a-name-of-12", "2h")], 13)
    ['run', 'a-name-of-12']
    """
    shown = list(range(len(columns)))
    texts = [[column.title for column in columns], *rows]
    widths = [max(cell_len(row[i]) for row in texts) for i in range(len(columns))]

    def excess(sizes: Sequence[int]) -> int:
        return sum(sizes[i] for i in shown) + len(GAP) * (len(shown) - 1) - width

    least = [min(w, column.least or w) for w, column in zip(widths, columns)]
    while excess(least) > 0 and any(columns[i].rank for i in shown):
        shown.remove(max(shown, key=lambda i: columns[i].rank))
    for i in sorted(shown, key=lambda i: -widths[i]):
        widths[i] = max(least[i], widths[i] - max(0, excess(widths)))
    return [
        GAP.join(_placed(row[i], widths[i], columns[i].is_number) for i in shown).rstrip()
        for row in texts
    ]


def _placed(text: str, width: int, to_the_right: bool) -> str:
    text = shortened(text, width)
    blanks = " " * (width - cell_len(text))
    return blanks + text if to_the_right else text + blanks


def shortened(text: str, width: int) -> str:
    """`text` with its middle left out: runs of one text differ in the number at the end.

    >>> shortened("python-docs-12", 11)
    'pytho…cs-12'
    """
    if cell_len(text) <= width:
        return text
    tail = min(5, (width - 1) // 2)
    end = chop_cells(text[::-1], tail)[0][::-1] if tail > 1 else ""
    return chop_cells(text, max(1, width - 1 - cell_len(end)))[0] + "…" + end
