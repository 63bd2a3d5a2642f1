"""Room: a run folder → its figures at a glance (`Summary`). Reads its small files only, no torch.

Nothing here is checked against hashes: that takes as long as reading all of a run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from myllm.config import RunConfig, from_toml
from myllm.errors import AccessError, InputError
from myllm.runs.checkpoint import CONFIG, MANIFEST, METRICS
from myllm.runs.folder import RunFolder, saved_at
from myllm.runs.metrics import read_records
from myllm.system.atomic import Damaged, read_manifest


@dataclass(frozen=True)
class Summary:
    """A run at a glance. What is not known is None.

    Attributes:
        name: the run's.
        text: the name of what it learns from; None: it was imported.
        n_parameters: of its model.
        step: steps done, as the newest checkpoint has it.
        max_steps: how many it shall do.
        val_loss: the best validation loss, nats per token.
        bits_per_byte: of the same evaluation.
        best_step: at which step that was.
        elapsed_s: seconds of training and evaluating.
        n_bytes: what it takes on disk.
        saved_s: when it was saved to last, in seconds since 1970.
        damage: what is wrong with it, as far as that shows at once.
        facts: what the manifest of its newest whole checkpoint says.
    """

    name: str
    text: str | None
    n_parameters: int | None
    step: int
    max_steps: int | None
    val_loss: float | None
    bits_per_byte: float | None
    best_step: int | None
    elapsed_s: float | None
    n_bytes: int
    saved_s: float
    damage: str | None
    facts: Mapping[str, Any]

    @property
    def is_finished(self) -> bool:
        """Whether it has done all its steps."""
        return self.max_steps is not None and self.step >= self.max_steps


def summary_of(run: RunFolder) -> Summary:
    """What is known of a run without loading anything; a damaged one has one, too."""
    steps, reasons = run.checkpoints.steps(), list[str]()
    config: RunConfig | None = None
    facts, records = dict[str, Any](), list[dict[str, Any]]()
    try:
        config = from_toml(run.path / CONFIG)
        records = read_records(run.path / METRICS)[0]
        if steps:
            _check_sizes(run.checkpoints.folder(steps[-1]))
    except (InputError, AccessError, Damaged, RecursionError) as error:
        reasons.append(str(error) or "nested too deeply")
    try:
        facts = run.checkpoints.metadata()
    except AccessError as error:
        reasons.append(str(error))
    best = min((r for r in records if number_of(r, "val_loss") is not None), default={}, key=_loss)
    last = records[-1] if records else {}
    n_parameters = facts.get("n_parameters")
    return Summary(
        name=run.name,
        text=None if config is None else _text_of(config),
        n_parameters=n_parameters if type(n_parameters) is int else None,
        step=steps[-1] if steps else 0,
        max_steps=None if config is None else config.train.max_steps,
        val_loss=number_of(best, "val_loss"),
        bits_per_byte=number_of(best, "val_bits_per_byte"),
        best_step=best.get("step"),
        elapsed_s=number_of(last, "elapsed_s"),
        n_bytes=size_of(run.path),
        saved_s=(saved_at(run.path) or run.path.stat().st_mtime_ns) / 1e9,
        damage=reasons[0] if reasons else None,
        facts=facts,
    )


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    return sum(
        os.lstat(os.path.join(folder, name)).st_size
        for folder, _, names in os.walk(path)
        for name in names
    )


def _text_of(config: RunConfig) -> str | None:
    """The name of the first text, and how many there are besides."""
    paths = config.text.paths
    if not paths:
        return None
    return Path(paths[0]).name + (f" +{len(paths) - 1}" if len(paths) > 1 else "")


def _check_sizes(folder: Path) -> None:
    """Raises `Damaged` if a file of a checkpoint is missing, or of another size than it was."""
    for name, entry in read_manifest(folder, MANIFEST)["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise Damaged(f"{path} is {'damaged' if path.exists() else 'missing'}")


def number_of(record: Mapping[str, Any], name: str) -> float | None:
    """A finite number of a record: JSON may hold others, and a stored file anything."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e300 else None  # of NaN that is false, too


def _loss(record: Mapping[str, Any]) -> float:
    return float(record["val_loss"])
