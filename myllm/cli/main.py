"""Room: the command line: arguments → a verb's work → an exit code. Only here the program exits.

Torch is imported when a verb needs it, so that help answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from myllm import __version__
from myllm.cli import benchmark, evaluate, export, generate, prepare, train, verify, write
from myllm.cli.parse import parse
from myllm.cli.verb import Verb, begin
from myllm.errors import Interrupted, MyLLMError
from myllm.registry import Registry
from myllm.system import signals
from myllm.system.machine import use_available_cores
from myllm.system.terminal import one_line

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
    args = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show 你好 shows ?
    log.handlers[:] = [_LogHandler(sys.stderr)]
    log.setLevel(logging.INFO)
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
        return _exit_code(error, getattr(options, "debug", False))


def _work(verb: Verb, options: Any) -> None:
    if getattr(options, "quiet", False):
        log.setLevel(logging.WARNING)
    use_available_cores()
    verb.work(options)


def _exit_code(error: BaseException, debug: bool) -> int:
    """Tells what happened in one line; an error that no user can cause is raised again."""
    if isinstance(error, MyLLMError):
        if debug:
            traceback.print_exception(error)
        _tell(" ".join(str(error).split()))
        return error.exit_code
    if isinstance(error, RuntimeError):
        return _out_of_memory(error)
    if isinstance(error, KeyboardInterrupt):
        _tell("interrupted; what was saved before is intact")
        return Interrupted("", getattr(error, "number", signal.SIGINT)).exit_code
    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO):
        from myllm.system.terminal import silence

        silence(sys.stdout)  # its reader has left, as `head` does, or the terminal is closed
        return 0
    raise error


class _LogHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes above the progress bar, which takes the place of `sys.stderr` on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))

    def emit(self, record: logging.LogRecord) -> None:
        if sys.__stderr__ is not None and sys.__stderr__.isatty():
            self.stream = sys.stderr
        super().emit(record)


def _tell(message: str) -> None:
    with contextlib.suppress(OSError):  # the terminal is closed
        print(f"myllm: {one_line(message)}", file=sys.stderr, flush=True)


def _out_of_memory(error: RuntimeError) -> int:
    """Tells of a model that does not fit; any other `RuntimeError` is raised again."""
    from myllm.system.device import out_of_memory

    remedy = "take a smaller --d-model, --n-layers, --vocab-size or --batch-size"
    known = out_of_memory(error, remedy)
    if known is None:
        raise error
    _tell(str(known))
    return known.exit_code


def _overview() -> str:
    lines = ["usage: myllm VERB [OPTIONS]    (myllm VERB --help lists its options)", ""]
    for name, verb in VERBS.items():
        summary = " ".join((verb.options.__doc__ or "").split())
        lines.append(f"  {name:14} {summary}")
    return "\n".join(lines)
