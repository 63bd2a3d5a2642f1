"""Room: an exception → one line for a person, and an exit code. Knows nothing of the verbs."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from pathlib import Path

from myllm.errors import Interrupted, MyLLMError
from myllm.system.atomic import NO_ROOM, NOT_ALLOWED
from myllm.system.streams import OutputError, silence
from myllm.system.terminal import one_line
from myllm.system.wrapping import terminal_width, wrapped

ROOT = Path(__file__).parents[1]


def exit_code(error: BaseException, debug: bool = False) -> int:
    """Tells what happened in one line.

    Args:
        error: what was raised.
        debug: show the traceback, too.

    Returns:
        The exit code (see `errors`).
    """
    if isinstance(error, OutputError):
        silence(sys.stdout)
        if error.reader_left:
            return 0
    code, message = _described(error)
    if debug and not isinstance(error, (KeyboardInterrupt, OutputError)):
        with contextlib.suppress(OSError):
            traceback.print_exception(error)
    tell(message)
    return code


def tell(message: str) -> None:
    """Writes a line to standard error, if anybody reads it; on a terminal as wide as that."""
    line = wrapped(f"myllm: {one_line(message)}", terminal_width(sys.stderr))
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _described(error: BaseException) -> tuple[int, str]:
    if isinstance(error, MyLLMError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        number = getattr(error, "number", signal.SIGINT)
        message = "interrupted; what was saved before is intact"
        return Interrupted("", number).exit_code, message
    if isinstance(error, OSError):
        return _of_the_system(error)
    if (memory := _out_of_memory(error)) is not None:
        return memory
    if isinstance(error, RecursionError):
        return 2, "something that was given is nested too deeply to be read"
    if isinstance(error, UnicodeError):
        return 2, f"a text cannot be used: {error}; give it as UTF-8"
    if isinstance(error, ImportError) and not (error.name or "").startswith("myllm"):
        package = (error.name or "").partition(".")[0]
        ours = not package or package in sys.stdlib_module_names
        remedy = "install Python anew" if ours else f"install it: pip install {package}"
        return 2, f"{package or 'a package'} cannot be imported ({error}); {remedy}"
    return 1, _fault(error)


def _of_the_system(error: OSError) -> tuple[int, str]:
    """What the operating system refused."""
    reason = os.strerror(error.errno) if error.errno else str(error.strerror or error)
    name = "" if error.filename is None else str(error.filename)
    at = f" {name}" if name else ""
    if isinstance(error, OutputError):
        code = 4 if error.errno in NO_ROOM else 2
        return code, f"cannot write to standard output: {reason}"
    if error.errno in NO_ROOM:
        return 4, f"the disk is full or fails{at and ' at' + at}: {reason}"
    if error.errno == errno.ENOMEM:
        return 6, f"not enough memory: {reason}{at}"
    if error.errno in NOT_ALLOWED:
        return 2, f"may not use{at or ' a file'}: {reason}; its owner can allow it (chmod)"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return 2, f"{reason}{at and ':' + at}; allow more (ulimit -n), or close other programs"
    return 2, f"cannot use{at}: {reason}" if name else f"the system refused: {reason}"


def _out_of_memory(error: BaseException) -> tuple[int, str] | None:
    """A model that does not fit, or anything else that memory is too small for."""
    remedy = "take a smaller --d-model, --n-layers, --vocab-size or --batch-size"
    if isinstance(error, MemoryError):
        return 6, f"not enough memory {error}; {remedy}"
    if not isinstance(error, RuntimeError) or "torch" not in sys.modules:
        return None
    from myllm.system.device import out_of_memory

    known = out_of_memory(error, remedy)
    return None if known is None else (known.exit_code, str(known))


def _fault(error: BaseException) -> str:
    """Of what no user can cause: where it came up, for whoever repairs it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if Path(f.filename).is_relative_to(ROOT)]
    places = [f"{Path(f.filename).relative_to(ROOT).as_posix()}:{f.lineno}" for f in ours[-3:]]
    return (
        f"this is a fault of MyLLM, not yours: {type(error).__name__}: {error} "
        f"(in {' > '.join(places) or 'the program'}); please report it with what --debug shows"
    )
