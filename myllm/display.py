"""Room: a training run's plan, progress and samples → a person's screen, or plain lines.

On a terminal and in a notebook: a progress bar and samples of the model's writing, no line wider
than the screen. Elsewhere: one line per evaluation, without control characters.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from myllm.runs.metrics import Metrics
from myllm.runs.verdict import Facts, Point, best_of, warning
from myllm.system.progress import Advance, watcher
from myllm.system.terminal import printable
from myllm.system.units import format_duration
from myllm.system.wrapping import wrapped
from myllm.train.eta import TimeLeft
from myllm.train.observer import Observer

log = logging.getLogger(__name__)

SAMPLE_ROWS = 4  # of the screen, at most
LEAST_BAR = 10  # columns
TOLD_STEPS, TOLD_S, WORTH_TELLING_S = 4, 2.0, 20.0  # when the time of the whole run is told


class Field(NamedTuple):
    """A part of a row, and how much it matters: 0 the most."""

    rank: int
    text: str


def row(fields: Sequence[Field], width: int | None) -> str:
    """The fields side by side, in their order; on a narrow screen without those that matter least.

    >>> row([Field(0, "step 5/9"), Field(2, "99 tokens/s"), Field(1, "5s left")], 20)
    'step 5/9  5s left'
    """
    kept = list(fields)
    while width is not None and len(kept) > 1 and cell_len(_joined(kept)) > width:
        kept.remove(max(kept, key=lambda field: field.rank))
    return _joined(kept)


def _joined(fields: Sequence[Field]) -> str:
    return "  ".join(field.text for field in fields)


class TrainingDisplay(Observer):
    """Shows a run. Use it as a context, so that the bar is taken off the screen at the end."""

    def __init__(
        self,
        console: Console,
        write_sample: Callable[[int], str],
        quiet: bool = False,
        beginning: str = "",
        facts: Facts | None = None,
        points: Sequence[Point] = (),
        evaluation_steps: int = 1,
    ) -> None:
        """
        Args:
            console: where to.
            write_sample: gives what the model writes after `beginning`, at a step.
            quiet: show nothing.
            beginning: what samples begin with.
            facts: what a warning depends on; None: no warnings.
            points: what was measured before, of a run that continues.
            evaluation_steps: between two evaluations.
        """
        self.console, self.write_sample, self.quiet = console, write_sample, quiet
        self.beginning, self.facts = printable(beginning), facts
        self._points, self._evaluation_steps = list(points), evaluation_steps
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._left = TimeLeft(0, 1, 1, 0.0)  # nobody knows yet
        self._fields: list[Field] = [Field(0, "starting")]
        self._stage: Callable[[], str] | None = None  # what is done at present, if no step is
        self._outer = watcher()
        self._step = self._first_step = self._max_steps = 0
        self._began: float | None = None
        self._told_time = self._warned = self._told_brackets = False

    # ------------------------------------------------------------- as an observer

    def on_start(self, step: int, max_steps: int) -> None:
        self._step, self._first_step, self._max_steps = step, step, max_steps
        self._began = time.monotonic()
        if not self.quiet and _has_bar(self.console):
            self._start_bar()
        if step < max_steps:
            self._show_sample(step, "before training" if step == 0 else "where the run goes on")
        guess = 0.0
        if self.facts is not None:  # no backward pass
            guess = self.facts.n_val_tokens / self.facts.tokens_per_step / 3
        self._left = TimeLeft(
            step, max_steps, self._evaluation_steps, time.monotonic(), in_steps=guess
        )

    def on_step(self, step: int, loss: float, tokens_per_second: float) -> None:
        self._step = step
        self._left.step_ended(step, time.monotonic())
        self._fields = [Field(2, f"loss {loss:.3f}")]
        if self._points:
            self._fields.append(Field(3, f"validation {self._points[-1].val_loss:.3f}"))
        self._fields.append(Field(4, f"{tokens_per_second:,.0f} tokens/s"))
        self._tell_time()
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def on_evaluation(self, record: Metrics, is_best: bool) -> None:
        self._points.append(Point(record.step, record.train_loss, record.val_loss))
        if self.quiet:
            return
        bits = record.val_bits_per_byte
        fields = [
            Field(0, f"step {record.step}/{self._max_steps}"),
            Field(2, f"loss {record.train_loss:.4f}"),
            Field(1, f"validation {record.val_loss:.4f}"),
            *([] if math.isnan(bits) else [Field(4, f"({bits:.3f} bits per byte)")]),
            Field(5, f"{record.tokens_per_second:,.0f} tokens/s"),
            *self._time_left(3),
        ]
        text = row(fields, self._width).replace("  (", " (")
        self.console.print(Text(text))
        self._warn()
        best = best_of(self._points)
        worse = best is not None and not is_best
        self._show_sample(
            record.step, f"not kept: the best is step {best.step}" if worse and best else ""
        )
        self._left.evaluation_ended(time.monotonic())

    @contextmanager
    def watch(self, what: str, total: int | None) -> Iterator[Advance]:
        """Shows a stage of work within the bar, while there is one (see `system.progress`)."""
        if self._began is None or self.quiet:
            with self._outer(what, total) as advance:
                yield advance
            return
        done = 0

        def add(amount: int) -> None:
            nonlocal done
            done += amount

        self._stage = lambda: f"{what} {done / total:.0%}" if total else what
        try:
            yield add
        finally:
            self._stage = None

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(self, *details: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    # ------------------------------------------------------------------ its parts

    @property
    def _width(self) -> int | None:
        """Columns that there are; None where lines may be of any length."""
        return self.console.width if _is_watched(self.console) else None

    def _start_bar(self) -> None:
        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None),
            _Column(self._bar_text),
            console=self.console,
            expand=True,
            transient=True,
        )
        self._task = self._progress.add_task("", total=self._max_steps, completed=self._step)
        self._progress.start()

    def _bar_text(self) -> str:
        fields = [Field(1, self._stage())] if self._stage else self._fields
        steps = f"step {self._max_steps}/{self._max_steps}"
        room = self.console.width - len(steps) - LEAST_BAR - 2  # a blank between two columns
        return row([*fields, *self._time_left(0)], room)

    def _time_left(self, rank: int) -> list[Field]:
        seconds = self._left.seconds()
        return [] if seconds is None else [Field(rank, f"{format_duration(seconds)} left")]

    def _tell_time(self) -> None:
        """Once, as soon as some steps have shown how long the whole run takes."""
        seconds, gone = self._left.seconds(), time.monotonic() - (self._began or 0.0)
        enough = self._step - self._first_step >= TOLD_STEPS and gone >= TOLD_S
        if self._told_time or self.quiet or seconds is None or not enough:
            return
        self._told_time = True
        if gone + seconds > WORTH_TELLING_S:
            self.console.print(Text(f"time    about {format_duration(gone + seconds)} in all"))

    def _warn(self) -> None:
        """Once, when it becomes true."""
        if self._warned or self.facts is None:
            return
        if (text := warning(self._points, self.facts)) is not None:
            self._warned = True
            log.warning("%s", text)

    def _show_sample(self, step: int, note: str) -> None:
        if self.quiet or not _is_watched(self.console):
            return
        with self.watch("writing a sample", None):
            written = printable(self.write_sample(step)).rstrip()
        if self.beginning and not self._told_brackets:
            self._told_brackets = True
            note = f"{note}; in brackets a line of your text".removeprefix("; ")
        label = f"sample, step {step}" + (f" ({note})" if note else "")
        self.console.print(Text(wrapped(label, self._width), style="dim"))
        text = Text(f"[{self.beginning}]" if self.beginning else "", style="bold")
        text.append("\n".join(filter(str.strip, written.split("\n"))), style="not bold dim italic")
        rows = text.wrap(self.console, max(1, self.console.width - 4), tab_size=4)
        for line in rows[:SAMPLE_ROWS]:
            line.rstrip()
            self.console.print(Text.assemble(("│ ", "dim"), line))
        if len(rows) > SAMPLE_ROWS:
            self.console.print(Text("│ …", style="dim"))


class _Column(ProgressColumn):
    """Text that is asked for whenever the bar is drawn, so that it fits the width at that time."""

    def __init__(self, text: Callable[[], str]) -> None:
        super().__init__(Column(no_wrap=True))
        self._text = text

    def render(self, task: Task) -> Text:
        return Text(self._text(), no_wrap=True)


def _is_watched(console: Console) -> bool:
    """Whether a person looks on: at a terminal or at a notebook."""
    return console.is_terminal or console.is_jupyter


def _has_bar(console: Console) -> bool:
    """Whether a bar can be drawn anew again and again; in a notebook that takes ipywidgets."""
    has_widgets = importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal or (console.is_jupyter and has_widgets)
