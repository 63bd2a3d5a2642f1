"""Any exception → one line and a documented exit code."""

from __future__ import annotations

import errno

import pytest
from cli_place import assert_refused

pytestmark = pytest.mark.usefixtures("quiet_terminal")

MACHINE = [
    (MemoryError(), 6, "not enough memory"),
    (RecursionError("maximum recursion depth exceeded"), 2, "nested too deeply"),
    (OSError(errno.ENOSPC, "No space left on device", "some.file"), 4, "some.file"),
    (OSError(errno.EIO, "Input/output error"), 4, "disk is full or fails"),
    (OSError(errno.EMFILE, "Too many open files", "some.file"), 2, "ulimit -n"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), 6, "memory"),
    (OSError(errno.EPIPE, "Broken pipe"), 2, "Broken pipe"),
    (OSError("libtorch.so: cannot open shared object"), 2, "libtorch"),
    (PermissionError(errno.EACCES, "Permission denied", "some.file"), 2, "some.file"),
    (FileNotFoundError(errno.ENOENT, "No such file", "some.file"), 2, "some.file"),
    (ConnectionResetError(errno.ECONNRESET, "Connection reset"), 2, "reset"),
    (ImportError("no", name="rich.table"), 2, "pip install rich"),
    (UnicodeEncodeError("utf-8", "a\udce9", 1, 2, "surrogates not allowed"), 2, "UTF-8"),
    (KeyboardInterrupt(), 130, "interrupted"),
]


@pytest.mark.parametrize("error, code, words", MACHINE, ids=lambda value: str(value)[:30])
def test_what_a_machine_can_cause(run, monkeypatch, error, code, words):
    monkeypatch.setattr("myllm.api.load", fails_with(error))
    assert_refused(run("verify"), code, words)


def test_a_fault_of_our_own(run, monkeypatch):
    """One line that says where it came up; with --debug the traceback; exit 1."""
    monkeypatch.setattr("myllm.api.load", fails_with(ZeroDivisionError("division by zero")))
    assert_refused(
        run("verify"), 1, "fault of MyLLM", "ZeroDivisionError", "cli/verify.py:", "--debug"
    )
    assert "Traceback" in run("verify", "--debug").err


@pytest.mark.parametrize("args", [["generate", "\udce9", "--nonsense"], ["\udce9"]])
def test_bytes_that_are_no_text(run, args):
    """What a shell passes on that is not UTF-8."""
    assert_refused(run(*args), 2)


def fails_with(error):
    def fail(*args, **settings):
        raise error

    return fail
