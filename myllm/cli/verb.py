"""Room: what a verb of the command line is: its options, and the work done with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from myllm.system.shell import quoted

_began = time.monotonic()


def begin() -> None:
    """Sets the moment that `--minutes` counts from, where the program is called from Python."""
    global _began
    _began = time.monotonic()


def began() -> float:
    """When the program did, by `time.monotonic`."""
    return _began


class Verb(NamedTuple):
    """A verb of the command line.

    Attributes:
        options: a dataclass (see `parse`); its docstring is the verb's help.
        work: does it and prints what a person wants to know.
    """

    options: type[Any]
    work: Callable[[Any], None]


def joined(args: list[str], verbs: Iterable[str]) -> list[str]:
    """The arguments with a verb of two words as one.

    >>> joined(["runs", "show", "novel"], ["runs", "runs show"])
    ['runs show', 'novel']
    """
    words = args[:2]
    has_more = any(name.startswith(f"{words[0]} ") for name in verbs) if args else False
    if has_more and len(words) == 2 and not words[1].startswith("-"):
        return [" ".join(words), *args[2:]]
    return args


def run_flags(name: str, runs_dir: str | Path = "checkpoints") -> str:
    """The flags that name a run, fit to be copied into a shell.

    >>> run_flags("my run", "old runs")
    "--run 'my run' --runs-dir 'old runs'"
    """
    return f"--run {quoted(name)}{runs_dir_flag(runs_dir)}"


def generate_command(beginning: str | None, flags: str) -> str:
    """The command that lets a run write, after a line of its own text where one is known.

    >>> generate_command("The king", "--run novel")
    "myllm generate 'The king' --run novel"
    >>> generate_command(None, "--run gpt2")
    'myllm generate --run gpt2'
    """
    return (
        f"myllm generate {quoted(beginning)} {flags}" if beginning else f"myllm generate {flags}"
    )


def runs_dir_flag(runs_dir: str | Path) -> str:
    """The flag that names the folder of runs, after a blank, where it is not the default one."""
    where = str(runs_dir)
    return "" if where == "checkpoints" else f" --runs-dir {quoted(where)}"
