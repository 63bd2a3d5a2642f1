"""Room: the command line: arguments → a verb's work → an exit code. Only here the program exits.

Torch is imported when a verb needs it, so that help answers at once.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from myllm import __version__
from myllm.cli import benchmark, evaluate, export, generate, prepare, train, verify, write
from myllm.cli.failures import exit_code
from myllm.cli.parse import parse
from myllm.cli.progress import bar
from myllm.cli.verb import Verb, begin
from myllm.registry import Registry
from myllm.system import signals
from myllm.system.machine import use_available_cores
from myllm.system.patience import end_process_despite_calls
from myllm.system.progress import watched_by
from myllm.system.streams import silence, standard_streams
from myllm.system.terminal import one_line
from myllm.system.wrapping import terminal_width, wrapped

log = logging.getLogger("myllm")

VERBS: Registry[Verb] = Registry("verb", {
    "train": train.VERB,
    "generate": generate.VERB,
    "write": write.VERB,
    "chat": write.CHAT,
    "evaluate": evaluate.VERB,
    "prepare": prepare.VERB,
    "export": export.VERB,
    "import": export.IMPORT,
    "verify": verify.VERB,
    "inspect-batch": verify.INSPECT_BATCH,
    "benchmark": benchmark.VERB,
})  # fmt: skip


def main(args: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit code (see `errors.py`)."""
    if args is not None:  # called from Python
        begin()
    with standard_streams(), _messages():
        code = _run(list(sys.argv[1:] if args is None else args))
        try:
            sys.stdout.flush()
        except OSError as error:
            silence(sys.stdout)
            code = code or exit_code(error)  # one line, of what came first
        if args is None:
            end_process_despite_calls(code)
        return code


def _run(args: list[str]) -> int:
    options: Any = None
    try:
        with signals.raised():
            if not args or args[0] in ("-h", "--help", "help"):
                print(_overview())
            elif args[0] == "--version":
                print(f"myllm {__version__}")
            else:
                verb = VERBS[args[0]]
                options = parse(verb.options, args[0], args[1:])
                _work(verb, options)
        return 0
    except SystemExit as exit:  # --help has been shown
        return int(exit.code or 0)
    except (Exception, KeyboardInterrupt) as error:
        return exit_code(error, getattr(options, "debug", False))


def _work(verb: Verb, options: Any) -> None:
    quiet = getattr(options, "quiet", False)
    if quiet:
        log.setLevel(logging.WARNING)
    use_available_cores()
    with contextlib.nullcontext() if quiet else watched_by(bar):
        verb.work(options)


@contextlib.contextmanager
def _messages() -> Iterator[None]:
    """Shows messages on standard error; what a caller from Python has set is put back."""
    handlers, level = log.handlers[:], log.level
    log.handlers[:] = [_LogHandler(sys.stderr)]
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.handlers[:] = handlers
        log.setLevel(level)


class _LogHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes above the progress bar, which takes the place of `sys.stderr` on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return wrapped(one_line(super().format(record)), terminal_width(sys.__stderr__))

    def emit(self, record: logging.LogRecord) -> None:
        if sys.__stderr__ is not None and sys.__stderr__.isatty():
            self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing, where a stream that is closed or full is all that is wrong; nor for a signal
        that comes in the middle of a line (`RuntimeError`)."""
        if not isinstance(sys.exc_info()[1], (OSError, RuntimeError)):
            super().handleError(record)


def _overview() -> str:
    lines = ["usage: myllm VERB [OPTIONS]    (myllm VERB --help lists its options)", ""]
    for name, verb in VERBS.items():
        summary = " ".join((verb.options.__doc__ or "").split())
        lines.append(f"  {name:14} {summary}")
    return "\n".join(lines)
