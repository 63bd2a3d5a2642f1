"""What a file is shows in its content: formats by name, encodings, remedies that help."""

import bz2
import gzip
import io
import json
import lzma
import re
import shlex
import sqlite3
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cli_place import TINY, assert_refused, words
from text_files import char_prepare, documents, read, write

from myllm.config import read_toml
from myllm.data.readers import READERS
from myllm.errors import ConfigError
from myllm.tokenizer import CharTokenizer, Tokenizer

pytestmark = pytest.mark.usefixtures("quiet_terminal")


def zipped(*names):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, "<xml>some text</xml>" * 100)
    return raw.getvalue()


def database():
    connection = sqlite3.connect("made.db")
    connection.execute("create table texts (text)")
    connection.commit()
    connection.close()
    return Path("made.db").read_bytes()


def array():
    raw = io.BytesIO()
    np.save(raw, np.arange(1000))
    return raw.getvalue()


NULLS = b"\0\1\2\3" * 200
FORMATS = {
    "Word document": lambda: zipped("[Content_Types].xml", "_rels/.rels", "word/document.xml"),
    "Excel document": lambda: zipped("[Content_Types].xml", "xl/workbook.xml"),
    "PowerPoint document": lambda: zipped("ppt/presentation.xml"),
    "EPUB book": lambda: zipped("mimetype", "META-INF/container.xml", "chapter.xhtml"),
    "OpenDocument file": lambda: zipped("mimetype", "content.xml"),
    "zip archive": lambda: zipped("a.txt"),
    "PDF document": lambda: b"%PDF-1.4\n" + b"text " * 100,
    "RTF document": lambda: b"{\\rtf1\\ansi " + b"text " * 100,
    "old Office document": lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + NULLS,
    "gzip file": lambda: gzip.compress(b"text " * 100),
    "bzip2 file": lambda: bz2.compress(b"text " * 100),
    "xz file": lambda: lzma.compress(b"text " * 100),
    "image": lambda: b"\x89PNG\r\n\x1a\n" + NULLS,
    "sound or video": lambda: b"ID3" + NULLS,
    "SQLite database": database,
    "Parquet table": lambda: b"PAR1" + NULLS,
    "NumPy array": array,
    "GGUF model": lambda: b"GGUF" + NULLS,
    "program": lambda: b"\x7fELF" + NULLS,
    "binary file": lambda: b"\x81\xff" + NULLS,
}


class TestFormats:
    @pytest.mark.parametrize("kind", FORMATS)
    @pytest.mark.parametrize("name", ["a.txt", "a", "a.jsonl"])
    def test_is_named_for_what_it_is(self, folder, run, kind, name):
        """Never with the advice to read it as latin-1, which would teach its syntax."""
        write("corpus/" + name, FORMATS[kind]())
        write("corpus/b.txt", "plain text " * 100)
        result = run("prepare", f"corpus/{name}")
        assert_refused(result, 2, f"corpus/{name} is a", kind)
        assert "latin" not in result.err
        for flag in ("encoding", "fallback-encoding"):
            result = run("prepare", f"corpus/{name}", f"--{flag}", "latin-1")
            assert_refused(result, 2, "it is binary" if "null" in result.err else kind)
        result = run("prepare", "corpus", "--fallback-encoding", "latin-1")
        assert "1 document," in result.out
        assert f"{kind} 1 ({name})" in result.err

    @pytest.mark.parametrize("start", "BM MZ ID3 PAR1 GIF89a GGUF OTTO RIFF BZh".split())
    def test_a_text_may_begin_like_one(self, folder, start):
        text = f"{start} are the first letters of this text.\n" * 20
        assert documents(char_prepare(write("a.txt", text))) == [text]

    def test_a_kind_that_gets_a_reader_is_read(self, folder, monkeypatch):
        """There is nothing to change but the entry."""

        def read_word(source, reading):
            with zipfile.ZipFile(source.path) as archive:
                yield archive.read("word/document.xml").decode(), True

        monkeypatch.setitem(READERS, "Word document", read_word)
        write("corpus/a.docx", FORMATS["Word document"]())
        assert documents(char_prepare("corpus"))[0].startswith("<xml>some text")

    def test_control_characters_are_taken_from_who_names_the_file(self, folder):
        """Escape sequences and bells of a terminal's record; in a folder nobody vouches for it."""
        text = "a bell \a and a backspace \b\n" * 20
        assert documents(char_prepare(write("a.txt", text))) == [text]


PAGE = "größer, naïve: ein Text.\n" * 40
LANGUAGES = {"ascii": words(1000), "latin": PAGE, "russian": "Привет, мир. \n" * 40,
             "chinese": "你好世界。\n" * 60}  # fmt: skip


class TestEncodings:
    @pytest.mark.parametrize("language", LANGUAGES)
    @pytest.mark.parametrize(
        "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
    )
    def test_unicode_is_recognised(self, folder, run, language, encoding):
        """With a mark or without; in a folder beside others, too; whatever else is said."""
        text = LANGUAGES[language]
        write("corpus/a.txt", text, encoding)
        write("corpus/b.txt", "plain")
        assert documents(char_prepare("corpus/a.txt")) == [text]
        assert documents(char_prepare("corpus")) == [text, "plain"]
        if encoding != "utf-8":
            assert documents(char_prepare("corpus", encoding="latin-1")) == [text, "plain"]

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
    def test_without_the_mark_that_a_codec_asks_for(self, folder, encoding):
        """It is then read as what most such files are: little-endian."""
        write("a.txt", PAGE, f"{encoding}-le")
        assert documents(char_prepare("a.txt", encoding=encoding)) == [PAGE]
        write("b.txt", "你好" * 60, "utf-16-le")  # no null byte in it
        assert documents(char_prepare("b.txt", encoding="utf-16")) == ["你好" * 60]

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-be", "latin-1", "gb18030"])
    @pytest.mark.parametrize("raw", [b"x" * 999, b"\xff\xfe" + b"\x00\xd8" * 50, b"\0" * 300])
    def test_a_wrong_one_is_one_line(self, folder, run, encoding, raw):
        write("a.txt", raw)
        result = run("prepare", "a.txt", "--encoding", encoding)
        assert result.code == 0 or len(result.lines) == 1 and result.code == 2, result.err

    @pytest.mark.parametrize("raw", [PAGE.encode("latin-1"), b"plain " * 3000 + b"\x80 " * 50])
    def test_every_remedy_helps(self, folder, run, raw):
        write("a.txt", raw)
        result = run("prepare", "a.txt")
        remedies = re.findall(r"\((--[^)]+)\)", result.err)
        assert len(remedies) == 2
        for remedy in remedies:
            assert run("prepare", "a.txt", *shlex.split(remedy)).code == 0, remedy

    @pytest.mark.parametrize("before", ["short", "x" * 10_000, "x" * (1 << 20)])
    def test_the_end_of_a_dos_text(self, folder, before):
        """One 0x1A is dropped, and makes no binary file of a text; elsewhere it is a character."""
        write("corpus/a.txt", before + "\x1a")
        assert read("corpus") == [before]
        write("b.txt", before + "\x1a in the middle")
        assert read("b.txt") == [before + "\x1a in the middle"]

    def test_line_ends_stay_as_they_are(self, folder):
        text = "one\r\ntwo\rthree\n" * 20
        assert documents(char_prepare(write("a.txt", text))) == [text]


class TestSeparators:
    TEXT = "one and more\n<|endoftext|>\ntwo<|endoftext|>\n<|endoftext|>three\r\n" * 9

    def test_are_announced_and_split_where_the_user_says_so(self, folder, run):
        write("a.txt", self.TEXT)
        result = run("prepare", "a.txt")
        assert "1 document," in result.out and len(result.lines) == 1
        assert "<|endoftext|> 27 (a.txt, …); --separator '<|endoftext|>'" in result.err
        flags = shlex.split(re.findall(r"--separator '[^']+'", result.err)[0])
        result = run("prepare", "a.txt", *flags)
        assert "19 documents" in result.out and "empty document 9" in result.err
        found = documents(char_prepare("a.txt", separator="<|endoftext|>"))
        assert found[:3] == ["one and more\n", "two", "three\r\none and more\n"]

    @pytest.mark.parametrize("size", [10, 100_000, (1 << 20) - 5, 1 << 20, 2_500_000])
    def test_wherever_they_lie(self, folder, size):
        """Across the blocks in which a file is read, too."""
        parts = ["x" * size, "y" * 100, "z" * size]
        write("a.txt", "<|end|>".join(parts))
        assert read("a.txt", separator="<|end|>") == parts

    def test_in_rows_of_json_they_are_text(self, folder):
        write("a.jsonl", json.dumps({"text": self.TEXT}))
        assert documents(char_prepare("a.jsonl", separator="<|endoftext|>")) == [self.TEXT]


class TestMarksInOurOwnFiles:
    """Editors on Windows put a byte order mark there."""

    def put(self, path):
        path = Path(path)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    def test_settings(self, folder):
        write("my.toml", "d_model = 32\n[train]\nmax_steps = 5\n")
        self.put("my.toml")
        assert read_toml(Path("my.toml")) == {"d_model": 32, "max_steps": 5}

    def test_tokenizer(self, folder):
        CharTokenizer().train("abc").save("tokenizer.json")
        self.put("tokenizer.json")
        assert Tokenizer.load("tokenizer.json").encode("cab")

    def test_run_and_prepared_folder(self, place, run):
        for name in ("config.toml", "tokenizer.json", "metrics.jsonl", "last", "best"):
            self.put(f"checkpoints/story/{name}")
        assert run("train", "--resume", "story", "--max-steps", "7").code == 0
        made = char_prepare("story.txt")
        self.put(made.folder / "tokens.json")
        assert run("train", made.folder, *TINY).code == 0


def test_unknown_settings_of_reading_are_refused(folder):
    with pytest.raises(ConfigError, match="on_bad_file 'stpo': did you mean stop"):
        char_config(on_bad_file="stpo")


def char_config(**settings):
    from myllm.config import DataConfig

    return DataConfig(**settings).validate()
