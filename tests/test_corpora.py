"""Corpora by name: downloads from a local server, and the Python manual."""

import errno
import hashlib
import http.server
import json
import re
import socket
import threading
from pathlib import Path

import pytest

from myllm.data import corpora
from myllm.data.corpora import Corpus, download_corpus, python_docs
from myllm.errors import ConfigError, DiskFullError, InputError

CONTENT = bytes(range(32, 127)) * 3000  # larger than one read


class Server(http.server.ThreadingHTTPServer):
    """What it has, how it behaves, and the ranges it was asked for."""

    content = CONTENT
    knows_ranges = True
    status = 200
    breaks_after: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives the server's content, from a Range if it knows ranges."""

    def do_GET(self):
        server = self.server
        assert isinstance(server, Server)
        asked = self.headers.get("Range")
        server.asked.append(asked)
        start = 0
        if server.knows_ranges and asked:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if server.status != 200:
            self.send_error(server.status)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.breaks_after])

    def log_message(self, *args):
        """Keeps the tests' output clean."""


@pytest.fixture
def server(monkeypatch):
    """A server on this machine, and a corpus `local` that lies on it."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/corpus.txt"
        offer(monkeypatch, url)
        yield server
        server.shutdown()
        thread.join()


def offer(monkeypatch, url, content=CONTENT):
    """Makes `local` the one corpus there is."""
    corpus = Corpus(url, len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(corpora, "CORPORA", {"local": corpus})
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class TestDownload:
    def test_whole(self, server, tmp_path):
        """The file is what the server has, and nothing else is left."""
        path = download_corpus("local", tmp_path / "new" / "data")
        assert path.read_bytes() == CONTENT
        assert [p.name for p in path.parent.iterdir()] == ["local.txt"]

    def test_second_time_from_disk(self, server, tmp_path):
        """What is there is not asked for again."""
        first = download_corpus("local", tmp_path)
        assert download_corpus("local", tmp_path) == first
        assert len(server.asked) == 1

    def test_damaged_copy_is_fetched_again(self, server, tmp_path):
        """A cached file with another content is replaced by the right one."""
        (tmp_path / "local.txt").write_bytes(CONTENT[:-1])
        assert download_corpus("local", tmp_path).read_bytes() == CONTENT
        assert len(server.asked) == 1

    @pytest.mark.parametrize("have", [1, 70_000, len(CONTENT) - 1])
    def test_broken_download_is_taken_up(self, server, tmp_path, have):
        """Only what is missing is asked for."""
        (tmp_path / "local.txt.part").write_bytes(CONTENT[:have])
        assert download_corpus("local", tmp_path).read_bytes() == CONTENT
        assert server.asked == [f"bytes={have}-"]

    def test_server_without_ranges(self, server, tmp_path):
        """A server that sends all from the beginning gives the right file, too."""
        server.knows_ranges = False
        (tmp_path / "local.txt.part").write_bytes(CONTENT[:70_000])
        assert download_corpus("local", tmp_path).read_bytes() == CONTENT
        assert server.asked == ["bytes=70000-"]

    def test_connection_that_breaks_off(self, server, tmp_path):
        """Half a file is never taken for a whole one; the next try goes on from there."""
        server.breaks_after = 100_000
        with pytest.raises(InputError):
            download_corpus("local", tmp_path)
        assert not (tmp_path / "local.txt").exists()
        server.breaks_after = None
        assert download_corpus("local", tmp_path).read_bytes() == CONTENT
        assert server.asked[-1] == "bytes=100000-"

    @pytest.mark.parametrize("extra", [b"", b"more"])
    def test_complete_part_is_not_trusted(self, server, tmp_path, extra):
        """A partial file as long as the whole, of another content, does not stay."""
        (tmp_path / "local.txt.part").write_bytes(b"?" * len(CONTENT) + extra)
        assert download_corpus("local", tmp_path).read_bytes() == CONTENT

    @pytest.mark.parametrize(
        "content", [CONTENT[::-1], CONTENT + b"more" * 100_000], ids=["altered", "longer"]
    )
    def test_wrong_content(self, server, tmp_path, content):
        """Another content is an InputError that names the address, and no file is left."""
        server.content = content
        with pytest.raises(InputError, match=r"127\.0\.0\.1.*SHA-256"):
            download_corpus("local", tmp_path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("status", [404, 503])
    def test_server_that_refuses(self, server, tmp_path, status):
        """An HTTP error is an InputError that says what to do."""
        server.status = status
        with pytest.raises(InputError, match="myllm train FILE"):
            download_corpus("local", tmp_path)
        assert not (tmp_path / "local.txt").exists()

    def test_offline(self, monkeypatch, tmp_path):
        """Without a network the message says what to do instead."""
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
        offer(monkeypatch, f"http://127.0.0.1:{port}/corpus.txt")
        with pytest.raises(InputError) as caught:
            download_corpus("local", tmp_path)
        message = str(caught.value)
        assert f"127.0.0.1:{port}" in message
        assert "myllm train FILE" in message
        assert str(tmp_path / "local.txt") in message

    def test_offline_with_the_file_put_there(self, monkeypatch, tmp_path):
        """Doing what the message says works."""
        offer(monkeypatch, "http://127.0.0.1:9/corpus.txt")
        (tmp_path / "local.txt").write_bytes(CONTENT)
        assert download_corpus("local", tmp_path).read_bytes() == CONTENT

    def test_unknown_name(self, tmp_path):
        """An unknown corpus is refused with the nearest name."""
        with pytest.raises(ConfigError, match="did you mean shakespeare"):
            download_corpus("shakespear", tmp_path)

    def test_folder_that_cannot_be_made(self, server, tmp_path):
        """A data folder that is a file is an InputError that names it."""
        (tmp_path / "taken").write_text("a file")
        with pytest.raises(InputError, match="taken"):
            download_corpus("local", tmp_path / "taken")

    def test_known_corpora_are_described_in_full(self):
        """Each has an https address, a size and a SHA-256."""
        assert "shakespeare" in corpora.CORPORA
        for corpus in corpora.CORPORA.values():
            assert corpus.url.startswith("https://")
            assert corpus.size_bytes > 0
            assert re.fullmatch(r"[0-9a-f]{64}", corpus.sha256)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The manual, extracted once for all tests."""
    return python_docs(tmp_path_factory.mktemp("docs"))


