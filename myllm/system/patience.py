"""Room: a long call of a library → its result, or at once the exception that a signal raises.

While a library computes, Python cannot run the handler of a signal. So the library computes in
a thread, and the main thread waits where signals reach it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

INTERVAL_S = 0.1  # on Windows a signal waits until then

Result = TypeVar("Result")

_left: list[threading.Thread] = []  # threads whose result nobody waits for any more


def patiently(call: Callable[[], Result]) -> Result:
    """What `call` returns or raises.

    If a signal raises an exception meanwhile, that is raised at once. The call then runs on in its
    thread, with nobody to take its result: it must not write anything.

    Args:
        call: a function of a library that leaves Python's lock to others while it computes.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()  # signals do not come here
    outcome: Future[Result] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # raised again by the thread that waits
            outcome.set_exception(error)

    thread = threading.Thread(target=work, daemon=True)
    try:
        thread.start()
        while not wait([outcome], INTERVAL_S).done:
            pass
    except BaseException:
        _left.append(thread)
        raise
    return outcome.result()


def end_process_despite_calls(code: int) -> None:
    """Ends this process if a call is still running that a signal has cut off; else does nothing.

    Python's own end takes its lock away from such a thread, which libraries do not survive. All
    that the program had open is closed by now.
    """
    if any(thread.is_alive() for thread in _left):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
