"""Room: how far long work has come → whoever watches it. Knows nothing of screens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

Advance = Callable[[int], None]
"""Tells that so much more is done."""

Watcher = Callable[[str, int | None], AbstractContextManager[Advance]]
"""Is told what begins and how much it is (None: nobody knows), and watches within a block."""


def _nobody(what: str, total: int | None) -> AbstractContextManager[Advance]:
    return nullcontext(lambda amount: None)


_watcher: ContextVar[Watcher] = ContextVar("watcher", default=_nobody)


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Within the block `watcher` is told of all stages of work."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def watcher() -> Watcher:
    """Whoever is told at present."""
    return _watcher.get()


@contextmanager
def stage(what: str, total: int | None = None) -> Iterator[Advance]:
    """A block of work that may take long.

    Args:
        what: what is done, for a person: "encoding".
        total: how much it is, in any unit; None if nobody knows.

    >>> with stage("encoding", 2) as advance:
    ...     advance(1)
    ...     advance(1)
    """
    with _watcher.get()(what, total) as advance:
        yield advance
