"""Room: run folder ↔ memory: save, verify, load, fall back. Knows nothing of the loop.

    checkpoints/<run>/
        config.toml  tokenizer.json  metrics.jsonl
        last  best                    the names of two of the folders below
        step-001000/
            model.safetensors  optimizer.safetensors  state.json
            config.toml  tokenizer.json  metrics.jsonl      as they were at that step
            manifest.json             size and SHA-256 of each of these

A checkpoint is a sealed folder (see `storage`): whole or not there, and any damage shows. It holds
all that using and resuming it takes, so the run's own copies of the small files may be lost.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from myllm.config import RunConfig, from_toml, to_toml
from myllm.errors import CheckpointError, InputError
from myllm.metrics import read_records
from myllm.storage import (
    TEMPORARY,
    Damaged,
    check_files,
    discard_unfinished,
    disk,
    finished_folder,
    lock,
    made_by_one_process,
    read_file,
    read_manifest,
    require_room,
    sealed_folder,
    write_errors,
    write_file,
)
from myllm.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
CONFIG, TOKENIZER, METRICS = "config.toml", "tokenizer.json", "metrics.jsonl"
SMALL = (CONFIG, TOKENIZER, METRICS)  # the run's own files, which a checkpoint holds copies of
MANIFEST = "manifest.json"
LEAST_KEPT = 2  # whole checkpoints, whatever `keep` says: one is none if it gets damaged


@dataclass(frozen=True)
class Checkpoint:
    """What one `step-NNNNNN` folder holds.

    Attributes:
        step: optimizer steps done.
        model: the weights by name, on the CPU.
        optimizer: the optimizer's state by name, on the CPU; empty if it was not asked for.
        state: counters of the loop, as JSON.
        facts: what it was made from and with, for the manifest.
        files: the run's small files at that step, by name (see `RunFolder.small_files`).
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


