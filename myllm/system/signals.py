"""Room: signals → an orderly end. Knows nothing of what they end."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from myllm.errors import Interrupted

log = logging.getLogger(__name__)

# Ctrl-C; what `kill` and batch systems send; what a terminal sends when it is closed; what the
# system sends when the allowed time on the processor is over
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU")
# what batch systems send on request, some time before they end a job
SAVING = ("SIGUSR1", "SIGUSR2")


class SignalReceived(KeyboardInterrupt):
    """A signal came where nothing has to be finished.

    No `Exception`, as libraries catch those.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


# What `raised` has raised. Python drops an exception that comes up in a callback, of an import for
# instance; then the program runs on, and `Deferred` finds the signal here.
_raised: list[int] = []


@contextmanager
def raised() -> Iterator[None]:
    """Within the block a signal raises `SignalReceived`, so that what is open gets closed."""

    def stop(number: int, frame: Any) -> None:
        _raised.append(number)
        raise SignalReceived(number)

    def ignore(number: int, frame: Any) -> None:
        log.warning("%s is ignored: there is nothing to save now", signal.Signals(number).name)

    _raised.clear()
    with _handled_by(stop, ignore):
        yield
    _raised.clear()


class Deferred:
    """Within the block the first signal is noted, for the loop to end when it is ready.

    The second raises `Interrupted` at once. Those that ask for a save are noted, too.
    """

    def __init__(self, on_first: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            on_first: is called when the first signal comes, from within its handler.
        """
        self.on_first = on_first
        self.received: int | None = None
        self.twice = False
        self._asked: int | None = None
        self._context = _handled_by(self._note, self._note_save)

    def save_asked(self) -> str | None:
        """The name of the signal that asked for a save since the last call, if one did."""
        number, self._asked = self._asked, None
        return None if number is None else signal.Signals(number).name

    def _note_save(self, number: int, frame: Any) -> None:
        self._asked = number

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None:
            if number == self.received == getattr(signal, "SIGXCPU", None):
                return  # it comes every second
            self.twice = True
            raise Interrupted("stopped at once; the last checkpoint is intact", number)
        self.received = number
        log.warning("finishing the step and saving; once more stops at once")
        self.on_first()

    def __enter__(self) -> Deferred:
        self._context.__enter__()
        if _raised:
            self._note(_raised.pop(), None)
        return self

    def __exit__(self, *details: Any) -> None:
        self._context.__exit__(*details)


Handler = Callable[[int, Any], None]


@contextmanager
def _handled_by(ending: Handler, saving: Handler) -> Iterator[None]:
    """Sets the handlers of all signals but the ignored ones (`nohup`); sets the old ones back."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    wanted = {**dict.fromkeys(NAMES, ending), **dict.fromkeys(SAVING, saving)}
    numbers = {name: getattr(signal, name) for name in wanted if hasattr(signal, name)}
    before = {name: signal.getsignal(number) for name, number in numbers.items()}
    for name, old in before.items():
        if old is not signal.SIG_IGN:
            signal.signal(numbers[name], wanted[name])
    try:
        yield
    finally:
        for name, old in before.items():
            if old is not None:
                signal.signal(numbers[name], old)
