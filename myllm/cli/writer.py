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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myllm.checks import shortened, unescaped
from myllm.config import SamplingConfig
from myllm.errors import InputError
from myllm.generate.generator import TextGenerator
from myllm.registry import nearest
from myllm.system.places import home
from myllm.system.terminal import Screen, printable
from myllm.system.wrapping import terminal_width, wrapped

if TYPE_CHECKING:
    from prompt_toolkit.history import History

WORDS = ("help", "exit", "quit")  # commands without a slash, too, where they are all of a line
WELCOME = (
    "Type how a text begins{example} and press Enter: the model writes on. Enter alone lets it go "
    "on, or begin by itself. /help lists the commands, /quit leaves."
)
COMMANDS = (
    ("a line", "goes into the text as a new line, and the model writes on from its end"),
    ("a line after one blank", "goes on in the same line; more blanks, or a tab, are an indent"),
    ("nothing (Enter alone)", "the model writes on; with no text yet, it begins one"),
    ("/temperature 0.7", "change a setting: {settings}"),
    ("/top-k off", "… or switch it off"),
    ("/settings", "show all settings"),
    ("/probs", "the most likely next tokens, with their probabilities"),
    ("/reset", "forget the text so far"),
    ("/help", "show this list"),
    ("/quit", "leave (also Ctrl-D); Ctrl-C stops what the model is writing"),
)
NOTES = (
    "help, exit and quit alone on a line are commands, too. Where such a word, or a line that "
    "begins with /, is meant as text, put a blank before it.",
    "{history}",
)
INDENT = 24  # columns before what a command does
KINDS = {float: "a number", int: "a whole number"}
ON, OFF = ("on", "yes", "true"), ("off", "no", "false", "none")


class Writer:
    """The interactive mode: keeps the text so far, and the settings."""

    def __init__(
        self,
        generator: TextGenerator,
        sampling: SamplingConfig,
        write: Callable[[str], None] | None = None,
        history: bool = True,
        beginning: str | None = None,
    ) -> None:
        """
        Args:
            generator: what writes.
            sampling: the settings to begin with.
            write: where text goes; standard output by default, where a terminal gets no control
                characters: what a model writes cannot move the cursor.
            history: whether what is typed at a terminal is kept for the next time.
            beginning: how a text of the model's kind may begin, to be told as an example.
        """
        self.generator, self.sampling = generator, sampling
        self.text = ""
        self._write = write or Screen(sys.stdout).write
        self._history = _history_path() if history else None
        self._example = f', such as "{printable(beginning)}",' if beginning else ""

    def run(self) -> None:
        """Reads lines until the end or `/quit`: from a terminal with editing and history."""
        self._say(WELCOME.format(example=self._example))
        for line in _lines(self._history):
            if not self.respond(line):
                break

    def respond(self, line: str) -> bool:
        """Does what one line asks for; returns False when it asks to leave."""
        if (word := line.rstrip().lower()) in WORDS:
            line = f"/{word}"
        if not line.startswith("/"):
            return self._continue(line)
        try:
            return self._command(line)
        except (InputError, ValueError) as error:
            self._say(str(error))
            return True

    def _continue(self, line: str) -> bool:
        """Adds a line to the text and continues it; Ctrl-C stops the writing only."""
        self.text = joined(self.text, line)
        n_before = len(self.text)
        try:
            for piece in self.generator.stream(self.text, self.sampling):
                self._write(piece)
                self.text += piece
            self._write("\n")
            if len(self.text) == n_before and self.sampling.max_new_tokens:
                self._say("(nothing: for the model the text ends here; type how it goes on, or "
                          "/reset)")  # fmt: skip
        except KeyboardInterrupt:
            self._write("\n")
        return True

    def _command(self, line: str) -> bool:
        name, *values = _words(line[1:]) or [""]
        name = name.replace("-", "_").lower()
        fields = {field.name: field.type for field in dataclasses.fields(SamplingConfig)}
        if name in ("quit", "exit"):
            return False
        if name == "help":
            self._help(fields)
        elif name == "reset":
            self.text = ""
            self._write("(the text is forgotten)\n")
        elif name == "probs":
            for token, probability in self.generator.next_probabilities(self.text):
                self._write(f"{probability:7.2%}  {token!r}\n")
        elif name == "settings":
            for field in fields:
                self._tell(field)
        elif name in fields:
            self._set(name, values, str(fields[name]))
        else:
            known = ["help", "quit", "reset", "probs", "settings", *fields]
            near = nearest(name, known).replace("_", "-")
            raise InputError(
                f"unknown command /{name.replace('_', '-')}: {near} (a text that begins with / is "
                "typed with a blank before it)"
            )
        return True

    def _help(self, settings: dict[str, Any]) -> None:
        where = f"kept in {self._history}, for the up key (--no-history: it is not)"
        filled = {
            "settings": ", ".join(settings).replace("_", "-"),
            "history": f"What you type is {where if self._history else 'not kept'}.",
        }
        for command, meaning in COMMANDS:
            self._say(f"{command:{INDENT}}{meaning.format(**filled)}", INDENT)
        for note in NOTES:
            self._say(note.format(**filled))

    def _say(self, text: str, indent: int = 0) -> None:
        """Shows a line of ours, not the model's, within the width of the terminal."""
        self._write(wrapped(text, terminal_width(sys.stdout), indent) + "\n")

    def _set(self, name: str, values: list[str], kind: str) -> None:
        shown = name.replace("_", "-")
        if kind.startswith("tuple"):
            if not values:
                raise InputError(f"/{shown} needs a value, or off")
            value: object = () if values == ["off"] else tuple(map(unescaped, values))
        elif len(values) != 1:
            raise InputError(
                f"/{shown} needs one value" + (", or off" if _off(name, kind) else "")
            )
        else:
            value = _value(name, values[0], kind)
        change: dict[str, Any] = {name: value}
        self.sampling = dataclasses.replace(self.sampling, **change).validate()
        self._tell(name)

    def _tell(self, name: str) -> None:
        value = getattr(self.sampling, name)
        if value is None or value == () or isinstance(value, bool):
            value = "on" if value else "off"
        elif isinstance(value, tuple):
            value = " ".join(map(repr, value))
        self._write(f"{name.replace('_', '-')}: {value}\n")