class RunFolder:
    """The folder of one training run: the product of training, and all that other verbs need."""

    def __init__(self, path: str | Path) -> None:
        """
        Args:
            path: an existing run folder.

        Raises:
            InputError: it is none.
        """
        self.path = Path(path)
        if not _is_run(self.path):
            raise InputError(f"{self.path} is not a run folder: it has no {CONFIG}")
        self._lock: Any = None
        self._good: set[int] = set()  # steps that this process wrote or verified

    @classmethod
    def create(cls, out: Path, name: str, config: RunConfig, tokenizer: Tokenizer) -> RunFolder:
        """Makes `out/name`, or with a number behind the name if that exists already.

        Raises:
            InputError: the folder cannot be written.
            DiskFullError: there is no room.
        """
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {out / name}: {error.strerror}") from None
        path, number = out / name, 1
        while path.exists():
            number += 1
            path = out / f"{name}-{number}"
        if number > 1:
            log.warning("run %s exists already; this one is %s", name, path.name)
        with write_errors("make the run", out, 1 << 16), made_by_one_process(path):
            if path.exists():  # another process was faster
                return cls.create(out, name, config, tokenizer)
            with finished_folder(path) as unfinished:
                tokenizer.save(unfinished / TOKENIZER)
                (unfinished / CONFIG).write_text(to_toml(config), encoding="utf-8", newline="\n")
        return cls(path)

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.path.name

    @property
    def resume_name(self) -> str:
        """What `--resume` takes: the name, or the path of a run that is not in the default
        folder."""
        return self.name if self.path.parent == Path("checkpoints") else str(self.path)

    def _write_errors(self, what: str, needed: int = 1 << 12) -> AbstractContextManager[None]:
        remedy = "earlier checkpoints are intact. Make room, then: myllm train --resume "
        return write_errors(what, self.path, needed, remedy + self.resume_name)

    def lock(self) -> None:
        """Makes this process the only one that writes here, and removes what dead ones left.

        Raises:
            InputError: another process writes here, or the folder cannot be written.
        """
        if self._lock is None:
            with self._write_errors("lock the run"):
                self._lock = lock(self.path / ".lock")
            discard_unfinished(self.path)

    def unlock(self) -> None:
        """Lets others write here."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def config(self) -> RunConfig:
        """The configuration to go on with; if the run's own copy is lost, a checkpoint's."""
        return from_toml(self._small_file(CONFIG, from_toml))

    def set_config(self, config: RunConfig) -> None:
        """Replaces the configuration, as a whole."""
        with self._write_errors(f"write {CONFIG}"):
            write_file(self.path / CONFIG, to_toml(config))

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer; if the run's own copy is lost, a checkpoint's."""
        return Tokenizer.load(self._small_file(TOKENIZER, Tokenizer.load))

    def _small_file(self, name: str, read: Callable[[Path], object]) -> Path:
        """The run's own copy if it can be read, else the one in the newest good checkpoint."""
        try:
            read(self.path / name)
        except InputError as error:
            if (step := self.newest_good()) is None:
                raise
            log.warning("%s; using the copy of step %d", error, step)
            return self.folder(step) / name
        return self.path / name

    def small_files(self) -> dict[str, bytes]:
        """What a checkpoint takes along of the run's own files, by name."""
        paths = (self.path / name for name in SMALL)
        return {path.name: path.read_bytes() for path in paths if path.is_file()}

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`."""
        line = json.dumps(record) + "\n"

        def append(path: Path) -> None:
            with path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(line)

        with self._write_errors(f"write {METRICS}", len(line)):
            disk.write(self.path / METRICS, append)

    def metrics(self) -> list[dict[str, Any]]:
        """The records of `metrics.jsonl`; a line that is none is left out."""
        return read_records(self.path / METRICS)[0]

    def restore_files(self, checkpoint: Checkpoint | None) -> None:
        """Makes metrics and tokenizer what they were at a checkpoint (None: at the beginning).

        Metrics of later steps will be written again.
        """
        files = checkpoint.files if checkpoint else {}
        with self._write_errors(f"write {METRICS}"):
            write_file(self.path / METRICS, files.get(METRICS, b""))
            if TOKENIZER in files:
                write_file(self.path / TOKENIZER, files[TOKENIZER])

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, rising."""
        names = (re.fullmatch(r"step-(\d{6,})", p.name) for p in self.path.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def folder(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.path / f"step-{step:06d}"

    def newest_good(self) -> int | None:
        """The newest step whose checkpoint is undamaged."""
        return next((step for step in reversed(self.steps()) if self._is_good(step)), None)

    def best_step(self) -> int | None:
        """The step with the lowest validation loss so far, as the newest checkpoint knows it.

        The file `best` says the same to people; unlike the manifest it could be altered unseen.
        """
        for step in reversed(self.steps()):
            try:
                return int(read_manifest(self.folder(step), MANIFEST)["best_step"])
            except (Damaged, KeyError, TypeError, ValueError):
                continue
        return None

    def save(self, checkpoint: Checkpoint, is_best: bool, keep: int) -> None:
        """Saves a checkpoint, points `last` (and `best`) at it and removes old ones.

        A step that is there and undamaged stays as it is; one that is damaged is put aside.

        Args:
            checkpoint: what to save.
            is_best: whether it is the best so far.
            keep: how many of the newest to keep, besides the best; at least two.

        Raises:
            DiskFullError: no room; earlier checkpoints are intact.
            InputError: the folder cannot be written.
        """
        step = checkpoint.step
        best = step if is_best else self.best_step()
        needed = _bytes_needed(checkpoint)
        with self._write_errors(f"save step {step}", needed):
            require_room(self.path, needed)
            if not self._is_good(step):
                self._put_aside(step)
                facts = {"step": step, "best_step": best, **checkpoint.facts}
                with sealed_folder(self.folder(step), MANIFEST, facts) as unfinished:
                    _write_checkpoint(checkpoint, unfinished)
                self._good.add(step)
            for pointer in ("last", "best") if is_best else ("last",):
                write_file(self.path / pointer, self.folder(step).name + "\n")
            self._prune(best, max(keep, LEAST_KEPT))

    def _put_aside(self, step: int) -> None:
        """Gives a damaged checkpoint another name, as the step is to be saved again."""
        folder, number = self.folder(step), 1
        if not folder.exists():
            return
        while (aside := self.path / f"{folder.name}.damaged-{number}").exists():
            number += 1
        log.warning("the damaged %s is now %s", folder.name, aside.name)
        disk.rename(folder, aside)

    def _prune(self, best: int | None, keep: int) -> None:
        n_good = 0
        for step in reversed(self.steps()):
            if n_good < keep or step == best:
                n_good += self._is_good(step)
            else:
                # renamed first: one that is half removed would look like a damaged one
                doomed = self.path / f"{TEMPORARY}{self.folder(step).name}-{os.getpid()}"
                disk.rename(self.folder(step), doomed)
                disk.remove(doomed)

    def _is_good(self, step: int) -> bool:
        if step in self._good:
            return True
        try:
            check_files(self.folder(step), MANIFEST)
        except Damaged:
            return False
        self._good.add(step)
        return True

    def load(self, prefer: str = "last", with_optimizer: bool = True) -> Checkpoint:
        """The newest good checkpoint, or the best one if that is preferred and good.

        Args:
            prefer: `last` or `best`.
            with_optimizer: whether the optimizer's state is wanted, too.

        Raises:
            CheckpointError: there is no good checkpoint; the message names the damaged file.
            InputError: there has not been a checkpoint yet.
        """
        steps = self.steps()
        if not steps:
            raise InputError(f"run {self.name} has no checkpoint yet: it ended before its first")
        reasons: list[str] = []
        if prefer == "best":
            steps = self._best_last(steps, reasons)
        for step in reversed(steps):
            try:
                checkpoint = self._read(step, with_optimizer)
            except Damaged as error:
                reasons.append(str(error))
                log.warning("%s", error)
                continue
            if reasons:
                log.warning("using the good checkpoint of step %d instead", step)
            return checkpoint
        raise CheckpointError(f"no good checkpoint is left in {self.path}: {reasons[0]}")

    def _best_last(self, steps: list[int], reasons: list[str]) -> list[int]:
        """Puts the best step to the end, by the newest manifest that is whole."""
        while steps:
            try:
                best = read_manifest(self.folder(steps[-1]), MANIFEST)["best_step"]
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
        facts = check_files(folder, MANIFEST, None if with_optimizer else names)
        try:
            state = json.loads(read_file(folder / STATE))
            optimizer = dict(read_tensors(folder / OPTIMIZER)) if with_optimizer else {}
            files = {
                name: (folder / name).read_bytes() for name in SMALL if name in facts["files"]
            }
            model = dict(read_tensors(folder / MODEL))
            return Checkpoint(step, model, optimizer, state, facts, files)
        except (OSError, ValueError, SafetensorError, RecursionError) as error:
            raise Damaged(f"{folder} is damaged: {error}") from None


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file with their names, in memory of their own.

    The file does not stay mapped: it can be removed, and a tensor that is let go frees memory.

    Raises:
        SafetensorError: not such a file.
    """
    with safe_open(path, "pt") as file:
        names = list(file.keys())
    for name in names:
        with safe_open(path, "pt") as file:
            yield name, file.get_tensor(name).clone()


def _is_run(path: Path) -> bool:
    """Whether a folder is a run's: it has a configuration, or checkpoints that hold one."""
    return (path / CONFIG).is_file() or any(path.glob(f"step-*/{MANIFEST}"))


def _bytes_needed(checkpoint: Checkpoint) -> int:
    groups = (checkpoint.model, checkpoint.optimizer)
    tensors = sum(t.numel() * t.element_size() for group in groups for t in group.values())
    small = sum(len(content) for content in checkpoint.files.values())
    return tensors + small + (1 << 20)  # headers, state and manifest


def _write_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    disk.write(folder / MODEL, lambda path: save_file(checkpoint.model, path))
    disk.write(folder / OPTIMIZER, lambda path: save_file(checkpoint.optimizer, path))
    contents = {**checkpoint.files, STATE: json.dumps(checkpoint.state, indent=1).encode()}
    for name, content in contents.items():
        disk.write(folder / name, lambda path: path.write_bytes(content))


def find_run(out: Path, name: str | None = None) -> RunFolder:
    """The run of that name (or path) in `out`; without a name, the one saved to last.

    Raises:
        InputError: there is none; the message says how to make one.
    """
    if name is not None:
        for path in (out / name, Path(name)):
            if _is_run(path):
                return RunFolder(path)
        here = ", ".join(sorted(p.name for p in out.glob("*") if _is_run(p))[:10])
        raise InputError(f"no run {name!r} in {out}" + (f"; there are: {here}" if here else ""))
    latest: dict[Path, int] = {}
    for path in out.glob(f"*/step-*/{MANIFEST}"):
        run = path.parent.parent
        latest[run] = max(latest.get(run, 0), path.stat().st_mtime_ns)
    if not latest:
        raise InputError(f"there is no trained model in {out} yet: make one with myllm train FILE")
    return RunFolder(max(latest, key=lambda run: latest[run]))
