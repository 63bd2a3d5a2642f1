"""Room: what a training run is at: its counters, and what it reports."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from myllm.debug import LossWatch


@dataclass(frozen=True)
class Metrics:
    """A line of `metrics.jsonl`. Losses are in nats per token, times in seconds."""

    step: int
    elapsed_s: float
    train_loss: float
    val_loss: float
    val_bits_per_byte: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float


@dataclass
class Progress:
    """The counters that a checkpoint keeps, so that a resumed run goes on as if never stopped."""

    step: int = 0
    elapsed_s: float = 0.0
    best_loss: float = math.inf
    best_bits_per_byte: float = math.inf
    best_step: int = 0
    evaluations_since_best: int = 0
    loss_sum: float = 0.0  # of the steps since the last evaluation
    loss_count: int = 0
    watch: LossWatch = field(default_factory=LossWatch)
    skipped: list[int] = field(default_factory=list)  # batches that rollbacks leave out
    rate_scale: float = 1.0  # what rollbacks made of the learning rate

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads; JSON has no infinity, so what is infinite is None."""
        values = asdict(self)
        return {n: None if v in (math.inf, -math.inf) else v for n, v in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Progress:
        """The counters of a checkpoint.

        Raises:
            KeyError, TypeError: they are of another version of this program.
        """
        known = {name: value for name, value in values.items() if value is not None}
        return cls(**{**known, "watch": LossWatch(**values["watch"])})


def read_records(path: Path) -> tuple[list[dict[str, Any]], int | None]:
    """The records of a `metrics.jsonl`, and the number of the first line that is none, if any."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return [], None
    records: list[dict[str, Any]] = []
    damaged = None
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and type(record.get("step")) is int:
            records.append(record)
        else:
            damaged = damaged or number
    return records, damaged
