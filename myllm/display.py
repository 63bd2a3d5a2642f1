"""Room: a training run's progress → a person's screen, or plain lines. Knows nothing of models.

On a terminal: a progress bar and samples of the model's writing. Elsewhere: one line per
evaluation, without control characters.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from myllm.metrics import Metrics
from myllm.observer import Observer


class TrainingDisplay(Observer):
    """Shows a run. Use it as a context, so that the bar is taken off the screen at the end."""

    def __init__(
        self, console: Console, write_sample: Callable[[int], str], quiet: bool = False
    ) -> None:
        """
        Args:
            console: where to.
            write_sample: gives a sample of the model's writing at a step.
            quiet: show nothing.
        """
        self.console, self.write_sample, self.quiet = console, write_sample, quiet
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._max_steps = 0
        self._first_step = 0
        self._started = 0.0
        self._val_loss = ""

    def on_start(self, step: int, max_steps: int) -> None:
        self._max_steps, self._first_step = max_steps, step
        self._started = time.monotonic()
        if self.quiet or not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self.console,
            expand=True,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=max_steps, completed=step)
        self._progress.start()

    def on_step(self, step: int, loss: float, tokens_per_second: float) -> None:
        if self._progress is None:
            return
        text = f"loss {loss:.3f}{self._val_loss}"
        text += f"  {tokens_per_second:,.0f} tokens/s  {self._eta(step)}"
        self._progress.update(self._task, completed=step, description=text)

    def on_evaluation(self, record: Metrics, is_best: bool) -> None:
        self._val_loss = f"  validation {record.val_loss:.3f}"
        if self.quiet:
            return
        self._print(
            f"step {record.step}/{self._max_steps}  loss {record.train_loss:.4f}  "
            f"validation {record.val_loss:.4f} ({record.val_bits_per_byte:.3f} bits per byte)  "
            f"{record.tokens_per_second:,.0f} tokens/s  {self._eta(record.step)}"
        )
        if self.console.is_terminal:
            self.console.print(Text(printable(self.write_sample(record.step)), style="dim italic"))

    def _eta(self, step: int) -> str:
        done = step - self._first_step
        seconds = (time.monotonic() - self._started) / max(1, done) * (self._max_steps - step)
        return f"{format_duration(seconds)} left"

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(self, *details: object) -> None:
        if self._progress is not None:
            self._progress.stop()


def format_duration(seconds: float) -> str:
    """
    >>> [format_duration(s) for s in (5, 75, 3700)]
    ['5s', '1m15s', '1h01m']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def printable(text: str) -> str:
    """`text` without the control characters that a terminal would obey."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


class PatientStream:
    """A stream that goes on without its reader: a training run must not end because a terminal
    was closed or `head` has seen enough."""

    def __init__(self, stream: TextIO) -> None:
        """
        Args:
            stream: where to write for as long as that works.
        """
        self._stream: TextIO | None = stream

    def write(self, text: str) -> int:
        """Writes, if somebody still reads."""
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Passes on what was written."""
        self._try(lambda stream: stream.flush())

    def isatty(self) -> bool:
        """Whether a person reads."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """The descriptor of the stream."""
        if self._stream is None:
            raise OSError("the reader has left")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        """How text becomes bytes."""
        return self._stream.encoding if self._stream is not None else "utf-8"

    def _try(self, work: Callable[[TextIO], object]) -> None:
        if self._stream is None:
            return
        try:
            work(self._stream)
        except OSError:  # EPIPE of a pipe, EIO of a closed terminal
            silence(self._stream)
            self._stream = None


def silence(stream: TextIO) -> None:
    """Sends what is left in a stream's buffer nowhere, so that closing it cannot fail either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
