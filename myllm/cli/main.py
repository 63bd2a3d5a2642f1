"""Room: the command line: arguments → a verb's work → an exit code. Only here the program ends.

Torch is imported when a verb needs it, so that help answers at once.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from myllm import __version__
from myllm.cli import (
    advice,
    benchmark,
    cleanup,
    completion,
    evaluate,
    export,
    generate,
    prepare,
    runs,
    train,
    verify,
    write,
)
from myllm.cli.failures import exit_code
from myllm.cli.help import help_of, overview
from myllm.cli.parse import HelpAsked, UnknownOption, parse
from myllm.cli.progress import bar
from myllm.cli.verb import Verb, begin, joined
from myllm.registry import Registry
from myllm.system import signals
from myllm.system.ending import end_without_teardown
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
    **runs.VERBS,
    **cleanup.VERBS,
    "verify": verify.VERB,
    "inspect-batch": verify.INSPECT_BATCH,
    "benchmark": benchmark.VERB,
})  # fmt: skip
VERBS["completion"] = completion.verb(VERBS)


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
            end_without_teardown(code)
        return code


def _run(args: list[str]) -> int:
    options: Any = None
    try:
        with signals.raised():
            args = joined(args, VERBS)
            if args[:1] == ["help"] and len(args) > 1:
                args = [*joined(args[1:], VERBS), "--help"]
            if not args or args[0] in ("-h", "--help", "--help-all", "help"):
                print(overview(VERBS))
            elif args[0] == "--version":
                print(f"myllm {__version__}")
            elif (options := _options(args)) is not None:
                _work(VERBS[args[0]], options)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return exit_code(error, getattr(options, "debug", False))


def _options(args: list[str]) -> Any:
    """The options that the arguments say, or None where help was asked for, and is shown."""
    if args[0] not in VERBS:
        raise advice.about_verb(VERBS, args)
    verb = VERBS[args[0]]
    try:
        options = parse(verb.options, args[0], args[1:])
        advice.check_texts(args[1:])
        return options
    except HelpAsked as asked:
        print(help_of(verb.options, args[0], asked.everything, asked.values))
    except UnknownOption as error:
        raise advice.about_option(VERBS, args[0], error) from None


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
