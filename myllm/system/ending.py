"""Room: the end of the process → without taking apart what was loaded. Knows nothing else.

With PyTorch, Python's own end empties over a thousand modules, which takes a fifth of the time of
a short command; the system takes their memory back anyway.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys

_code: int | None = None


def end_without_teardown(code: int) -> None:
    """Has this process end with `code` as soon as all that others registered with `atexit` has
    run; to be called last, when every file is closed."""
    global _code
    _code = code


@atexit.register  # what was registered first runs last: this room is imported before libraries
def _end() -> None:
    if _code is not None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(_code)
