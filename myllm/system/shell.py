"""Room: words → a command to copy into the shell of this system. Knows nothing of what it does."""

from __future__ import annotations

import os
import re
import shlex


def quoted(word: object, windows: bool = os.name == "nt") -> str:
    """A name or a path as the shell has to be told it, so that it arrives as it is.

    >>> quoted("my run", windows=False), quoted("my run", windows=True), quoted("-x")
    ("'my run'", '"my run"', './-x')
    """
    text = str(word)
    if text.startswith("-"):
        text = f"./{text}"  # else it would be taken for a flag
    if not windows:
        return shlex.quote(text)
    return text if re.fullmatch(r"[\w@+=:,./\\-]+", text) else f'"{text}"'
