"""Any command line ends soon, in a known exit code and one line, and leaves whole runs only.

The quick form tries 500 that chance has made, the slow one 20,000 (`command_lines.py`). Those in
which the process itself is odd (another user, closed descriptors) run in processes of their own.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import shutil
import signal
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_lines import Case, case, make_place

from myllm import speeds
from myllm.cli import main
from myllm.runs.checkpoint import METRICS
from myllm.runs.folder import RunFolder
from myllm.runs.verify import check_run
from myllm.system.atomic import Disk
from myllm.train import trainer

pytestmark = [
    pytest.mark.usefixtures("quiet_terminal"),
    pytest.mark.skipif(sys.platform != "linux", reason="odd files and limits of Linux"),
    pytest.mark.filterwarnings("ignore"),
]
CODES = {0, *range(2, 7), *range(129, 144)}
LIMIT_S = 10
NOBODY = 54_321  # a user that the system does not know


class TooLong(BaseException):
    """Nothing catches this."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    place: Path = tmp_path_factory.mktemp("command-lines")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        torch.set_num_threads(1)
        for name in ("torch._dynamo", "tensorboard"):  # seconds of which no case shall be accused
            importlib.import_module(name)
        make_place()
    return place


@pytest.fixture
def world(made, tmp_path, monkeypatch):
    """A place where everything can be tried, without network, compiler and long measuring."""

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(trainer, "use_kernels", lambda *args: None)
    monkeypatch.setattr(trainer, "fastest_kernels", lambda *args: "plain")
    monkeypatch.setattr(speeds, "measure_peak_flops", lambda *args: 1e9)
    monkeypatch.setattr(speeds, "fastest_kernels", lambda *args, **flops: "plain")
    return World(made, tmp_path / "place", monkeypatch)


class World:
    """A folder in which cases are run one after the other, each as if it were the first."""

    def __init__(self, made: Path, place: Path, monkeypatch) -> None:
        self.made, self.place, self.monkeypatch = made, place, monkeypatch
        self._make()

    def _make(self) -> None:
        self.monkeypatch.chdir("/")
        if self.place.exists():
            shutil.rmtree(self.place)
        copy_place(self.made, self.place)
        self.place.chmod(0o755)  # another user may look at it
        self.monkeypatch.chdir(self.place)
        self.before = snapshot(self.place)

    def faults(self, case: Case) -> list[str]:
        """What is wrong with how a case ends, and with what it leaves."""
        err, code = "", None
        try:
            with time_limit(), streams(case) as read_err, surroundings(case.surroundings):
                code = main(case.args)
            err = read_err()
            found = said(code, err, case)
        except TooLong:
            found = [f"takes more than {LIMIT_S} s"]
        except BaseException as error:  # noqa: B036
            found = [f"raises {type(error).__name__}: {error}"]
        return found + self._left(code)

    def faults_in_a_child(self, case: Case, kind: str) -> list[str]:
        """The same in a process that is odd itself."""
        out = self.place.parent / "out"
        with out.open("w+b") as file:
            if (child := os.fork()) == 0:
                run_in_child(case, kind, file.fileno())
            _, status = os.waitpid(child, 0)
            file.seek(0)
            err = file.read().decode("utf-8", "replace")
        code = os.waitstatus_to_exitcode(status)
        found = said(code, err if "2" not in kind else None, case)
        return found + self._left(code)

    def _left(self, code: int | None) -> list[str]:
        """What is half-written in the place; then it is as before."""
        after = snapshot(self.place)
        if after == self.before:
            return []
        found = [f"left {name}" for name in after if "/.tmp-" in name or "/.stdin-" in name]
        configs = [n for n in after if n.endswith("/config.toml") and "/step-" not in n]
        for name in configs:
            run = RunFolder(self.place / name.removesuffix("/config.toml").lstrip("/"))
            torn = METRICS if code == 4 else None  # a line of it; resuming writes it again
            damaged = [f for f in check_run(run) if f.damage and f.name != torn]
            found += [f"{f.name}: {f.damage}" for f in damaged]
            if name not in self.before and code in (2, 6):
                found.append(f"exit code {code}, and a new run {run.path.name}")
            if not run.checkpoints.steps() and code == 0:
                found.append(f"run {run.path.name} without a checkpoint")
        self._make()
        return found


def said(code: int, err: str | None, case: Case) -> list[str]:
    """What is wrong with an exit code, and with what was said (None: there was nobody to tell)."""
    found = [] if code in CODES else [f"exit code {code}: {(err or '')[-300:]!r}"]
    if err is not None and "Traceback" in err and "--debug" not in case.args:
        found.append("a traceback")
    if err is not None and code in CODES - {0} and err.count("myllm: ") != 1:
        found.append(f"exit code {code} and not one line: {err!r}")
    return found


