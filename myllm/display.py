"""Room: a training run's plan, progress and result → a person's screen, or plain lines.

On a terminal and in a notebook: a progress bar and samples of the model's writing. Elsewhere: one
line per evaluation, without control characters.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from myllm.runs.metrics import Metrics
from myllm.system.terminal import printable
from myllm.system.units import format_duration
from myllm.train.epochs import n_tokens_of
from myllm.train.observer import Observer
from myllm.train.trainer import Trainer

if TYPE_CHECKING:
    from myllm.data.token_file import TokenFile


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
        if self.quiet or not _has_bar(self.console):
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
        bits = record.val_bits_per_byte
        in_bytes = "" if math.isnan(bits) else f" ({bits:.3f} bits per byte)"
        self._print(
            f"step {record.step}/{self._max_steps}  loss {record.train_loss:.4f}  "
            f"validation {record.val_loss:.4f}{in_bytes}  "
            f"{record.tokens_per_second:,.0f} tokens/s  {self._eta(record.step)}"
        )
        if _is_watched(self.console):
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


def _is_watched(console: Console) -> bool:
    """Whether a person looks on: at a terminal or at a notebook."""
    return console.is_terminal or console.is_jupyter


def _has_bar(console: Console) -> bool:
    """Whether a bar can be drawn anew again and again; in a notebook that takes ipywidgets."""
    has_widgets = importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal or (console.is_jupyter and has_widgets)


def plan_lines(trainer: Trainer, token_file: TokenFile) -> list[str]:
    """What is going to be trained, on what and where to."""
    shape, config = trainer.model.config, trainer.config
    names = f"{token_file.n_documents:,} documents" if token_file.n_documents > 1 else "1 document"
    T = trainer.train_data.context_length
    per_step = trainer.train_data.batch_size * T
    of_length = f" in sequences of {T:,}" if T < shape.context_length else ""
    dtype = str(trainer.dtype).removeprefix("torch.")
    threads = f"{n} thread{'s' * (n > 1)}, " if (n := trainer.config.threads) else ""
    begin = f"from step {trainer.step} " if trainer.step else ""
    assert trainer.run is not None
    n_times = config.max_steps * per_step / n_tokens_of(token_file.train_ranges)
    return [
        f"text    {token_file.n_characters:,} characters, {token_file.n_tokens:,} tokens "
        f"({token_file.tokenizer.kind}, vocabulary {token_file.tokenizer.vocab_size:,}), {names}",
        f"model   {trainer.model.count_parameters():,} parameters: {shape.n_layers} layers, "
        f"{shape.d_model} wide, {shape.n_heads} heads, context {shape.context_length}",
        f"device  {trainer.device}, {threads}{dtype}",
        f"steps   {begin}to {config.max_steps:,}, {per_step:,} tokens each{of_length} "
        f"({n_times:.1f} times the text)",
        f"saved   in {trainer.run.path}",
    ]
