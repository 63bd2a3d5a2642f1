"""Room: checkpoints of a run ↔ memory: save, verify, load, fall back, prune.

Knows nothing of the rest of the run's folder, nor of the loop.

    <run>/
        last  best                    the names of two of the folders below
        step-001000/
            model.safetensors  optimizer.safetensors  state.json
            config.toml  tokenizer.json  metrics.jsonl      as they were at that step
            manifest.json             size and SHA-256 of each of these

A checkpoint is a sealed folder (see `atomic`): whole or not there, and any damage shows. It holds
all that using and resuming it takes, so the run's own copies of the small files may be lost.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from myllm.checks import shortened
from myllm.errors import AccessError, CheckpointError, InputError
from myllm.registry import listed
from myllm.system.atomic import (
    TEMPORARY,
    Damaged,
    check_files,
    disk,
    listing,
    read_errors,
    read_file,
    read_manifest,
    require_room,
    sealed_folder,
    unseal_file,
    write_errors,
    write_file,
)
from myllm.system.safetensors_adapter import read_tensors, write_tensors
from myllm.system.shell import quoted

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
CONFIG, TOKENIZER, METRICS = "config.toml", "tokenizer.json", "metrics.jsonl"
SMALL = (CONFIG, TOKENIZER, METRICS)  # the run's own files, which a checkpoint holds copies of
MANIFEST = "manifest.json"
LAST, BEST = "last", "best"  # files that name a checkpoint
MIN_KEPT = 2  # whole checkpoints, whatever `keep` says: a single one could get damaged


@dataclass(frozen=True)
class Checkpoint:
    """What one `step-NNNNNN` folder holds.

    Attributes:
        step: optimizer steps done.
        model: the weights by name, on the CPU.
        optimizer: the optimizer's state by name, on the CPU; empty if it was not asked for.
        state: counters of the loop, as JSON.
        metadata: what it was made from and with, for the manifest.
        files: the run's small files at that step, by name (see `RunFolder.small_files`).
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


