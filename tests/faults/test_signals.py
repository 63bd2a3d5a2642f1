"""Ctrl-C, SIGTERM, a closed terminal: an orderly end, at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from myllm.errors import Interrupted
from myllm.runs.folder import RunFolder
from myllm.system.signals import Deferred, SignalReceived, raised

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
TRAIN = (
    "train text.txt --d-model 16 --n-layers 1 --n-heads 2 --context-length 16 --vocab-size 300 "
    "--batch-size 2 --device cpu --run r --max-steps 100000 --eval-interval 20 --keep 2"
).split()


@pytest.fixture
def start():
    """Starts a program, which does not outlive the test."""
    started: list[subprocess.Popen] = []

    def begin(*args: str, **pipes) -> subprocess.Popen:
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **pipes}
        command = [sys.executable, "-m", "myllm", *args]
        started.append(subprocess.Popen(command, text=True, **pipes))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition, process: subprocess.Popen, limit_s: float = 180.0) -> None:
    began = time.monotonic()
    while not condition():
        assert process.poll() is None, "it ended early"
        assert time.monotonic() - began < limit_s, "it takes too long"
        time.sleep(0.01)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_training_ends_saved(here, start, number):
    process = start(*TRAIN)
    wait_for(lambda: Path("checkpoints/r/step-000040").exists(), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 128 + number
    assert "and saved; continue with: myllm train --resume r" in errors
    assert "Traceback" not in errors
    step = int(errors.rsplit("stopped at step ", 1)[1].split()[0])
    assert RunFolder("checkpoints/r").checkpoints.newest_good() == step


@pytest.mark.parametrize("delay", [0.3, 1.5])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_start_up_ends_in_one_line(here, start, number, delay):
    process = start(*TRAIN)
    time.sleep(delay)
    process.send_signal(number)
    _, errors = process.communicate(timeout=180)
    assert process.returncode in (128 + number, -number)  # minus: Python itself was starting
    if process.returncode > 0 and "Exception ignored" not in errors:
        assert "Traceback" not in errors and errors.count("\n") <= 3
    assert not list(here.rglob(".tmp-*"))


def test_a_reader_that_leaves(here, start):
    """`myllm train | head -1`: the run goes on, and ends well."""
    process = start(*TRAIN, "--max-steps", "60", stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=180) == 0, errors
    assert "Traceback" not in errors and "Exception" not in errors
    assert RunFolder("checkpoints/r").checkpoints.newest_good() == 60


def test_a_terminal_that_is_closed(here, start):
    """Its program gets SIGHUP, and errors for whatever it still writes."""
    import pty

    parent, child = pty.openpty()
    process = start(*TRAIN, stdin=child, stdout=child, stderr=child, start_new_session=True)
    os.close(child)
    reading = threading.Thread(target=_drain, args=(parent,), daemon=True)
    reading.start()
    wait_for(lambda: Path("checkpoints/r/step-000020").exists(), process)
    os.close(parent)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=180) == 128 + signal.SIGHUP
    run = RunFolder("checkpoints/r")
    assert run.checkpoints.newest_good() == max(run.checkpoints.steps()) and not list(
        run.path.glob(".tmp-*")
    )


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 4096):
            pass
    except OSError:
        pass


class TestDeferred:
    def test_the_first_is_noted_the_second_raises(self):
        with Deferred() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.received == signal.SIGTERM
            with pytest.raises(Interrupted) as caught:
                os.kill(os.getpid(), signal.SIGINT)
            assert caught.value.exit_code == 130 and signals.twice

    def test_ignored_signals_stay_ignored(self):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with Deferred() as signals:
                os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
        finally:
            signal.signal(signal.SIGHUP, before)

    def test_raised_elsewhere(self):
        with raised(), pytest.raises(SignalReceived) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.number == signal.SIGTERM

    def test_one_that_python_dropped_is_found(self):
        """An exception in a callback, as of an import, is printed and forgotten."""
        with raised():
            with pytest.raises(SignalReceived):
                os.kill(os.getpid(), signal.SIGTERM)
            with Deferred() as signals:
                assert signals.received == signal.SIGTERM
            with Deferred() as signals:
                assert signals.received is None
