"""Crashes made on purpose: what `faults.py` and the tests in tests/faults share. POSIX only.

A training run is started by forking this process, in which PyTorch is loaded already, so that a
thousand starts take minutes. No tensor may be computed in this process: a forked child would wait
for ever for the threads that its parent had.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from myllm.runs.checkpoint import METRICS, MODEL, OPTIMIZER
from myllm.runs.folder import RunFolder
from myllm.system.atomic import disk

TINY = (
    "--d-model 16 --n-layers 1 --n-heads 2 --context-length 16 --vocab-size 300 --batch-size 2 "
    "--dtype float32 --device cpu --kernels plain --dropout 0.1"
).split()
OPERATIONS = ("write", "make_folder", "sync", "rename", "remove")


ANY_MOMENT = "any moment"


@dataclass(frozen=True)
class Failpoint:
    """A moment of a save at which the process can be killed.

    Attributes:
        operation: of `atomic.Disk`.
        matches: whether its path is the one that is meant.
        before: kill before the operation, not after it.
    """

    operation: str
    matches: Callable[[Path], bool]
    before: bool = False


def _is_step(path: Path) -> bool:
    return path.name.startswith((".tmp-step", "step-"))


FAILPOINTS: dict[str, Failpoint] = {
    "folder made": Failpoint("make_folder", _is_step),
    "weights written": Failpoint("write", lambda p: p.name == MODEL),
    "weights synced": Failpoint("sync", lambda p: p.name == MODEL),
    "manifest written": Failpoint("write", lambda p: p.name == "manifest.json"),
    "before the rename": Failpoint("rename", _is_step, before=True),
    "before the folder's sync": Failpoint(
        "sync", lambda p: (p / "config.toml").is_file() and not _is_step(p), before=True
    ),
    "last, before its rename": Failpoint("rename", lambda p: ".tmp-last" in p.name, before=True),
    "best, before its rename": Failpoint("rename", lambda p: ".tmp-best" in p.name, before=True),
    "half pruned": Failpoint("remove", _is_step, before=True),
    "metrics written": Failpoint("write", lambda p: p.name == METRICS),
}


@contextlib.contextmanager
def watched(around: Callable[[str, Path, Callable[[], object]], None]) -> Iterator[None]:
    """Within the block, `around` gets each change on disk: its name, its path, how to do it."""
    originals = {name: getattr(disk, name) for name in OPERATIONS}

    def wrap(name: str) -> Callable[..., None]:
        def operation(path: Path, *rest: Any) -> None:
            around(name, path, lambda: originals[name](path, *rest))

        return operation

    for name in OPERATIONS:
        setattr(disk, name, wrap(name))
    try:
        yield
    finally:
        for name in OPERATIONS:
            delattr(disk, name)


def kill_at(failpoint: Failpoint, occurrence: int) -> Callable[[str, Path, Any], None]:
    """For `watched`: ends this process the n-th time (from 1) that it gets to a failpoint."""
    left = [occurrence]

    def around(name: str, path: Path, work: Callable[[], object]) -> None:
        hit = name == failpoint.operation and failpoint.matches(path)
        left[0] -= hit
        if hit and not left[0] and name == "remove":
            for file in list(path.iterdir())[:1]:  # none in a folder that was just made
                file.unlink()
        if not (hit and not left[0] and failpoint.before):
            work()
        if hit and not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    return around


def forked(
    work: Callable[[], int], log: Path, kill_after_s: float | None = None, limit_s: float = 120.0
) -> int:
    """Does `work` in a forked process; returns its exit code, or minus the signal that ended it.

    Args:
        work: gives an exit code.
        log: what it prints is added there.
        kill_after_s: seconds after which it is killed, if it still runs.
        limit_s: seconds after which it counts as hanging, and is killed, too.

    Raises:
        TimeoutError: it hung.
    """
    child = os.fork()
    if child == 0:
        code = 97
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            code = work()
        except BaseException:  # nothing may continue as a second parent
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stderr.flush()
            os._exit(code)
    began = time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - began
        if kill_after_s is not None and seconds > kill_after_s:
            os.kill(child, signal.SIGKILL)
            kill_after_s = None
        if seconds > limit_s:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"a run hung for {limit_s:g} s; see {log}")
        time.sleep(0.002)


def train(args: list[str]) -> int:
    """`myllm train` with one thread, in a forked process."""
    import torch

    from myllm.cli import main

    torch.set_num_threads(1)
    return main(["train", *args])


@dataclass
class KillTrial:
    """A training run that is killed again and again.

    Attributes:
        kills: how often, by what it was killed at.
        losses: what went wrong: nothing may.
        finished: runs that came to their end.
    """

    folder: Path
    text: Path
    max_steps: int
    seed: int = 1
    kills: dict[str, int] = field(default_factory=dict)
    losses: list[str] = field(default_factory=list)
    finished: int = 0

    def __post_init__(self) -> None:
        import myllm.api  # noqa: F401  # loaded once, for all children

        self.random = random.Random(self.seed)
        self.expected = self._uninterrupted()

    def until(self, n_kills: int) -> None:
        """Starts, kills and resumes until there were so many kills, and then to the run's end."""
        while sum(self.kills.values()) < n_kills:
            self._one_run(n_kills)

    def _one_run(self, n_kills: int) -> None:
        name, newest = f"run-{self.finished}", -1
        while True:
            path = self.folder / "runs" / name
            plan = self._plan() if sum(self.kills.values()) < n_kills else None
            began = time.monotonic()
            code = self._process(name, path.exists(), plan)
            if code == -signal.SIGKILL:
                assert plan is not None
                at = plan[0] if time.monotonic() - began < plan[2] else ANY_MOMENT
                self.kills[at] = self.kills.get(at, 0) + 1
                step = self._newest_good(path)
                if step < newest:
                    self.losses.append(f"{plan[0]}: went back from step {newest} to {step}")
                newest = max(newest, step)
            elif code == 0:
                break
            else:
                said = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")
                self.losses.append(f"exit code {code} after step {newest}: {said[-3000:]}")
                return
        self.finished += 1
        if final_hash(path) != self.expected:
            self.losses.append(f"{name} ended with other weights or metrics")

    def _plan(self) -> tuple[str, Callable[[str, Path, Any], None] | None, float]:
        """What to kill the next process at: a failpoint, and when, if it does not get there."""
        if self.random.random() < 0.5:
            return ANY_MOMENT, None, self.random.uniform(0.0, 1.0)
        name = self.random.choice(list(FAILPOINTS))
        return name, kill_at(FAILPOINTS[name], self.random.randint(1, 4)), 2.0

    def _process(self, name: str, exists: bool, plan: Any) -> int:
        args = ["--runs-dir", str(self.folder / "runs"), "--quiet"]
        args += ["--resume", name] if exists else ["--run", name, *self._settings()]
        around = plan[1] if plan else None

        def work() -> int:
            with watched(around) if around else contextlib.nullcontext():
                return train(args)

        return forked(work, self.folder / "log.txt", plan[2] if plan else None)

    def _settings(self) -> list[str]:
        data = ["--data-dir", str(self.folder / "data"), "--keep", "2"]
        steps = ["--max-steps", str(self.max_steps), "--eval-interval", "3"]
        return [str(self.text), *TINY, *data, *steps]

    def _uninterrupted(self) -> str:
        args = ["--runs-dir", str(self.folder), "--run", "whole", "--quiet", *self._settings()]
        code = forked(lambda: train(args), self.folder / "log.txt", limit_s=3600.0)
        if code:
            raise RuntimeError(f"exit code {code}; see {self.folder / 'log.txt'}")
        return final_hash(self.folder / "whole")

    @staticmethod
    def _newest_good(path: Path) -> int:
        if not path.exists():
            return -1
        found = RunFolder(path).checkpoints.newest_good()
        return -1 if found is None else found