def joined(text: str, line: str) -> str:
    """The text so far and what is typed next: a new line of it, as it looks on the screen.

    After one blank it goes on in the same line; a wider indent is one, as in a program.

    >>> joined("the king", "The queen"), joined("the king", " rode"), joined("if x:", "    y()")
    ('the king\\nThe queen', 'the king rode', 'if x:\\n    y()')
    """
    goes_on = line.startswith(" ") and not line[1:2].isspace()
    if not text:
        return line[1:] if goes_on else line
    if not line or goes_on or text[-1].isspace():
        return text + line
    return f"{text}\n{line}"


def _off(name: str, kind: str) -> dict[str, Any]:
    """The value of a setting that is switched off; nothing where it cannot be."""
    values = {"repetition_penalty": 1.0, "ignore_end": False}
    return {name: values.get(name)} if name in values or "None" in kind else {}


def _value(name: str, text: str, kind: str) -> object:
    """What a setting is changed to.

    Raises:
        InputError: it cannot have this value.
    """
    shown = name.replace("_", "-")
    if kind == "bool":
        if text.lower() not in ON + OFF:
            raise InputError(f"{shown} {shortened(text)}: must be on or off")
        return text.lower() in ON
    if text.lower() in OFF:
        off = _off(name, kind)
        if not off:
            raise InputError(f"{shown} cannot be switched off")
        return off[name]
    number = float if "float" in kind else int
    try:
        return number(text)
    except ValueError:
        or_off = ", or off" if _off(name, kind) else ""
        raise InputError(f"{shown} {shortened(text)}: must be {KINDS[number]}{or_off}") from None


def _words(command: str) -> list[str]:
    """The words of a command; quotes hold blanks together, a backslash stays as it is."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    try:
        return list(lexer)
    except ValueError:
        raise InputError(f"/{shortened(command)}: a quotation mark has no second one") from None


def _history_path() -> Path | None:
    folder = home()
    return None if folder is None else folder / ".myllm_history"


def _open_history(path: Path | None) -> History:
    """What was typed before; where that cannot be written or shall not, of this session."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Patient(FileHistory):
        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):  # a disk that is full now
                super().store_string(string)

    if path is None:
        return InMemoryHistory()
    try:
        path.touch(mode=0o600)
        with path.open("ab+"):
            return Patient(str(path))
    except OSError:
        return InMemoryHistory()


def _lines(history: Path | None) -> Iterator[str]:
    if not sys.stdin.isatty():
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # what is not text is shown as such
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession(history=_open_history(history))
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