class TestPythonDocs:
    def test_is_jsonl_of_documents(self, path):
        """Over a megabyte of documents, with the manual and docstrings in them."""
        assert path.suffix == ".jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        assert sum(map(len, texts)) > 1_000_000
        assert len(texts) > 300
        assert all(text.strip() and "\0" not in text for text in texts)
        whole = "".join(texts)
        assert "module textwrap" in whole
        assert "class OrderedDict" in whole

    @pytest.mark.slow
    def test_is_the_same_each_time(self, path, tmp_path):
        """Another extraction gives the same bytes."""
        assert python_docs(tmp_path).read_bytes() == path.read_bytes()
        assert [p.name for p in tmp_path.iterdir()] == [path.name]

    def test_is_extracted_once(self, path, monkeypatch):
        """What is there is used."""
        monkeypatch.setattr(corpora, "_docstrings", lambda: pytest.fail("extracted again"))
        assert python_docs(path.parent) == path

    def test_needs_no_network(self, monkeypatch, tmp_path):
        """Nothing is fetched (law 9)."""
        monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("network"))
        monkeypatch.setattr(corpora, "_docstrings", lambda: iter(["a docstring"]))
        assert python_docs(tmp_path).exists()

    def test_folder_that_cannot_be_made(self, tmp_path):
        """A data folder that is a file is an InputError that names it."""
        (tmp_path / "taken").write_text("a file")
        with pytest.raises(InputError, match="taken"):
            python_docs(tmp_path / "taken")


class TestFullDisk:
    """Exit code 4, with the bytes, and nothing half-written under the file's name."""

    @pytest.fixture
    def full(self, monkeypatch):
        def refuse(self, *args):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", refuse)

    def test_python_docs(self, monkeypatch, tmp_path, full):
        monkeypatch.setattr(corpora, "_docstrings", lambda: iter(["a docstring"]))
        with pytest.raises(DiskFullError, match=r"Python manual in .* bytes are needed"):
            python_docs(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_download(self, server, monkeypatch, tmp_path):
        real = Path.open

        class Full:
            def __init__(self, file):
                self.file = file

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            def write(self, block):
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "open", lambda *a, **k: Full(real(*a, **k)))
        with pytest.raises(DiskFullError, match=rf"{len(CONTENT):,} bytes are needed"):
            download_corpus("local", tmp_path)
        assert not (tmp_path / "local.txt").exists()