class CheckpointStore:
    """The checkpoints in the folder of one run."""

    def __init__(self, run: Path) -> None:
        """
        Args:
            run: the folder of the run.
        """
        self.run = run
        self.chosen: str | int = "best"  # the one that is used: best, last, or a step
        self._good: set[int] = set()  # steps that this process wrote or verified

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in ascending order."""
        names = (re.fullmatch(r"step-(\d{6,})", p.name) for p in listing(self.run))
        return sorted(int(match[1]) for match in names if match)

    def folder(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.run / f"step-{step:06d}"

    def newest_good(self) -> int | None:
        """The newest step whose checkpoint is undamaged.

        Raises:
            AccessError: a newer one may not be read.
        """
        return next((step for step in reversed(self.steps()) if self.is_good(step)), None)

    def metadata(self) -> dict[str, Any]:
        """What the manifest of the newest checkpoint says, of those that are whole; else nothing.

        Unlike the files beside it, a manifest cannot be altered unseen.
        """
        for step in reversed(self.steps()):
            with contextlib.suppress(Damaged):
                return read_manifest(self.folder(step), MANIFEST)
        return {}

    def best_step(self) -> int | None:
        """The step with the lowest validation loss so far, as the newest checkpoint knows it."""
        best = self.metadata().get("best_step")
        return best if type(best) is int else None

    def choose(self, which: str | int) -> None:
        """Says which checkpoint of the run is used.

        Args:
            which: `best`, `last`, or a step that is kept.

        Raises:
            InputError: it is none of these; the message lists the steps that are.
        """
        if which in (BEST, LAST):
            self.chosen = str(which)
            return
        steps = self.steps()
        kept = f"of {self.run.name} the steps {listed(steps)} are kept"
        if not re.fullmatch(r"[0-9]{1,18}", str(which)):
            raise InputError(
                f"checkpoint {shortened(str(which))!r}: must be best, last or a step; {kept}"
            )
        if int(which) not in steps:
            raise InputError(f"there is no checkpoint of step {which}: {kept} (--keep keeps more)")
        self.chosen = int(which)

    def strip(self, step: int) -> None:
        """Removes the optimizer's state from a checkpoint: then it can be used, not resumed.

        Raises:
            Damaged: it is not whole.
        """
        unseal_file(self.folder(step), MANIFEST, OPTIMIZER)

    def save(self, checkpoint: Checkpoint, is_best: bool, keep: int) -> None:
        """Saves a checkpoint, points `last` (and `best`) at it and removes old ones.

        A step that is there and undamaged stays as it is; a damaged one is set aside.

        Args:
            checkpoint: what to save.
            is_best: whether it is the best so far.
            keep: how many of the newest to keep, besides the best; at least two.

        Raises:
            DiskFullError: too little space; earlier checkpoints are intact.
            InputError: the folder cannot be written.
        """
        step = checkpoint.step
        best = step if is_best else self.best_step()
        needed = _bytes_needed(checkpoint)
        with run_write_errors(f"save step {step}", self.run, needed):
            require_room(self.run, needed)
            if not self.is_good(step):
                self._put_aside(step)
                metadata = {"step": step, "best_step": best, **checkpoint.metadata}
                with sealed_folder(self.folder(step), MANIFEST, metadata) as unfinished:
                    _write_checkpoint(checkpoint, unfinished)
                self._good.add(step)
            for pointer in (LAST, BEST) if is_best else (LAST,):
                write_file(self.run / pointer, self.folder(step).name + "\n")
            self._prune(best, max(keep, MIN_KEPT))

    def _put_aside(self, step: int) -> None:
        """Gives a damaged checkpoint another name, as the step is to be saved again."""
        folder, number = self.folder(step), 1
        if not folder.exists():
            return
        while (aside := self.run / f"{folder.name}.damaged-{number}").exists():
            number += 1
        log.warning("the damaged %s is now %s", folder.name, aside.name)
        disk.rename(folder, aside)

    def _prune(self, best: int | None, keep: int) -> None:
        n_good = 0
        for step in reversed(self.steps()):
            if n_good < keep or step == best:
                with contextlib.suppress(AccessError):  # it may be good: it stays
                    n_good += self.is_good(step)
            else:
                # renamed first: one that is half removed would look like a damaged one
                doomed = self.run / f"{TEMPORARY}{self.folder(step).name}-{os.getpid()}"
                disk.rename(self.folder(step), doomed)
                disk.remove(doomed)

    def is_good(self, step: int) -> bool:
        """Whether the checkpoint of a step is undamaged; it is read once."""
        if step in self._good:
            return True
        try:
            check_files(self.folder(step), MANIFEST)
        except Damaged:
            return False
        self._good.add(step)
        return True

    def load(self, prefer: str | int = "last", with_optimizer: bool = True) -> Checkpoint:
        """The newest good checkpoint, or the best one if that is preferred and good.

        Args:
            prefer: `last` or `best`; or a step, which no other one takes the place of.
            with_optimizer: whether the optimizer's state is wanted, too.

        Raises:
            CheckpointError: there is no good checkpoint; the message names the damaged file.
            AccessError: the one to load may not be read; no older one takes its place.
            InputError: there has not been a checkpoint yet.
        """
        steps = self.steps()
        if not steps:
            raise InputError(
                f"run {self.run.name} has no checkpoint yet: it ended before the first one"
            )
        reasons: list[str] = []
        if isinstance(prefer, int):
            steps = [prefer]
        elif prefer == BEST:
            steps = self._best_last(steps, reasons)
        for step in reversed(steps):
            try:
                checkpoint = self._read(step, with_optimizer)
            except Damaged as error:
                if isinstance(prefer, int):
                    remedy = "--checkpoint last takes the newest good one"
                    raise CheckpointError(f"{error}; {remedy}") from None
                reasons.append(str(error))
                log.warning("%s", error)
                continue
            if reasons:
                log.warning("using the good checkpoint of step %d instead", step)
            return checkpoint
        raise CheckpointError(f"no good checkpoint is left in {self.run}: {reasons[0]}")

    def _best_last(self, steps: list[int], reasons: list[str]) -> list[int]:
        """Puts the best step to the end, by the newest manifest that is whole."""
        while steps:
            try:
                best = read_manifest(self.folder(steps[-1]), MANIFEST).get("best_step")
            except Damaged as error:
                reasons.append(str(error))
                log.warning("%s", error)
                steps = steps[:-1]
                continue
            return [*(s for s in steps if s != best), *(s for s in steps if s == best)]
        return steps

    def _read(self, step: int, with_optimizer: bool) -> Checkpoint:
        folder = self.folder(step)
        names = [MODEL, STATE, CONFIG, TOKENIZER, *([OPTIMIZER] if with_optimizer else [])]
        metadata = check_files(folder, MANIFEST, None if with_optimizer else names)
        if with_optimizer and OPTIMIZER not in metadata["files"]:
            raise InputError(
                f"{self.run.name} was pruned: its model can be used, but not resumed; to train it "
                f"further: myllm train FILE --from {resume_name(self.run)}"
            )
        try:
            with read_errors(folder):
                state = json.loads(read_file(folder / STATE))
                optimizer = dict(read_tensors(folder / OPTIMIZER)) if with_optimizer else {}
                copies = [name for name in SMALL if name in metadata["files"]]
                files = {name: (folder / name).read_bytes() for name in copies}
                model = dict(read_tensors(folder / MODEL))
            if wrong := next((n for n, t in model.items() if not is_finite(t)), None):
                raise Damaged(f"{folder}: numbers of {wrong} are NaN or infinite")
            return Checkpoint(step, model, optimizer, state, metadata, files)
        except (ValueError, SafetensorError, RecursionError) as error:
            raise Damaged(f"{folder} is damaged: {error}") from None


def is_finite(tensor: Tensor) -> bool:
    """Whether all its numbers are; in one pass, where the tensor's `isfinite` makes several, each
    with a wait for all threads: half a second for a small model on a busy machine."""
    return tensor.numel() == 0 or all(map(math.isfinite, tensor.aminmax()))


def _bytes_needed(checkpoint: Checkpoint) -> int:
    groups = (checkpoint.model, checkpoint.optimizer)
    tensors = sum(t.numel() * t.element_size() for group in groups for t in group.values())
    small = sum(len(content) for content in checkpoint.files.values())
    return tensors + small + (1 << 20)  # headers, state and manifest


def _write_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    disk.write(folder / MODEL, lambda path: write_tensors(checkpoint.model, path))
    disk.write(folder / OPTIMIZER, lambda path: write_tensors(checkpoint.optimizer, path))
    contents = {**checkpoint.files, STATE: json.dumps(checkpoint.state, indent=1).encode()}
    for name, content in contents.items():
        disk.write(folder / name, lambda path: path.write_bytes(content))


def resume_name(run: Path) -> str:
    """What `--resume` takes, quoted for a shell: the run's name, or its path if it is not in
    the default folder."""
    return quoted(run.name if run.parent == Path("checkpoints") else run)


def run_write_errors(what: str, run: Path, needed: int = 1 << 12) -> AbstractContextManager[None]:
    """`atomic.write_errors` for what is written to a run; the remedy is to resume it."""
    remedy = "earlier checkpoints are intact. Free some space, then: myllm train --resume "
    return write_errors(what, run, needed, remedy + resume_name(run))
