"""Room: the folder of a run ↔ its own files: configuration, tokenizer, metrics, lock.

Knows nothing of the loop.

    checkpoints/<run>/
        config.toml  tokenizer.json  metrics.jsonl
        last  best  step-001000/ …    see `checkpoint`
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from myllm.checks import check_run_name, shortened
from myllm.config import RunConfig, from_toml, to_toml
from myllm.errors import InputError
from myllm.runs.checkpoint import (
    CONFIG,
    MANIFEST,
    METRICS,
    SMALL,
    TOKENIZER,
    Checkpoint,
    CheckpointStore,
    resume_name,
    run_write_errors,
)
from myllm.runs.metrics import read_records
from myllm.system.atomic import (
    discard_unfinished,
    disk,
    finished_folder,
    lock,
    made_by_one_process,
    write_errors,
    write_file,
)
from myllm.tokenizer import Tokenizer

log = logging.getLogger(__name__)


class RunFolder:
    """The folder of one training run: the product of training, and all that other verbs need.

    Attributes:
        path: the folder.
        checkpoints: what was saved at its steps.
    """

    def __init__(self, path: str | Path) -> None:
        """
        Args:
            path: an existing run folder.

        Raises:
            InputError: it is not one.
        """
        self.path = Path(path)
        if not _is_run(self.path):
            raise InputError(f"{self.path} is not a run folder: it has no {CONFIG}")
        self.checkpoints = CheckpointStore(self.path)
        self._lock: FileLock | None = None

    @classmethod
    def create(
        cls, runs_dir: Path, name: str, config: RunConfig, tokenizer: Tokenizer
    ) -> RunFolder:
        """Makes `runs_dir/name`, or with a number behind the name if that exists already.

        Raises:
            InputError: the folder cannot be written, or have this name.
            DiskFullError: the disk is full.
        """
        check_run_name(name)
        try:
            runs_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {runs_dir / name}: {error.strerror}") from None
        path, number = runs_dir / name, 1
        while path.exists():
            number += 1
            path = runs_dir / f"{name}-{number}"
        if number > 1:
            log.warning("run %s exists already; this one is %s", name, path.name)
        with write_errors("make the run", runs_dir, 1 << 16), made_by_one_process(path):
            if path.exists():  # another process was faster
                return cls.create(runs_dir, name, config, tokenizer)
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
        """What `--resume` takes for this run."""
        return resume_name(self.path)

    def lock(self) -> None:
        """Makes this process the only one that writes here, and removes what dead ones left.

        Raises:
            InputError: another process writes here, or the folder cannot be written.
        """
        if self._lock is None:
            with run_write_errors("lock the run", self.path):
                self._lock = lock(self.path / ".lock")
            discard_unfinished(self.path)

    def unlock(self) -> None:
        """Lets others write here."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def config(self) -> RunConfig:
        """The configuration to continue with; if the run's own copy is lost, a checkpoint's."""
        return from_toml(self._small_file(CONFIG, from_toml))

    def set_config(self, config: RunConfig) -> None:
        """Replaces the configuration, as a whole."""
        with run_write_errors(f"write {CONFIG}", self.path):
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
            if (step := self.checkpoints.newest_good()) is None:
                raise
            log.warning("%s; using the copy of step %d", error, step)
            return self.checkpoints.folder(step) / name
        return self.path / name

    def small_files(self) -> dict[str, bytes]:
        """The run's own files that a checkpoint holds copies of, by name."""
        paths = (self.path / name for name in SMALL)
        return {path.name: path.read_bytes() for path in paths if path.is_file()}

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`."""
        line = json.dumps(record) + "\n"

        def append(path: Path) -> None:
            with path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(line)

        with run_write_errors(f"write {METRICS}", self.path, len(line)):
            disk.write(self.path / METRICS, append)

    def metrics(self) -> list[dict[str, Any]]:
        """The records of `metrics.jsonl`; damaged lines are left out."""
        return read_records(self.path / METRICS)[0]

    def restore_files(self, checkpoint: Checkpoint | None) -> None:
        """Makes metrics and tokenizer what they were at a checkpoint (None: at the beginning).

        Metrics of later steps will be written again.
        """
        files = checkpoint.files if checkpoint else {}
        with run_write_errors(f"write {METRICS}", self.path):
            write_file(self.path / METRICS, files.get(METRICS, b""))
            if TOKENIZER in files:
                write_file(self.path / TOKENIZER, files[TOKENIZER])


def find_run(runs_dir: Path, name: str | None = None) -> RunFolder:
    """The run of that name (or path) in `runs_dir`; without a name, the one saved to last.

    Raises:
        InputError: there is none; the message says how to make one.
    """
    if name is not None:
        for path in (runs_dir / name, Path(name)):
            if _is_run(path):
                return RunFolder(path)
        here = ", ".join(sorted(p.name for p in _found(runs_dir, "*") if _is_run(p))[:10])
        raise InputError(
            f"no run {shortened(name)!r} in {runs_dir}" + (f"; there are: {here}" if here else "")
        )
    latest: dict[Path, int] = {}
    for path in _found(runs_dir, f"*/step-*/{MANIFEST}"):
        run = path.parent.parent
        latest[run] = max(latest.get(run, 0), path.stat().st_mtime_ns)
    if not latest:
        raise InputError(
            f"there is no trained model in {runs_dir} yet: make one with myllm train FILE"
        )
    return RunFolder(max(latest, key=lambda run: latest[run]))


def _found(runs_dir: Path, pattern: str) -> list[Path]:
    try:
        return list(runs_dir.glob(pattern))
    except OSError as error:  # a name that no folder can have, or one that may not be read
        where = shortened(str(runs_dir))
        raise InputError(f"cannot look for runs in {where}: {error.strerror}") from None


def _is_run(path: Path) -> bool:
    """Whether a folder is a run's: it has a configuration, or checkpoints that hold one."""
    try:
        return (path / CONFIG).is_file() or any(path.glob(f"step-*/{MANIFEST}"))
    except (OSError, ValueError):  # a name that no file can have, a folder that cannot be read
        return False