def final_hash(path: Path) -> str:
    """SHA-256 of a run's last weights, optimizer state and metrics, but for what clocks say."""
    run = RunFolder(path)
    digest = hashlib.sha256()
    for name in (MODEL, OPTIMIZER):
        digest.update((run.checkpoints.folder(run.checkpoints.steps()[-1]) / name).read_bytes())
    for record in run.metrics():
        timeless = {k: v for k, v in record.items() if k not in ("elapsed_s", "tokens_per_second")}
        digest.update(json.dumps(timeless).encode())
    return digest.hexdigest()


@dataclass
class _File:
    content: bytes
    synced: bytes = b""


@dataclass
class _Folder:
    names: dict[str, _File | _Folder] = field(default_factory=dict)
    synced: dict[str, _File | _Folder] = field(default_factory=dict)


class PowerLoss:
    """Records the changes of a save, and gives what a disk may hold if the power fails.

    Of a file that content counts that was synced last; of a folder those names that it had when
    it was synced. In the second variant names reach the disk at once and contents alone wait for
    their sync, as some file systems do it.
    """

    VARIANTS = ("names wait for a sync", "names are there at once")

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log: list[tuple[str, Path, bytes | Path | None]] = []
        self.before = {p: p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Within the block, changes are done and recorded."""
        rename = disk.rename

        def around(name: str, path: Path, work: Callable[[], object]) -> None:
            work()
            if name != "rename":
                self.log.append((name, path, path.read_bytes() if name == "write" else None))

        def renaming(path: Path, target: Path) -> None:
            rename(path, target)
            self.log.append(("rename", path, target))

        with watched(around):
            disk.rename = renaming  # type: ignore[method-assign]
            yield

    def states(self) -> Iterator[tuple[int, str, dict[str, bytes]]]:
        """For each prefix of the log, and each variant: the files that the disk holds, by path."""
        for n in range(len(self.log) + 1):
            root = self._replayed(n)
            for variant in self.VARIANTS:
                yield n, variant, dict(_surviving(root, variant == self.VARIANTS[1], ""))

    def _replayed(self, n: int) -> _Folder:
        root = _Folder()
        for path, content in self.before.items():
            parent = root
            for name in path.relative_to(self.root).parts[:-1]:
                parent = parent.names.setdefault(name, _Folder())  # type: ignore[assignment]
            parent.names[path.name] = _File(content, content)
        _sync_all(root)
        for operation, path, value in self.log[:n]:
            if operation == "sync" and path == self.root:
                root.synced = dict(root.names)
                continue
            folder = self._folder(root, path.parent)
            node = folder.names.get(path.name)
            if operation == "write":
                assert isinstance(value, bytes)
                if isinstance(node, _File):
                    node.content = value
                else:
                    folder.names[path.name] = _File(value)
            elif operation == "make_folder":
                folder.names[path.name] = _Folder()
            elif operation == "rename":
                assert isinstance(value, Path) and node is not None
                self._folder(root, value.parent).names[value.name] = folder.names.pop(path.name)
            elif operation == "remove":
                del folder.names[path.name]
            elif isinstance(node, _File):
                node.synced = node.content
            else:
                synced = self._folder(root, path)
                synced.synced = dict(synced.names)
        return root

    def _folder(self, root: _Folder, path: Path) -> _Folder:
        for name in path.relative_to(self.root).parts:
            found = root.names[name]
            assert isinstance(found, _Folder)
            root = found
        return root


def _sync_all(folder: _Folder) -> None:
    folder.synced = dict(folder.names)
    for node in folder.names.values():
        if isinstance(node, _Folder):
            _sync_all(node)


def _surviving(folder: _Folder, names_at_once: bool, at: str) -> Iterator[tuple[str, bytes]]:
    for name, node in (folder.names if names_at_once else folder.synced).items():
        if isinstance(node, _File):
            yield at + name, node.synced
        else:
            yield from _surviving(node, names_at_once, f"{at}{name}/")
