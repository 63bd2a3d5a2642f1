"""Room: who runs the program, and where → the folders for what it keeps between runs.

A container may run as a user without an entry or a home, and its disk may be read-only.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path


def home() -> Path | None:
    """The user's home, if the user has one."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def kept_folder(name: str) -> Path | None:
    """A folder in the user's own cache, or None where that cannot be written."""
    asked, own = os.environ.get("XDG_CACHE_HOME"), home()
    places = [Path(asked)] if asked else [own / ".cache"] if own else []
    for place in places:
        folder = place / "myllm" / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    return None


def cache_folder(name: str) -> Path | None:
    """A folder that can be written, for what can be made again.

    Args:
        name: of the folder in the program's own.

    Returns:
        The user's own; else one that is removed when the program ends; None where nothing can be
        written.
    """
    if (kept := kept_folder(name)) is not None:
        return kept
    try:
        # not of a name that others know: what lies in a cache is executed
        made = Path(tempfile.mkdtemp(prefix="myllm-"))
    except OSError:
        return None
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
