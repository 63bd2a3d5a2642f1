"""Standard input: kept as a file, whatever happens while it is read."""

import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_place import ENV, assert_refused
from text_files import char_prepare, documents, words, write

from myllm.errors import DiskFullError, InputError
from myllm.system import atomic

pytestmark = pytest.mark.usefixtures("quiet_terminal")


class TestStandardInput:
    def test_is_read_kept_and_reused(self, folder, monkeypatch):
        """- reads sys.stdin; the same text gives the same token file."""
        text = words(3000)
        made = []
        for _ in range(2):
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
            made.append(char_prepare("-"))
        assert documents(made[0]) == [text]
        assert made[0].folder == made[1].folder
        assert Path(made[0].source_paths()[0]).read_bytes() == text.encode()

    def test_together_with_files(self, folder, monkeypatch):
        """- stands among other paths, in its place."""
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"from a pipe")))
        made = char_prepare(write("a.txt", words(1000)), "-")
        assert documents(made) == [words(1000), "from a pipe"]

    def test_empty_is_refused(self, folder, monkeypatch):
        """Nothing on standard input is an InputError and leaves nothing."""
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
        with pytest.raises(InputError, match="standard input is empty"):
            char_prepare("-")
        assert list(Path("data").iterdir()) == []

    def test_data_dir_that_is_a_file_is_refused(self, folder, monkeypatch):
        """A data_dir that cannot be made is an InputError that names it."""
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"text " * 100)))
        write("taken", "a file")
        with pytest.raises(InputError, match="taken"):
            char_prepare("-", data_dir="taken")


class TestDisk:
    @pytest.fixture
    def full(self, monkeypatch):
        """A disk that takes a megabyte, then has no room."""

        class File(io.BytesIO):
            def write(self, data):
                if self.tell() >= 1 << 20:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return super().write(data)

        class FullDisk(atomic.Disk):
            def write(self, path, writer):
                path.touch()
                real = Path.open
                monkeypatch.setattr(Path, "open", lambda *args, **kwargs: File())
                try:
                    super().write(path, writer)
                finally:
                    monkeypatch.setattr(Path, "open", real)

        monkeypatch.setattr("myllm.data.stdin.disk", FullDisk())

    def test_full_disk_names_the_bytes_and_leaves_nothing(self, folder, monkeypatch, full):
        raw = io.BytesIO(b"text " * (1 << 19))
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=raw))
        with pytest.raises(DiskFullError, match=r"standard input in data .*: 2,097,152 bytes"):
            char_prepare("-")
        assert list(Path("data").iterdir()) == []

    def test_full_disk_is_exit_4(self, folder, monkeypatch, run, full):
        raw = io.BytesIO(b"text " * (1 << 19))
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=raw))
        assert_refused(run("prepare", "-"), 4, "2,097,152 bytes are needed", "--data-dir")

    def test_a_folder_that_cannot_be_written_is_one_line(self, folder, monkeypatch, run):
        def refuse(self, *args, **kwargs):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))

        write("a.txt", words(500))
        monkeypatch.setattr(Path, "mkdir", refuse)
        raw = io.BytesIO(b"text " * 100)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=raw))
        for name in ("-", "a.txt"):
            assert_refused(run("prepare", name), 2, "data", "Permission denied")


class TestStream:
    @pytest.mark.parametrize("closed", [None, SimpleNamespace(), "closed"])
    def test_closed_is_refused(self, folder, monkeypatch, run, closed):
        if closed == "closed":
            closed = io.TextIOWrapper(io.BytesIO(b"text"))
            closed.buffer.close()
        monkeypatch.setattr(sys, "stdin", closed)
        assert_refused(run("prepare", "-"), 2, "standard input is")

    def test_an_error_of_reading_is_one_line(self, folder, monkeypatch, run):
        class Broken(io.BytesIO):
            def read1(self, size=-1):
                raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Broken()))
        assert_refused(run("prepare", "-"), 2, "cannot read standard input")
        assert list(Path("data").iterdir()) == []

    def test_a_terminal_is_told_how_to_end(self, folder, monkeypatch, run):
        class Terminal(io.BytesIO):
            def isatty(self):
                return True

        typed = SimpleNamespace(buffer=Terminal(words(1000).encode()), isatty=lambda: True)
        monkeypatch.setattr(sys, "stdin", typed)
        result = run("prepare", "-")
        assert result.code == 0 and "Ctrl-D" in result.err

    def test_what_was_begun_is_removed(self, folder, monkeypatch):
        class Signalled(io.BytesIO):
            def read1(self, size=-1):
                if self.tell():
                    raise KeyboardInterrupt
                return super().read1(5)

        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Signalled(b"text " * 100)))
        with pytest.raises(KeyboardInterrupt):
            char_prepare("-")
        assert list(Path("data").iterdir()) == []

    @pytest.mark.slow
    @pytest.mark.skipif(os.name == "nt", reason="not of Windows")
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_leaves_nothing(self, folder, number):
        """Sent while the copy is being written."""
        child = subprocess.Popen(
            [sys.executable, "-m", "myllm", "prepare", "-"],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV, preexec_fn=unignored,
        )  # fmt: skip
        assert child.stdin is not None and child.stderr is not None
        child.stdin.write(b"text " * (1 << 18))
        child.stdin.flush()
        while not list(Path("data").glob(".tmp-stdin-*")):
            assert child.poll() is None
        while child.poll() is None:  # one that comes just before a read waits for its end
            child.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)
        assert child.returncode == 128 + number
        assert b"Traceback" not in child.stderr.read()
        assert list(Path("data").iterdir()) == []
        child.stdin.close(), child.stderr.close()


def unignored():
    """As from a terminal, even if the tests run in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
