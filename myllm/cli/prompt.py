"""Room: words, a file or standard input → the prompt that a text is to follow.

Knows nothing of models.
"""

from __future__ import annotations

import io
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from myllm.data.recognise import BINARY, REMEDIES, recognise
from myllm.data.report import shown
from myllm.errors import ConfigError, InputError
from myllm.reading import Reading
from myllm.system.shell import quoted

MOST_BYTES = 1 << 26  # a model reads the end of a prompt only


def prompt_of(words: Sequence[str], file: str | None) -> str:
    """The prompt: the words with a blank between two of them, or what is in a file.

    Args:
        words: as a shell hands them on, in quotes or without.
        file: a text file, or - for standard input. The last line end is the editor's, not the
            prompt's.

    Raises:
        ConfigError: both are given.
        InputError: the file is missing, empty or no text.
    """
    if file is None:
        return " ".join(words)
    if words:
        raise ConfigError(
            f"--prompt-file {shown(file)} and the prompt {shown(' '.join(words))!r}: give only one"
        )
    name = "standard input" if file == "-" else shown(file)
    text = _text(_content(file, name), name)
    if not text:
        raise InputError(f"{name} is empty: write the beginning of a text there")
    return text.removesuffix("\n").removesuffix("\r")


def _content(file: str, name: str) -> bytes:
    if not file or "\0" in file:
        raise InputError(f"--prompt-file {file!r}: no file can be called so")
    try:
        if file == "-":
            return sys.stdin.buffer.read(MOST_BYTES + 1)
        if not stat.S_ISREG(Path(file).stat().st_mode):
            raise InputError(
                f"{name} is no file: pipe it in instead (--prompt-file - < {quoted(file)})"
            )
        with open(file, "rb") as stream:
            return stream.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"there is no file {name}") from None
    except (OSError, UnicodeError) as error:
        raise InputError(f"cannot read {name}: {getattr(error, 'strerror', error)}") from None


def _text(content: bytes, name: str) -> str:
    if len(content) > MOST_BYTES:
        raise InputError(f"{name} has more than {MOST_BYTES:,} bytes: give the end of it")
    what = recognise(io.BytesIO(content), "", Reading())
    if what.kind in REMEDIES:
        article = "an" if what.kind[0] in "AEIOaeio" else "a"
        raise InputError(f"{name} is {article} {what.kind}, not a text: {REMEDIES[what.kind]}")
    try:
        text = content.decode(what.encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        at = getattr(error, "start", 0)
        raise InputError(f"{name} is not UTF-8 (byte {at}): save it as UTF-8 text") from None
    if "\0" in text or what.looks_binary:
        raise InputError(f"{name} is a {BINARY}, not a text: save it as UTF-8 text")
    return text
