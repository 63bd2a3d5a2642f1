"""Room: what a training run tells → whoever listens (`Observer`). Knows nothing of the loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from myllm.errors import InputError
from myllm.runs.metrics import Metrics
from myllm.system.atomic import write_errors

log = logging.getLogger(__name__)


class Observer:
    """What is told of a training run. The methods do nothing; override what you need."""

    def on_start(self, step: int, max_steps: int) -> None:
        """The loop begins at `step`, to end at `max_steps`."""

    def on_step(self, step: int, loss: float, tokens_per_second: float) -> None:
        """A step is done."""

    def on_evaluation(self, record: Metrics, is_best: bool) -> None:
        """The validation loss has been measured and the checkpoint saved."""


class Observers(Observer):
    """Passes on to several, in order."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self.observers = list(observers)

    def on_start(self, step: int, max_steps: int) -> None:
        for observer in self.observers:
            observer.on_start(step, max_steps)

    def on_step(self, step: int, loss: float, tokens_per_second: float) -> None:
        for observer in self.observers:
            observer.on_step(step, loss, tokens_per_second)

    def on_evaluation(self, record: Metrics, is_best: bool) -> None:
        for observer in self.observers:
            observer.on_evaluation(record, is_best)


class TensorBoard(Observer):
    """Writes each evaluation for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: where the events go.

        Raises:
            InputError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                "--tensorboard needs the package of that name: pip install tensorboard"
            ) from None
        with write_errors("write TensorBoard's events", folder, 1 << 12):
            self._writer: Any = SummaryWriter(str(folder))

    def on_evaluation(self, record: Metrics, is_best: bool) -> None:
        if self._writer is None:
            return
        try:
            values = {n: v for n, v in asdict(record).items() if not math.isnan(v)}
            for name, value in values.items():
                self._writer.add_scalar(name, value, record.step)
            self._writer.flush()
        except OSError as error:  # no reason to end a run
            log.warning("no more events for TensorBoard: %s", error)
            self._writer = None
