"""A library that computes long: a signal ends the program all the same, and leaves nothing."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from cli_place import assert_refused, leftovers

from myllm.system.patience import patiently
from myllm.system.progress import stage, watched_by
from myllm.system.signals import SignalReceived, raised
from myllm.tokenizer import BPETokenizer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture
def endless():
    """A call that, as a library does, ends when it is done and not when a signal comes."""
    over = threading.Event()

    def call(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        while not over.is_set():
            try:
                over.wait(60)
            except BaseException:
                over.set()
        raise RuntimeError("this came to its end")

    yield call
    over.set()


@pytest.mark.parametrize("method", ["train", "encode_batch"])
def test_a_signal_ends_preparing(here, run, monkeypatch, quiet_terminal, endless, method):
    """In the midst of a call; the unfinished folder is gone."""
    monkeypatch.setattr(BPETokenizer, method, endless)
    result = run("prepare", "text.txt", "--vocab-size", "300")
    assert_refused(result, 143, "interrupted")
    assert not leftovers() and not list(Path("data").iterdir())


def test_no_text_is_read_after_a_signal(here, run, monkeypatch, quiet_terminal):
    """The thread that learns finds its texts at an end."""
    found: list[str] = []
    done = threading.Event()

    def train(self, texts):
        os.kill(os.getpid(), signal.SIGINT)
        while threading.main_thread().is_alive() and not stopped.is_set():
            time.sleep(0.01)
        found.extend(texts)
        done.set()
        return self

    stopped = threading.Event()
    monkeypatch.setattr(BPETokenizer, "train", train)
    assert_refused(run("prepare", "text.txt"), 130, "interrupted")
    stopped.set()
    assert done.wait(60) and not found


class TestPatiently:
    def test_gives_the_result(self):
        assert patiently(lambda: 6 * 7) == 42

    @pytest.mark.parametrize("error", [ValueError("no"), TimeoutError("no"), KeyboardInterrupt()])
    def test_raises_what_the_call_raises(self, error):
        def fail():
            raise error

        with pytest.raises(type(error)) as caught:
            patiently(fail)
        assert caught.value is error

    def test_in_another_thread(self):
        """Signals do not reach it, so the call is made there."""
        found = []
        thread = threading.Thread(target=lambda: found.append(patiently(threading.get_ident)))
        thread.start()
        thread.join()
        assert found == [thread.ident]

    def test_a_signal_is_raised_at_once(self, endless):
        with raised(), pytest.raises(SignalReceived):
            patiently(endless)


class TestProgress:
    def test_stages_of_preparing(self, here, run, quiet_terminal, monkeypatch):
        """Each is announced; encoding tells how far it is."""
        from contextlib import contextmanager

        told: list[str] = []
        amounts: list[int] = []

        @contextmanager
        def watcher(what, total):
            told.append(what.split()[0])
            yield amounts.append

        monkeypatch.setattr(sys.modules["myllm.cli.main"], "bar", watcher)
        assert run("prepare", "text.txt", "--vocab-size", "300").code == 0
        assert told == ["reading", "learning", "encoding", "checking"]
        assert sum(amounts) == Path("text.txt").stat().st_size

    def test_nobody_watches(self):
        with stage("nothing", 3) as advance:
            advance(3)

    def test_a_watcher_is_there_for_its_block(self):
        from contextlib import nullcontext

        told: list[int] = []
        with watched_by(lambda what, total: nullcontext(told.append)):
            with stage("one") as advance:
                advance(1)
        with stage("two") as advance:
            advance(2)
        assert told == [1]

    def test_no_bar_where_there_is_no_terminal(self, here, run, quiet_terminal):
        result = run("prepare", "text.txt", "--vocab-size", "300")
        assert result.code == 0 and result.err == ""

    def test_a_bar_on_a_terminal(self, monkeypatch, capsys):
        """It shows what is done, and goes."""
        from myllm.cli import progress

        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(progress, "DELAY_S", 0.0)
        with progress.bar("encoding", 10) as advance:
            advance(5)
            deadline = time.monotonic() + 60
            err = ""
            while "encoding" not in err and time.monotonic() < deadline:
                time.sleep(0.01)
                err += capsys.readouterr().err
        assert "encoding" in err


@pytest.mark.slow
def test_a_process_that_learns_ends_in_order(folder):
    """A real one, in the midst of the library: its exit code, one line, nothing left."""
    import subprocess

    text = "".join(random.Random(1).choices("ACGT", k=4_000_000))
    Path("dna.txt").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "myllm", "prepare", "dna.txt", "--vocab-size", "30000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(Path(".").rglob(".tmp-*")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(2)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    logging.getLogger("myllm.tests").info("ended after %.1f s", time.monotonic() - began)
    assert process.returncode == 143 and err.splitlines() == [err.strip()], err
    assert not list(Path("data").iterdir())
