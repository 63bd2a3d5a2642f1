"""Room: paths, patterns, standard input → the files to read, known to be readable. Knows nothing
of tokens.

    paths ──folders──▶ files ──check──▶ [Source] ──readers──▶ pieces of text
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import os
import re
import stat
from pathlib import Path

from myllm.config import DataConfig
from myllm.data.check import EMPTY, check_file
from myllm.data.folders import files_in
from myllm.data.readers import Source, Unusable
from myllm.data.recognise import JSON_LINES, SUFFIXES, TEXT
from myllm.data.report import Report, shown
from myllm.data.stdin import keep_stdin
from myllm.errors import InputError

MAX_NAME_BYTES = 180  # with what is put around it, a file's name may have 255


def find_sources(config: DataConfig) -> list[Source]:
    """The text files that `config.paths` names, in a fixed order, each with its SHA-256.

    Each file is read to its end once. One that was named must be readable. Folders are searched
    recursively, in the order of names; what they hold besides texts is passed over, which is
    announced, or refused (`on_bad_file`). Standard input is kept as a file in `config.data_dir`.

    Raises:
        InputError: no such file, an empty one, one that cannot be read, or no text in a folder.
        DiskFullError: no room for standard input.
    """
    report = Report()
    sources = [source for name in config.paths for source in _sources_of(name, config, report)]
    report.tell()
    return sources


def _sources_of(name: str, config: DataConfig, report: Report) -> list[Source]:
    try:
        if name == "-":
            path = keep_stdin(Path(config.data_dir))
            return [check_file(path, config, report, named=True)]
        found: list[Source] = []
        for path in _named(name):
            if path.is_dir():
                found += _in_folder(path, config, report)
            elif not stat.S_ISREG(path.stat().st_mode):
                raise InputError(
                    f"{shown(name)} is neither file nor folder: pipe it in instead (myllm … - < "
                    f"{shown(name)})"
                )
            else:
                found.append(check_file(path, config, report, named=True))
        return found
    except OSError as error:
        raise InputError(f"cannot use {shown(name)}: {error.strerror or error}") from None


def _named(name: str) -> list[Path]:
    """The files and folders that a name stands for: one, or all that a pattern matches, where the
    shell has left that to us."""
    if not name or "\0" in name:
        raise InputError(f"no file can be called {name!r}: name a file or folder")
    if os.path.lexists(name):
        return [Path(name)]
    if glob.has_magic(name):
        matching = sorted(glob.glob(name, recursive=True))
        if matching:
            return [Path(match) for match in matching]
        raise InputError(f"no file matches {shown(name)}")
    home = os.path.expanduser(name)
    remedy = (
        f"; ~ stands for a folder in a shell only: write {shown(home)}" if home != name else ""
    )
    raise InputError(f"no such file or folder: {shown(name)}{remedy}")


def _in_folder(folder: Path, config: DataConfig, report: Report) -> list[Source]:
    own = Report()
    found: list[Source] = []
    for name in files_in(folder, Path(config.data_dir), own.passed):
        try:
            found.append(check_file(folder / name, config, own, named=False))
        except Unusable as error:
            if config.on_bad_file == "stop" and error.reason != EMPTY:
                raise
            own.passed.add(error.reason, f"{name}, {error.detail}" if error.detail else name)
        except OSError as error:
            if config.on_bad_file == "stop":
                raise InputError(f"cannot use {shown(name)}: {error.strerror}") from None
            own.passed.add("unreadable file", f"{name}: {error.strerror}")
    if not found:
        what = f"; passed over: {own.passed}" if own.passed else ""
        raise InputError(f"{folder} contains no text: give a folder of texts{what}")
    report.update(own)
    return found


def text_name(config: DataConfig) -> str:
    """A short name for a text: of its first file or folder, fit for a folder's name."""
    first = config.paths[0] if config.paths else "text"
    name = "stdin" if first == "-" else Path(os.path.realpath(first)).name
    name = "python-docs" if name.startswith("python-docs-") else Path(name).stem
    name = re.sub(r"[^\w.-]+", "-", name).strip("-.")[:60]
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore") or "text"


def text_hash(sources: list[Source], config: DataConfig) -> str:
    """Changes whenever the text does, and not with where it is."""
    encoding = codecs.lookup(config.encoding).name
    parts = [f"{_reading_of(source, encoding)} {source.sha256}" for source in sources]
    parts += [encoding, config.encoding_errors]
    # settings that came later change nothing where they are as they were before
    if config.text_field != "text" and any(source.kind != TEXT for source in sources):
        parts.append(f"text_field {config.text_field}")
    if config.separator is not None:
        parts.append(f"separator {config.separator}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _reading_of(source: Source, encoding: str) -> str:
    """How a file is read: its suffix, if it is read as that and as the settings say."""
    suffix = Path(source.path).suffix
    lines = SUFFIXES.get(suffix.lower()) == JSON_LINES
    usual = source.kind == (JSON_LINES if lines else TEXT)
    way = (suffix.lower() if lines else suffix) if usual else source.kind
    return way if source.encoding == encoding else f"{way} {source.encoding}"
