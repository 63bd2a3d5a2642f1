"""Damage made on purpose to saved files: what `faults.py` and the tests in tests/faults share."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from myllm.runs.checkpoint import MANIFEST
from myllm.system.atomic import Damaged, check_files, foreign_files


def damaged(folder: Path, manifest: str = MANIFEST) -> bool:
    """Whether the check of a sealed folder finds anything."""
    try:
        check_files(folder, manifest)
        return bool(foreign_files(folder, manifest))
    except Damaged:
        return True


def flips(folder: Path, n: int, seed: int = 1, manifest: str = MANIFEST) -> Iterator[bool]:
    """Flips one bit after the other, equally often in every file; whether each was found."""
    rng = random.Random(seed)
    files = sorted(path for path in folder.iterdir() if path.stat().st_size)
    contents = {path: path.read_bytes() for path in files}
    for i in range(n):
        path = files[i % len(files)]
        position = rng.randrange(8 * len(contents[path]))
        with path.open("r+b") as file:
            file.seek(position // 8)
            byte = contents[path][position // 8]
            file.write(bytes([byte ^ 1 << position % 8]))
        yield damaged(folder, manifest)
        with path.open("r+b") as file:
            file.seek(position // 8)
            file.write(bytes([byte]))


def truncations(
    folder: Path, n_per_file: int, seed: int = 1, manifest: str = MANIFEST
) -> Iterator[bool]:
    """Cuts each file short, at random places; whether each was found."""
    rng = random.Random(seed)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for _ in range(n_per_file if content else 0):
            path.write_bytes(content[: rng.randrange(len(content))])
            yield damaged(folder, manifest)
        path.write_bytes(content)


def missing_and_foreign(folder: Path, manifest: str = MANIFEST) -> Iterator[bool]:
    """Takes each file away, and adds one; whether each was found."""
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        path.unlink()
        yield damaged(folder, manifest)
        path.write_bytes(content)
    foreign = folder / "foreign.bin"
    foreign.write_bytes(b"1")
    yield damaged(folder, manifest)
    foreign.unlink()
