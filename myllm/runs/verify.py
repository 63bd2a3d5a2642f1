"""Room: a run folder → what in it is whole and what is damaged. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from myllm.config import from_toml
from myllm.errors import InputError
from myllm.runs.checkpoint import CONFIG, MANIFEST, METRICS, TOKENIZER
from myllm.runs.folder import RunFolder
from myllm.runs.metrics import read_records
from myllm.system.atomic import (
    Damaged,
    check_files,
    foreign_files,
    read_file,
    require_readable,
)
from myllm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Finding:
    """What was found of one part of a run: its name, its size, what is wrong with it."""

    name: str
    n_bytes: int
    damage: str | None = None


def check_run(run: RunFolder) -> list[Finding]:
    """Reads every file of a run and holds it against what was saved.

    Raises:
        AccessError: one may not be read, so that nothing can be said of it.
    """
    checkpoints = run.checkpoints
    findings = [_checkpoint(checkpoints.folder(step)) for step in checkpoints.steps()]
    readers: dict[str, Callable[[Path], object]] = {
        CONFIG: from_toml,
        TOKENIZER: Tokenizer.load,
        METRICS: _read_records,
    }
    for name, read in readers.items():
        path = run.path / name
        if name == METRICS and not path.exists():
            continue  # there has been no evaluation yet
        try:
            require_readable(path)
            read(path)
            findings.append(Finding(name, _size_of(path)))
        except InputError as error:
            findings.append(Finding(name, _size_of(path), str(error)))
    for pointer, step in (("last", checkpoints.newest_good()), ("best", checkpoints.best_step())):
        if step is not None:
            findings.append(_pointer(run.path / pointer, checkpoints.folder(step).name))
    return findings


def _checkpoint(folder: Path) -> Finding:
    try:
        check_files(folder, MANIFEST)
        foreign = foreign_files(folder, MANIFEST)
        damage = f"{folder / foreign[0]} does not belong there" if foreign else None
    except Damaged as error:
        damage = str(error)
    return Finding(folder.name, _size_of(folder), damage)


def _pointer(path: Path, expected: str) -> Finding:
    try:
        found = read_file(path).strip()
    except Damaged as error:
        return Finding(path.name, 0, str(error))
    damage = None if found == expected else f"{path} names {found!r}, not {expected}"
    return Finding(path.name, _size_of(path), damage)


def _read_records(path: Path) -> None:
    """Raises `InputError` if a line of `metrics.jsonl` is not a record."""
    try:
        damaged = read_records(path)[1]
    except Damaged as error:
        raise InputError(str(error)) from None
    if damaged is not None:
        raise InputError(f"{path}: line {damaged} is damaged")


def _size_of(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
