"""Room: a corpus by name → a text file on disk. Knows nothing of tokens.

Two kinds: the Python manual and docstrings, which come with every interpreter and need no
network, and texts that are downloaded once, verified and kept.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import http.client
import json
import logging
import os
import platform
import sysconfig
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from myllm.errors import InputError
from myllm.registry import Registry
from myllm.system.atomic import (
    NO_ROOM,
    NOT_ALLOWED,
    discard,
    make_folders,
    write_errors,
    write_file,
)

log = logging.getLogger(__name__)

_REMEDY = "free some space, or name another --data-dir"


@dataclass(frozen=True)
class Corpus:
    """A text to download: where from, and what it must be."""

    url: str
    size_bytes: int
    sha256: str


CORPORA = Registry("corpus", {
    "shakespeare": Corpus(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
        "input.txt",
        1_115_394,
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
})  # fmt: skip


def is_corpus_file(name: str) -> bool:
    """Whether a file of this name, in the folder of downloads, is one that this room makes."""
    ours = {f"{corpus}.txt{end}" for corpus in CORPORA for end in ("", ".part")}
    return name in ours or name.startswith("python-docs-")


def download_corpus(name: str, folder: Path) -> Path:
    """The file of a named corpus in `folder`, downloaded if it is not there yet.

    A broken download is resumed where it stopped; only a file with the right SHA-256 gets its
    name.

    Raises:
        ConfigError: unknown name.
        InputError: no connection, or the server sends something else.
    """
    corpus = CORPORA[name]
    path, partial = folder / f"{name}.txt", folder / f"{name}.txt.part"
    if path.exists() and _sha256(path) == corpus.sha256:
        return path
    make_folders(folder)
    log.info("downloading %s (%.1f MB)", corpus.url, corpus.size_bytes / 1e6)
    with write_errors(f"keep {corpus.url}", folder, corpus.size_bytes, _REMEDY):
        try:
            _fetch(corpus, partial)
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            if getattr(error, "errno", None) in NO_ROOM | NOT_ALLOWED | {errno.EROFS}:
                discard(partial)
                raise  # what the disk says, not the network
            reason = getattr(error, "reason", error)
            raise InputError(
                f"cannot download {corpus.url}: {reason}; without a network, train on a text of "
                f"your own (myllm train FILE), or put that file at {path}"
            ) from None
        if _sha256(partial) != corpus.sha256:
            partial.unlink()
            raise InputError(f"{corpus.url} did not send the expected text (SHA-256 differs)")
        os.replace(partial, path)
    return path


def _fetch(corpus: Corpus, partial: Path) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    if have >= corpus.size_bytes:
        have = 0
    request = urllib.request.Request(corpus.url, headers={"Range": f"bytes={have}-"})
    with urllib.request.urlopen(request, timeout=30) as response:
        # 206: the server continues where we stopped; 200: it sends all from the beginning
        with partial.open("ab" if response.status == 206 else "wb") as file:
            while block := response.read(1 << 16):
                file.write(block)
                if file.tell() > corpus.size_bytes:
                    break  # not our file; the hash will say so
            if file.tell() < corpus.size_bytes:
                raise ConnectionError(
                    "the connection broke off; repeat the command to resume the download"
                )


def python_docs(folder: Path) -> Path:
    """The manual's topics and the standard library's docstrings, as JSONL of documents.

    The sources are parsed, never imported; their order is that of their names, so that one
    Python version always gives the same text.
    """
    path = folder / f"python-docs-{platform.python_version()}.jsonl"
    if not path.exists():
        log.info("extracting the Python manual and docstrings to %s", path)
        make_folders(folder)
        texts = (*_manual_topics(), *_docstrings())
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
        with write_errors("write the Python manual", folder, sum(map(len, lines)), _REMEDY):
            write_file(path, "".join(lines))
    return path


def _manual_topics() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return
    for name in sorted(topics):
        yield topics[name].strip() + "\n"


def _docstrings() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    unwanted = {"test", "tests", "idlelib", "lib2to3", "site-packages", "pydoc_data", "turtledemo"}
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        if unwanted.intersection(path.relative_to(root).parts[:-1]):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):  # old escapes in others' sources
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        parts = []
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                docstring = ast.get_docstring(node)
                if docstring and "\0" not in docstring:
                    parts.append(f"{_heading(node, module)}\n\n{docstring.strip()}\n")
        if parts:
            yield "\n".join(parts)


def _heading(node: ast.AST, module: str) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}"
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return f"def {node.name}({ast.unparse(node.args)})"
    return f"module {module}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
