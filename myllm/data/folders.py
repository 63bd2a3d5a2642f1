"""Room: a folder → the files in it that may be texts. Knows nothing of what is in a file.

What this program makes (runs, prepared texts, exports) is known by what lies in its folder, so
that it is not read as text when all around it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from myllm.data.corpora import is_corpus_file
from myllm.data.report import Counts
from myllm.data.token_file import SIDECAR, TOKENS
from myllm.errors import InputError
from myllm.system.atomic import is_clutter

RUN, PREPARED = "run folder", "prepared folder"
NAMED = {"node_modules": "node_modules", "__pycache__": "__pycache__"}
STDIN_COPY = re.compile(r"stdin-[0-9a-f]{12}\.txt")


@dataclass(frozen=True)
class _Folder:
    """A folder to look into: its path, and how it is called from the folder that was named."""

    path: str
    name: str

    def entries(self) -> list[os.DirEntry[str]]:
        with os.scandir(self.path) as entries:
            return sorted(entries, key=lambda entry: entry.name)

    def is_at(self, place: tuple[int, int] | None) -> bool:
        return place is not None and _place(self.path) == place


def files_in(folder: Path, data_dir: Path, passed: Counts) -> list[str]:
    """The paths of all files in `folder` and below, relative to it and in order.

    Links to folders are followed, each folder once.

    Args:
        folder: the one to look into.
        data_dir: where this program keeps copies of texts, which are not read again.
        passed: is told of what is left out.

    Raises:
        InputError: the folder is one that this program made, of runs or tokens, or the root.
        OSError: the folder itself cannot be read.
    """
    if _place(folder) == _place("/") and os.name != "nt":
        raise InputError(f"{folder} is all of this machine's files: name a folder of texts")
    found: list[str] = []
    kept = _place(data_dir)
    seen = {_place(folder)}
    waiting, links = [_Folder(str(folder), "")], list[_Folder]()
    while waiting or links:
        at = waiting.pop() if waiting else links.pop(0)
        if at.name and not _is_new(at, seen, passed):
            continue
        try:
            entries = at.entries()
        except OSError as error:
            if not at.name:
                raise
            passed.add("unreadable folder", f"{at.name}: {error.strerror}")
            continue
        names = {entry.name for entry in entries}
        if kind := _own_kind(names):
            if at.name:
                passed.add(kind, at.name)
                continue
            _refuse(folder, kind)
        ours = _own_files(names, at.is_at(kept))
        for entry, name in _visible(entries, at.name, ours, passed):
            _sort(entry, name, found, waiting, links, passed)
    return sorted(found)


def _place(path: str | Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_new(folder: _Folder, seen: set[tuple[int, int] | None], passed: Counts) -> bool:
    place = _place(folder.path)
    if place is not None and place in seen:
        passed.add("folder that is read already", folder.name)
        return False
    seen.add(place)
    return True


def _visible(
    entries: list[os.DirEntry[str]], folder: str, ours: dict[str, str], passed: Counts
) -> Iterator[tuple[os.DirEntry[str], str]]:
    """What may be read of a folder's entries, each with its name from the top."""
    for entry in entries:
        name = f"{folder}/{entry.name}" if folder else entry.name
        if entry.name.startswith(".") or is_clutter(entry.name):
            passed.add("hidden", name)
        elif kind := ours.get(entry.name):
            passed.add(kind, name)
        else:
            yield entry, name


def _sort(
    entry: os.DirEntry[str],
    name: str,
    found: list[str],
    waiting: list[_Folder],
    links: list[_Folder],
    passed: Counts,
) -> None:
    """Puts an entry where it belongs; what is neither file nor folder might never end."""
    try:
        if entry.is_file():
            found.append(name)
        elif entry.is_dir():
            # the folders themselves go before links to them, so that a link changes no order
            (links if entry.is_symlink() else waiting).append(_Folder(entry.path, name))
        elif entry.is_symlink() and not os.path.exists(entry.path):
            passed.add("broken link", name)
        else:
            passed.add("neither file nor folder", name)
    except OSError as error:
        passed.add("unreadable", f"{name}: {error.strerror}")


# ------------------------------------------------------------------------------ our own output


def _own_kind(names: set[str]) -> str | None:
    """What a folder with such entries is, if it holds no texts of a person."""
    if {SIDECAR, TOKENS} <= names:
        return PREPARED
    steps = any(name.startswith("step-") for name in names)
    if "config.toml" in names and (steps or "tokenizer.json" in names):
        return RUN
    if {"pyvenv.cfg", "conda-meta"} & names:
        return "virtual environment"
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return "model folder"
    return None


def _own_files(names: set[str], in_data_dir: bool) -> dict[str, str]:
    """Entries of a folder that are left out by name, and what they are."""
    found = {name: kind for name, kind in NAMED.items() if name in names}
    for name in names:
        if in_data_dir and (STDIN_COPY.fullmatch(name) or is_corpus_file(name)):
            found[name] = "copy in the data folder"
        stem, dot, suffix = name.rpartition(".")
        if suffix == "Modelfile" and f"{stem}.gguf" in names:
            found[name] = "Modelfile of an export"
    return found


def _refuse(folder: Path, kind: str) -> None:
    """Where it was named by a person; another kind of folder may then be looked into."""
    if kind == RUN:
        raise InputError(
            f"{folder} is a run folder, not a text: continue it with --resume, or begin with its "
            "model with --from"
        )
    if kind == PREPARED:
        raise InputError(
            f"{folder} is a prepared folder, not a text: name it alone, to train on it"
        )
