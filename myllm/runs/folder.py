"""Room: the folder of a run ↔ its own files: configuration, tokenizer, metrics, lock.

Knows nothing of the loop.

    checkpoints/<run>/
        config.toml  tokenizer.json  metrics.jsonl
        last  best  step-001000/ …    see `checkpoint`
"""

from __future__ import annotations

import contextlib
import json
import logging
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myllm.checks import check_run_name, shortened
from myllm.config import RunConfig, from_toml, to_toml
from myllm.errors import AccessError, InputError
from myllm.registry import nearest
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
    TEMPORARY,
    Damaged,
    discard_unfinished,
    disk,
    finished_folder,
    listing,
    make_folders,
    read_errors,
    require_readable,
    write_errors,
    write_file,
)
from myllm.system.locks import Lock, lock, made_by_one_process

if TYPE_CHECKING:
    from myllm.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MOST_NAMED = 10  # runs in a message; their names may be long


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
            AccessError: it may not be read.
        """
        self.path = Path(path)
        if not is_run(self.path):
            raise InputError(f"{self.path} is not a run folder: it has no {CONFIG}")
        self.checkpoints = CheckpointStore(self.path)
        self._lock: Lock | None = None

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
        check_runs_dir(runs_dir)
        make_folders(runs_dir)
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
        from myllm.tokenizer import Tokenizer  # imports NumPy, which `myllm runs` does without

        return Tokenizer.load(self._small_file(TOKENIZER, Tokenizer.load))

    def _small_file(self, name: str, read: Callable[[Path], object]) -> Path:
        """The run's own copy if it is whole, else the one in the newest good checkpoint."""
        require_readable(self.path / name)
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
        with read_errors(self.path):
            return {path.name: path.read_bytes() for path in paths if path.is_file()}

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`; what is not a number is null, as JSON has no other."""
        line = json.dumps({n: None if v != v else v for n, v in record.items()}) + "\n"

        def append(path: Path) -> None:
            with path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(line)

        with run_write_errors(f"write {METRICS}", self.path, len(line)):
            disk.write(self.path / METRICS, append)

    def metrics(self) -> list[dict[str, Any]]:
        """The records of `metrics.jsonl`; damaged lines are left out.

        Raises:
            AccessError: it may not be read.
        """
        try:
            return read_records(self.path / METRICS)[0]
        except Damaged as error:
            log.warning("%s", error)
            return []

    def restore_files(self, checkpoint: Checkpoint | None) -> None:
        """Makes metrics and tokenizer what they were at a checkpoint (None: at the beginning).

        Metrics of later steps will be written again.
        """
        files = checkpoint.files if checkpoint else {}
        with run_write_errors(f"write {METRICS}", self.path):
            write_file(self.path / METRICS, files.get(METRICS, b""))
            if TOKENIZER in files:
                write_file(self.path / TOKENIZER, files[TOKENIZER])


def check_runs_dir(runs_dir: Path) -> None:
    """Raises `InputError` if new runs would get into a run, or a checkpoint, that is there."""
    for path in (runs_dir, runs_dir.parent):
        if is_run(path) or _is_checkpoint(path):
            kind = "checkpoint" if _is_checkpoint(path) else "run"
            raise InputError(f"runs_dir {runs_dir}: {path} is a {kind}; name another folder")


def find_run(runs_dir: Path, name: str | None = None) -> RunFolder:
    """The run of that name (or path) in `runs_dir`; without a name, the one saved to last.

    Raises:
        InputError: there is none; the message says how to make one.
        AccessError: a folder may not be read.
    """
    if name is not None:
        for path in (runs_dir / name, Path(name)):
            if is_run(path):
                return RunFolder(path)
            if _is_checkpoint(path):
                raise InputError(f"{path} is a checkpoint: name its run, {path.parent}")
        raise InputError(_no_run(runs_dir, name))
    latest = {run: saved for run in _folders(runs_dir) if (saved := saved_at(run))}
    if not latest:
        raise InputError(
            f"there is no trained model in {runs_dir} yet: make one with myllm train FILE"
        )
    return RunFolder(max(latest, key=lambda run: latest[run]))


def _no_run(runs_dir: Path, name: str) -> str:
    what = f"no run {shortened(name)!r} in {runs_dir}"
    names = [run.name for run in all_runs(runs_dir)]
    if not names:
        return what
    tail = nearest(shortened(name), names, "there are", most=MOST_NAMED)
    return f"{what}{':' if tail.startswith('did') else ';'} {tail}"


def saved_at(run: Path) -> int:
    """When a run was saved to last, in nanoseconds since 1970; 0 if it has no checkpoint."""
    paths = run.glob(f"step-*/{MANIFEST}")
    return max((path.stat().st_mtime_ns for path in paths), default=0)


def all_runs(runs_dir: Path) -> list[RunFolder]:
    """The runs of a folder that may be read, by name.

    Raises:
        AccessError: the folder may not be read.
    """
    found: list[RunFolder] = []
    for path in _folders(runs_dir):
        with contextlib.suppress(InputError, AccessError):  # another kind of folder
            found.append(RunFolder(path))
    return found


def _folders(runs_dir: Path) -> list[Path]:
    """What may be runs, by name; nothing where there is no such folder.

    Raises:
        InputError: no folder can have this name.
        AccessError: it may not be read.
    """
    try:
        found = listing(runs_dir) if runs_dir.is_dir() else []
    except (OSError, ValueError) as error:
        where, why = shortened(str(runs_dir)), getattr(error, "strerror", error)
        raise InputError(f"cannot look for runs in {where}: {why}") from None
    return [path for path in found if not path.name.startswith(TEMPORARY)]


def _is_checkpoint(path: Path) -> bool:
    try:
        return (path / MANIFEST).is_file()
    except (OSError, ValueError):  # no folder can have this name, or it may not be read
        return False


def is_run(path: Path) -> bool:
    """Whether a folder is a run's: it has a configuration, or checkpoints that hold one.

    Raises:
        AccessError: it may not be read.
    """
    try:
        if _is_checkpoint(path):
            return False  # though it has a configuration, too
        with contextlib.suppress(Damaged), read_errors(path):  # it may be lost
            if stat.S_ISREG((path / CONFIG).stat().st_mode):
                return True
        return any(path.glob(f"step-*/{MANIFEST}"))
    except (OSError, ValueError):  # no folder can have this name
        return False
