"""Room: what `metrics.jsonl` holds: its records, written and read. Knows nothing of training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from myllm.system.atomic import read_errors


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


def read_records(path: Path) -> tuple[list[dict[str, Any]], int | None]:
    """The records of a `metrics.jsonl`, and the number of the first damaged line, if any.

    Raises:
        Damaged: the disk does not give it back.
        AccessError: it may not be read.
    """
    if not path.exists():
        return [], None
    with read_errors(path):
        lines = path.read_bytes().splitlines()
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
