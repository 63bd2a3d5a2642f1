"""Room: lines typed at a terminal → text continued by a `TextGenerator`: the interactive mode.

Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from myllm.checks import unescaped
from myllm.config import SamplingConfig
from myllm.errors import InputError
from myllm.generate.generator import TextGenerator
from myllm.registry import nearest
from myllm.system.places import home
from myllm.system.terminal import Screen

if TYPE_CHECKING:
    from prompt_toolkit.history import History

HELP = """\
Write the beginning of a text, and the model continues it. Then:
  (an empty line)          the model continues
  /temperature 0.7         change a setting: {settings}
  /top-k off               … or switch it off
  /settings                show all settings
  /probs                   the most likely next tokens, with their probabilities
  /reset                   forget the text so far
  /help                    show this list
  /quit                    leave (also Ctrl-D)"""


class Writer:
    """The interactive mode: keeps the text so far, and the settings."""

    def __init__(
        self,
        generator: TextGenerator,
        sampling: SamplingConfig,
        write: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            generator: what writes.
            sampling: the settings to begin with.
            write: where text goes; standard output by default, where a terminal gets no control
                characters: what a model writes cannot move the cursor.
        """
        self.generator, self.sampling = generator, sampling
        self.text = ""
        self._write = write or Screen(sys.stdout).write

    def run(self) -> None:
        """Reads lines until the end or `/quit`: from a terminal with editing and history."""
        self._write("Write a beginning, and the model continues it. /help shows the commands.\n")
        for line in _lines():
            if not self.respond(line):
                break

    def respond(self, line: str) -> bool:
        """Does what one line asks for; returns False when it asks to leave."""
        if not line.startswith("/"):
            return self._continue(line)
        try:
            return self._command(line)
        except (InputError, ValueError) as error:
            self._write(f"{error}\n")
            return True

    def _continue(self, line: str) -> bool:
        """Adds a line to the text and continues it; Ctrl-C stops the writing only."""
        self.text += line
        try:
            for piece in self.generator.stream(self.text, self.sampling):
                self._write(piece)
                self.text += piece
        except KeyboardInterrupt:
            pass
        self._write("\n")
        return True

    def _command(self, line: str) -> bool:
        name, *values = _words(line[1:]) or [""]
        name = name.replace("-", "_")
        fields = {field.name: field.type for field in dataclasses.fields(SamplingConfig)}
        if name in ("quit", "exit"):
            return False
        if name == "help":
            self._write(HELP.format(settings=", ".join(fields).replace("_", "-")) + "\n")
        elif name == "reset":
            self.text = ""
            self._write("(the text is forgotten)\n")
        elif name == "probs":
            for token, probability in self.generator.next_probabilities(self.text):
                self._write(f"{probability:7.2%}  {token!r}\n")
        elif name == "settings":
            for field in fields:
                self._write(f"{field.replace('_', '-')}: {getattr(self.sampling, field)}\n")
        elif name in fields:
            self._set(name, values, str(fields[name]))
        else:
            known = ["help", "quit", "reset", "probs", "settings", *fields]
            raise InputError(f"unknown command /{name}: {nearest(name, known)}")
        return True

    def _set(self, name: str, values: list[str], kind: str) -> None:
        value: object
        if kind.startswith("tuple"):
            value = () if values == ["off"] else tuple(map(unescaped, values))
        elif len(values) != 1:
            raise InputError(f"/{name.replace('_', '-')} needs one value, or off")
        elif values[0] == "off":
            defaults = {"repetition_penalty": 1.0, "ignore_end": False}
            if "None" not in kind and name not in defaults:
                raise InputError(f"{name.replace('_', '-')} cannot be switched off")
            value = defaults.get(name)
        elif kind == "bool":
            value = True
        else:
            value = float(values[0]) if "float" in kind else int(values[0])
        change: dict[str, Any] = {name: value}
        self.sampling = dataclasses.replace(self.sampling, **change).validate()
        self._write(f"{name.replace('_', '-')}: {value}\n")


def _words(command: str) -> list[str]:
    """The words of a command; quotes hold blanks together, a backslash stays as it is."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    return list(lexer)


def _history() -> History:
    """What was typed before, in the user's home; where that cannot be written, of this session."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Patient(FileHistory):
        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):  # a disk that is full now
                super().store_string(string)

    if (folder := home()) is None:
        return InMemoryHistory()
    path = folder / ".myllm_history"
    try:
        path.touch(mode=0o600)
        with path.open("ab+"):
            return Patient(str(path))
    except OSError:
        return InMemoryHistory()


def _lines() -> Iterator[str]:
    if not sys.stdin.isatty():
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # what is not text is shown as such
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession(history=_history())
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
