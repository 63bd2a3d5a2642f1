"""Room: where an export shall be → the folders above it, and what is said if it cannot be there.

Knows nothing of formats.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from myllm.errors import InputError
from myllm.system.atomic import require_room, write_errors


def check_free(path: Path) -> None:
    """Raises `InputError` if there is something at `path`, or nothing can be."""
    with write_errors("export", path.parent, 0):
        if path.exists() or path.is_symlink():
            raise InputError(f"{path} exists: name another --out, or remove it")


@contextmanager
def export_place(out: Path, n_bytes: int) -> Iterator[None]:
    """Makes the folders above `out`, in which the block makes the export; they go if it fails.

    Args:
        out: the file or folder to make.
        n_bytes: about what it takes.

    Raises:
        DiskFullError: there is no room for it.
        InputError: it cannot be written there.
    """
    made: list[Path] = []
    with write_errors("export", out.parent, n_bytes, "name another --out, or free some space"):
        try:
            made = [folder for folder in out.parents if not folder.exists()]  # the deepest first
            out.parent.mkdir(parents=True, exist_ok=True)
            require_room(out.parent, n_bytes)
            yield
        except BaseException:
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise
