"""Folders: our own output, links, what cannot be read, names; all of it counted, none silent."""

import os
import shutil
import socket
import sys
from pathlib import Path

import pytest
from cli_place import TINY, assert_refused
from text_files import char_prepare, documents, words, write

from myllm.config import DataConfig
from myllm.data.sources import find_sources, text_name
from myllm.errors import InputError

pytestmark = pytest.mark.usefixtures("quiet_terminal")
posix = pytest.mark.skipif(os.name == "nt", reason="not of Windows")


def names(*paths, **settings):
    return [source.path for source in find_sources(DataConfig(paths, **settings))]


@pytest.fixture
def corpus(folder):
    """A folder with two texts in it."""
    write("corpus/a.txt", words(1000))
    write("corpus/sub/b.txt", words(1000, seed=2))
    return Path("corpus")


TEXTS = ["corpus/a.txt", "corpus/sub/b.txt"]


class TestOwnOutput:
    def test_train_here_twice_prepare_twice_and_resume_see_the_same_text(self, corpus, run):
        """With runs, token files, copies of standard input and an export among the texts."""
        for _ in range(2):
            assert run("train", ".", *TINY).code == 0
            assert run("prepare", ".", "--out", f"tokens-{_}").code == 0
        for name, format in (("exported", "hf"), ("x.gguf", "gguf")):
            assert run("export", "--to", format, "--out", name, "--no-verify").code == 0
        run_name = next(path.name for path in Path("checkpoints").iterdir())
        result = run("train", "--resume", run_name, "--max-steps", "7")
        assert result.code == 0, result.err
        announced = next(line for line in result.lines if line.startswith("passed over: "))
        assert "run folder 2 (checkpoints/" in announced
        assert "prepared folder 3 (" in announced
        assert "model folder 1 (exported)" in announced
        assert "Modelfile of an export 1 (x.Modelfile)" in announced
        assert names(".") == TEXTS

    def test_copies_in_the_data_folder(self, corpus):
        """There, and only there: elsewhere such names are a person's."""
        for name in ("stdin-0123456789ab.txt", "python-docs-3.11.7.jsonl", "shakespeare.txt"):
            for place in ("data", "other"):
                write(f"{place}/{name}", '{"text": "words"}\n')
        write("data/mine.txt", "my own text")
        found = names(".")
        assert found[:3] == [*TEXTS, "data/mine.txt"] and len(found) == 6
        assert names("data") == ["data/mine.txt"]
        assert len(names("data", data_dir="other")) == 4
        assert names("data/shakespeare.txt") == ["data/shakespeare.txt"]

    @pytest.mark.parametrize(
        "inside, kind",
        [
            ("config.toml tokenizer.json", "run folder"),
            ("config.toml step-000006/manifest.json", "run folder"),
            ("tokens.json tokens.npy", "prepared folder"),
            ("config.json model.safetensors", "model folder"),
            ("pyvenv.cfg lib/code.py", "virtual environment"),
        ],
    )
    def test_is_known_by_what_lies_in_it(self, corpus, run, inside, kind):
        for name in inside.split():
            write(corpus / "made" / name, "text")
        assert names("corpus") == TEXTS
        assert f"{kind} 1 (made)" in run("prepare", "corpus").err

    @pytest.mark.parametrize("name", ["node_modules", "__pycache__", ".git", "desktop.ini"])
    def test_is_known_by_its_name(self, corpus, run, name):
        write(corpus / name if "." in name[1:] else corpus / name / "x.txt", "text")
        kind = "hidden" if name in (".git", "desktop.ini") else name
        assert f"{kind} 1 ({name})" in run("prepare", "corpus").err
        assert names("corpus") == TEXTS

    def test_named_among_texts_is_refused(self, corpus, run):
        made = char_prepare("corpus", data_dir="elsewhere")
        assert run("train", "corpus", "--run", "story", *TINY).code == 0
        for what, remedy in (
            (str(made.folder), "name it alone"),
            ("checkpoints/story", "--resume"),
        ):
            assert_refused(run("prepare", "corpus/a.txt", what), 2, what, remedy)
        assert run("train", made.folder, *TINY).code == 0

    def test_a_folder_of_nothing_else_says_what_is_in_it(self, corpus, run):
        assert run("train", "corpus", *TINY).code == 0
        result = run("prepare", "checkpoints")
        assert_refused(result, 2, "checkpoints contains no text", "run folder 1 (corpus)")


class TestBadFiles:
    def test_do_not_stop_the_rest(self, corpus, run):
        latin = "größer ".encode("latin-1") * 50
        write("corpus/old.txt", latin)
        write("corpus/void.txt", "")
        write("corpus/mark.txt", b"\xef\xbb\xbf")
        write("corpus/page.pdf", b"%PDF-1.4\nwith text")
        write("corpus/zero.txt", b"x" * 10_000 + b"\0")
        assert names("corpus") == TEXTS
        result = run("prepare", "corpus")
        assert "2 documents" in result.out and len(result.lines) == 1
        for part in (
            "not utf-8 1 (old.txt, byte 2)", "empty file 2 (mark.txt, …)", "--fallback-encoding",
            "PDF document 1 (page.pdf)", "null characters 1 (zero.txt)",
        ):  # fmt: skip
            assert part in result.err
        result = run("prepare", "corpus", "--on-bad-file", "stop")
        assert_refused(result, 2, "corpus/old.txt is not utf-8")
        os.remove("corpus/old.txt")
        assert_refused(run("prepare", "corpus", "--on-bad-file", "stop"), 2, "page.pdf")

    def test_what_is_counted_is_what_is_used(self, corpus):
        """A bad file changes neither the hash nor the documents."""
        before = char_prepare("corpus")
        write("corpus/old.txt", b"\xff" * 100)
        after = char_prepare("corpus")
        assert after.text_hash == before.text_hash and after.n_documents == 2
        assert after.source_paths() == TEXTS

    def test_fallback_reads_them_and_garbles_no_other(self, corpus):
        write("corpus/new.txt", "größer in utf-8")
        write("corpus/old.txt", "größer in latin-1", "latin-1")
        found = documents(char_prepare("corpus", fallback_encoding="latin-1"))
        assert found[1:3] == ["größer in utf-8", "größer in latin-1"]

    def test_one_that_is_named_is_an_error(self, corpus, run):
        write("corpus/old.txt", b"\xff tail " * 30)
        assert_refused(
            run("prepare", "corpus", "corpus/old.txt"), 2, "corpus/old.txt is not utf-8"
        )


@posix
class TestLinksAndSpecialFiles:
    def test_linked_folders_are_read_once(self, corpus, run):
        write("outside/c.txt", words(500, seed=3))
        (corpus / "0-link").symlink_to(Path("outside").absolute())
        (corpus / "1-link").symlink_to(Path("outside").absolute())
        (corpus / "2-up").symlink_to(Path(".").absolute())
        (corpus / "3-sub").symlink_to((corpus / "sub").absolute())
        (corpus / "4-file.txt").symlink_to(Path("outside/c.txt").absolute())
        assert names("corpus") == ["corpus/0-link/c.txt", "corpus/4-file.txt", *TEXTS]
        assert "folder that is read already 4" in run("prepare", "corpus").err

    def test_broken_links_and_loops(self, corpus, run):
        (corpus / "gone").symlink_to("nowhere")
        (corpus / "loop").symlink_to("loop")
        assert names("corpus") == TEXTS
        result = run("prepare", "corpus")
        assert "broken link" in result.err and "gone" in result.err
        assert_refused(run("prepare", "corpus/gone"), 2, "corpus/gone")

    def test_pipes_and_sockets_do_not_block(self, corpus, run):
        os.mkfifo(corpus / "pipe")
        listening = socket.socket(socket.AF_UNIX)
        listening.bind("corpus/socket")
        assert names("corpus") == TEXTS
        assert "neither file nor folder 2 (pipe, …)" in run("prepare", "corpus").err
        for name in ("corpus/pipe", "corpus/socket", "/dev/null"):
            assert_refused(run("prepare", name), 2, name, "pipe it in")
        listening.close()

    def test_unreadable_folders_and_files(self, corpus, run, monkeypatch):
        """Also for root, whom no permission stops."""
        write("corpus/locked/x.txt", "text")
        write("corpus/locked.txt", "text")
        scandir, open_file = os.scandir, Path.open

        def refuse(path, *args, call, **kwargs):
            if "locked" in str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *args, **kwargs)

        monkeypatch.setattr(os, "scandir", lambda path: refuse(path, call=scandir))
        monkeypatch.setattr(Path, "open", lambda p, *a, **k: refuse(p, *a, call=open_file, **k))
        assert names("corpus") == TEXTS
        result = run("prepare", "corpus")
        assert "unreadable folder 1 (locked: Permission denied)" in result.err
        assert "unreadable file 1 (locked.txt: Permission denied)" in result.err
        assert_refused(run("prepare", "corpus/locked.txt"), 2, "locked.txt", "Permission denied")
        assert_refused(run("prepare", "corpus/locked"), 2, "locked", "Permission denied")


class TestNames:
    @posix
    @pytest.mark.parametrize("name", ["/", "//", "/tmp/.."])
    def test_the_whole_machine_is_no_text(self, folder, run, name):
        assert_refused(run("prepare", name), 2, "name a folder of texts")

    def test_patterns_that_no_shell_expanded(self, corpus, run):
        write("one.txt", "one"), write("two.txt", "two"), write("[x].txt", "literally")
        assert names("*.txt") == ["[x].txt", "one.txt", "two.txt"]
        assert names("corpus/**/*.txt") == TEXTS
        assert names("[x].txt") == ["[x].txt"]
        assert_refused(run("prepare", "*.md"), 2, "no file matches *.md")

    @pytest.mark.parametrize("name", ["", "no\0file", "~/missing.txt", "a.txt/b", "x" * 5000])
    def test_no_file_can_have(self, corpus, run, name):
        write("a.txt", "text")
        said = {"~/missing.txt": os.path.expanduser("~"), "no\0file": "null characters"}
        assert_refused(run("prepare", name), 2, said.get(name, "no "))

    @posix
    @pytest.mark.parametrize("name", ["two\nlines.txt", "-dash.txt", "n" * 251 + ".txt", "~.txt"])
    def test_odd_ones_are_read(self, corpus, run, name):
        write(name, words(1000))
        assert run("prepare", "--", name).code == 0
        assert run("train", *TINY, "--", name).code == 0
        shutil.move(name, corpus / name)
        assert f"corpus/{name}" in names("corpus")

    @posix
    def test_a_long_name_of_any_letters_fits(self, corpus, run):
        name = "𠀀" * 60
        write(f"{name}.txt", words(1000))
        assert len(text_name(DataConfig((f"{name}.txt",))).encode()) <= 180
        assert run("prepare", f"{name}.txt").code == 0

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are characters")
    def test_bytes_that_are_no_utf8(self, corpus, run):
        name = os.fsdecode(b"caf\xe9.txt")
        write(corpus / name, "text")
        assert names("corpus") == TEXTS
        assert "name that is not UTF-8 1 (caf\\udce9.txt)" in run("prepare", "corpus").err
        assert_refused(run("prepare", f"corpus/{name}"), 2, "caf\\udce9.txt is not UTF-8")

    def test_messages_hold_no_control_characters(self, corpus, run):
        if os.name != "nt":
            write("corpus/red\x1b[31m\n.pdf", b"%PDF-1.4")
            assert r"red\x1b[31m\n.pdf" in run("prepare", "corpus").err


@pytest.mark.slow
def test_many_files_take_time_in_proportion(folder):
    """Ten times as many files take no fifty times as long."""
    import time

    spent = []
    for n in (1_000, 10_000):
        for i in range(n):
            write(f"{n}/{i % 100}/{i}.txt", "text")
        began = time.process_time()
        assert len(names(str(n))) == n
        spent.append(time.process_time() - began)
    assert spent[1] < 50 * spent[0]


def test_no_such_folder(folder):
    with pytest.raises(InputError, match="no such file or folder: nowhere"):
        names("nowhere")
