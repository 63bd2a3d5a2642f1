"""Room: lines → lines no wider than a terminal, whose commands can still be copied.

Knows nothing of who writes them.
"""

from __future__ import annotations

import os
import re
from typing import Any

from rich.cells import cell_len

NARROWEST = 20  # columns: below that nothing fits
# What is not broken: a command, to be copied as it is, or a word with the blanks behind it.
_WORD = r"""(?:'[^']*'|"[^"]*"|[^\s;,'"])+"""
_PART = re.compile(rf"""myllm [a-z-]+(?: {_WORD})*[;,]?\s*|\S+\s*""")


def terminal_width(stream: Any) -> int | None:
    """The columns of the terminal that a stream writes to; None where it is no terminal."""
    try:
        if stream is None or not stream.isatty():
            return None
        columns = os.environ.get("COLUMNS", "")
        if columns.isdigit() and int(columns):
            return int(columns)
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError, AttributeError):
        return None


def wrapped(line: str, width: int | None, indent: int = 0) -> str:
    """`line`, broken between words so that no part is wider than `width`.

    A line that begins with blanks is made to be copied and stays as it is. A command stays in one
    piece: it gets a line of its own where it does not fit, and is wider than the terminal only
    where it is so by itself.

    Args:
        line: without control characters.
        width: columns; None: any width will do.
        indent: columns that all lines but the first are moved by, half the width at most.

    >>> print(wrapped("steps   to 600, of 2,048 tokens each", 24, indent=8))
    steps   to 600, of 2,048
            tokens each
    >>> wrapped("go on with: myllm train --resume 'my run'", 30).splitlines()
    ['go on with:', "myllm train --resume 'my run'"]
    """
    if width is None or cell_len(line) <= width or line.startswith(" "):
        return line
    width, lines, row, margin = max(width, NARROWEST), [], "", ""
    indent = min(indent, width // 2)
    for part in _PART.findall(line):
        for piece in _fitting(part, width - indent):
            if row.strip() and cell_len((row + piece).rstrip()) > width:
                lines.append(row.rstrip())
                margin = " " * indent
                row = margin if not piece.startswith("myllm ") else _margin(piece, margin, width)
            row += piece
    return "\n".join([*lines, row.rstrip()])


def _margin(command: str, margin: str, width: int) -> str:
    return margin if cell_len(margin + command.rstrip()) <= width else ""


def _fitting(part: str, width: int) -> list[str]:
    """A part in pieces that fit: text without blanks, as some scripts write it, is cut anywhere;
    commands, paths and what else is plain ASCII is not."""
    if cell_len(part.rstrip()) <= width or part.isascii():
        return [part]
    pieces, row = [], ""
    for character in part:
        if cell_len(row + character) > width:
            pieces.append(row)
            row = ""
        row += character
    return [*pieces, row]