def copy_place(source: Path, target: Path) -> None:
    """A copy with links as links and the named pipe as one."""

    def copy(src: str, dst: str) -> object:
        if Path(src).name != "pipe":
            return shutil.copy2(src, dst)
        os.mkfifo(dst)
        return dst

    shutil.copytree(source, target, symlinks=True, copy_function=copy)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Path → size and time of change, of all that is in a folder."""
    found = {}
    for where, folders, files in os.walk(folder):
        inside = where.removeprefix(str(folder))
        for name in files:
            status = os.lstat(os.path.join(where, name))
            found[f"{inside}/{name}"] = (status.st_size, status.st_mtime_ns)
        found |= {f"{inside}/{name}": (0, 0) for name in folders}
    return found


# ------------------------------------------------------------------------------ surroundings


@contextlib.contextmanager
def time_limit():
    def stop(number, frame):
        raise TooLong

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def stream(content: bytes = b"", encoding: str = "utf-8") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), encoding=encoding)


@contextlib.contextmanager
def streams(case: Case):
    """Standard input, output and errors of a case; gives what reads the errors."""
    kind, err = case.surroundings, stream()
    out: Any = stream(encoding="ascii" if kind == "ascii" else "utf-8")
    if kind == "full stdout":
        out = open("/dev/full", "w", encoding="utf-8")
    elif kind == "reader left":
        read, write = os.pipe()
        os.close(read)
        out = open(write, "w", encoding="utf-8")

    def read_err() -> str | None:
        err.flush()
        return None if kind == "no stderr" else err.buffer.getvalue().decode()  # type: ignore

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", None if kind == "no stdin" else stream(case.stdin))
        patch.setattr(sys, "stdout", None if kind == "no stdout" else out)
        patch.setattr(sys, "stderr", None if kind == "no stderr" else err)
        yield read_err
    with contextlib.suppress(OSError):
        out.close()


@contextlib.contextmanager
def surroundings(kind: str):
    """The rest of what is odd about a case."""
    with pytest.MonkeyPatch.context() as patch:
        if kind == "no home":
            patch.delenv("HOME")
        elif kind == "narrow":
            patch.setenv("COLUMNS", "1")
        elif kind in ("disk full", "disk fails"):
            number = errno.ENOSPC if kind == "disk full" else errno.EIO

            def fail(self, path, writer):
                path.write_bytes(b"half")
                raise OSError(number, os.strerror(number))

            patch.setattr(Disk, "write", fail)
        with small_files() if kind == "small files" else contextlib.nullcontext():
            yield


@contextlib.contextmanager
def small_files():
    """No file may become larger than some kilobytes: how a disk fills in the middle of one."""
    import resource

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def run_in_child(case: Case, kind: str, out: int) -> None:
    """Never returns. `kind` says which descriptors are closed, or that the user is another one."""
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT_S)
        for descriptor in (1, 2):
            os.dup2(out, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            setattr(sys, name, open(number, "w" if number else "r", buffering=1, closefd=False))
        if kind == "another user":
            os.environ.pop("HOME", None)
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        else:
            for number in map(int, kind):  # Python has no stream for what is closed at its start
                setattr(sys, ("stdin", "stdout", "stderr")[number], None)
                os.close(number)
        code = main(case.args)
    except BaseException:  # noqa: B036
        with contextlib.suppress(BaseException):
            traceback.print_exc()
    finally:
        os._exit(code if 0 <= code < 256 else 1)


# ------------------------------------------------------------------------------ the tests


def try_all(world: World, numbers: Iterable[int]) -> None:
    faults, n_tried, slowest = [], 0, (0.0, "")
    for number in numbers:
        chosen, began = case(number), time.monotonic()
        n_tried += 1
        if found := world.faults(chosen):
            faults.append(f"{chosen}\n    " + "\n    ".join(found))
        slowest = max(slowest, (time.monotonic() - began, str(chosen)))
    print(f"the slowest took {slowest[0]:.1f} s: {slowest[1]}")
    assert not faults, f"{len(faults)} of {n_tried}\n" + "\n".join(faults)


def try_in_children(world: World, numbers: Iterable[int]) -> None:
    kinds = ["0", "1", "2", "12", "012"] + ["another user"] * (3 if os.getuid() == 0 else 0)
    faults = []
    for number in numbers:
        chosen, kind = case(number), kinds[number % len(kinds)]
        if "--threads" in chosen.args:
            continue  # what is forked cannot have other threads than its parent had
        if found := world.faults_in_a_child(chosen, kind):
            faults.append(f"{kind}: {chosen}\n    " + "\n    ".join(found))
    assert not faults, f"{len(faults)}\n" + "\n".join(faults)


def test_500_command_lines(world):
    try_all(world, range(500))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(500, 20_000, 1_500))
def test_20_000_command_lines(world, first):
    try_all(world, range(first, first + 1_500))


def test_odd_processes(world):
    try_in_children(world, range(60))


@pytest.mark.slow
def test_1_000_odd_processes(world):
    try_in_children(world, range(100, 1_100))
