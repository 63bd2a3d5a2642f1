"""Room: stages of long work → a bar on a terminal; elsewhere a line, of what takes very long."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from myllm.system.progress import Advance

log = logging.getLogger(__name__)

DELAY_S = 0.5  # what is done by then needs no bar
LONG_S = 10.0  # what is done by then needs no line


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Advance]:
    """Shows a stage of work on standard error; see `system.progress`."""
    if not sys.stderr.isatty():
        with _line(what, total) as advance:
            yield advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        expand=True,
        transient=True,
    )
    task = progress.add_task(what, total=total)
    timer = threading.Timer(DELAY_S, progress.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda amount: progress.advance(task, amount)
    finally:
        timer.cancel()
        timer.join()  # it may just be starting the bar
        progress.stop()


@contextmanager
def _line(what: str, total: int | None) -> Iterator[Advance]:
    """One when the stage has become long, so that a log does not seem to stand still, and one when
    it is over."""
    done, told, began = 0, False, time.monotonic()

    def add(amount: int) -> None:
        nonlocal done
        done += amount

    def tell() -> None:
        nonlocal told
        told = True
        share = f", {min(1.0, done / total):.0%} after {LONG_S:.0f} s" if total and done else ""
        log.info("%s%s …", what, share)

    timer = threading.Timer(LONG_S, tell)
    timer.daemon = True
    timer.start()
    try:
        yield add
    finally:
        timer.cancel()
        timer.join()
        if told:
            log.info("%s took %.0f s", what, time.monotonic() - began)
