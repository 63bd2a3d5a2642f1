"""Room: stages of long work → a bar on a terminal, and nothing elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from myllm.system.progress import Advance

DELAY_S = 0.5  # what is done by then needs no bar


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Advance]:
    """Shows a stage of work on standard error, if that is a terminal; see `system.progress`."""
    if not sys.stderr.isatty():
        yield lambda amount: None
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
