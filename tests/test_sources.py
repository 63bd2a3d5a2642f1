"""Text sources: what is read, and what is refused."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from text_files import char_prepare, documents, prepared_folders, words, write

from myllm.config import DataConfig
from myllm.data.prepare import encode_text, prepare
from myllm.data.readers import READERS
from myllm.data.sources import find_sources, text_name
from myllm.data.token_file import MIN_TOKENS
from myllm.errors import ConfigError, InputError
from myllm.tokenizer import BPETokenizer


class TestReading:
    @pytest.mark.parametrize("kind", ["char", "bpe"])
    def test_files_are_documents(self, folder, kind):
        """Each file is a document, in the order given, byte for byte."""
        texts = [words(1500), "one\r\ntwo\r\n\tthree  \n\n" * 30, "no end of line 👩‍👩‍👧‍👦"]
        paths = [write(f"{i}.txt", text) for i, text in enumerate(texts)]
        made = prepare(DataConfig(tuple(paths), tokenizer=kind), 0 if kind == "char" else 300)
        assert documents(made) == texts
        assert made.n_documents == 3
        assert made.n_characters == sum(map(len, texts))
        assert made.n_bytes == sum(len(text.encode()) for text in texts)
        assert made.n_tokens == len(made.tokens())

    def test_folders_are_read_recursively_in_name_order(self, folder):
        """Sub-folders too; hidden and empty files are skipped."""
        for name in ("b/2.md", "a.txt", "b/deep/er/1.txt"):
            write(Path("corpus") / name, f"{name} {words(300)}")
        write("corpus/.git/config", "hidden")
        write("corpus/.hidden.txt", "hidden")
        write("corpus/empty.txt", "")
        found = [text.split()[0] for text in documents(char_prepare("corpus"))]
        assert found == ["a.txt", "b/2.md", "b/deep/er/1.txt"]

    def test_jsonl_has_a_document_per_line(self, folder):
        """The text field of each line; blank lines and other fields do not matter."""
        texts = [words(500), 'a "quoted"\nline é 你', "last " * 40]
        ascii_lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)]
        write("a.jsonl", "\n\n".join(ascii_lines) + "\n")
        made = char_prepare("a.jsonl")
        assert documents(made) == texts
        write("b.ndjson", "\r\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in texts))
        assert documents(char_prepare("b.ndjson")) == texts

    @pytest.mark.parametrize("kind", ["char", "bpe"])
    def test_jsonl_with_half_a_surrogate_pair_is_prepared(self, folder, kind):
        """JSON can hold what is no character; that stops nobody."""
        write("a.jsonl", json.dumps({"text": words(2000) + "\ud83d"}) + "\n")
        made = prepare(DataConfig(("a.jsonl",), tokenizer=kind), 300)
        assert documents(made)[0].startswith(words(2000))

    def test_byte_order_mark_is_dropped(self, folder):
        """A BOM at the beginning of a file is no text; elsewhere it stays."""
        text = words(1000) + "\ufeffkept"
        first = write("a.txt", b"\xef\xbb\xbf" + text.encode())
        assert documents(char_prepare(first, first)) == [text, text]

    def test_special_tokens_in_the_text_are_text(self, folder):
        """A text that spells end of text has one document all the same."""
        text = "<|endoftext|> and " * 50
        made = prepare(DataConfig((write("a.txt", text),)), 300)
        assert documents(made) == [text]

    @pytest.mark.parametrize("kind", ["char", "bpe"])
    def test_streaming_equals_the_whole(self, folder, kind):
        """3 MB read in pieces gives the ids of the text encoded at once."""
        text = words(3_000_000)
        path = write("a.txt", text)
        made = prepare(DataConfig((path,), tokenizer=kind), 0 if kind == "char" else 400)
        whole = made.tokenizer.encode(text) + [made.tokenizer.eos_token_id]
        assert np.array_equal(made.tokens(), whole)

    @pytest.mark.parametrize("text", ["x" * 2_500_000, "é \n \n" * 500_000, "\r\n" * 1_200_000])
    def test_a_text_that_cannot_be_cut_well_is_complete(self, folder, text):
        """One endless line, or nothing but white space, still comes back unchanged."""
        assert documents(char_prepare(write("a.txt", text))) == [text]

    def test_large_vocabulary_needs_four_bytes(self, folder):
        """Ids are uint16 as long as they fit, uint32 beyond."""
        few = char_prepare(write("a.txt", words(1000)))
        assert few.tokens().dtype == np.uint16
        points = [p for p in range(1, 0x11000 + 3000) if not 0xD800 <= p < 0xE000]
        text = "".join(map(chr, points))
        many = char_prepare(write("b.txt", text))
        assert many.tokens().dtype == np.uint32
        assert many.tokenizer.vocab_size > 1 << 16
        assert documents(many) == [text]

    def test_sources_are_written_down(self, folder):
        """The folder has size and SHA-256 of every source, and how it was read."""
        import hashlib

        raw = words(1000).encode()
        made = char_prepare(write("a.txt", raw))
        source = json.loads((made.folder / "sources.jsonl").read_text())
        digest = hashlib.sha256(raw).hexdigest()
        assert source == {
            "path": "a.txt", "size_bytes": len(raw), "sha256": digest, "kind": "text",
            "encoding": "utf-8",
        }  # fmt: skip

    def test_encode_text_is_a_document_with_its_end(self, folder):
        """encode_text gives a file's ids and end of text, with any trained tokenizer."""
        tokenizer = BPETokenizer(300).train(words(2000))
        path = write("other.txt", "河 another text")
        ids = encode_text(path, tokenizer, DataConfig()).ids
        assert ids.tolist() == tokenizer.encode("河 another text") + [tokenizer.eos_token_id]


class TestReaders:
    @pytest.mark.parametrize("name", ["a.JSONL", "a.NdJson"])
    def test_case_of_the_suffix_does_not_matter(self, folder, name):
        texts = [words(500), words(500, seed=2)]
        write(name, "\n".join(json.dumps({"text": text}) for text in texts))
        assert documents(char_prepare(name)) == texts

    def test_a_format_is_one_function_and_one_entry(self, folder, monkeypatch):
        """Even a binary one: it is found in folders, too, and its documents are kept apart."""

        def read_gzip_lines(source, config):
            with gzip.open(source.path, "rt", encoding=config.encoding) as file:
                for line in file:
                    yield line.rstrip(), True

        monkeypatch.setitem(READERS, "gzip file", read_gzip_lines)
        lines = words(2000).splitlines()
        write("corpus/a.GZ", gzip.compress("\n".join(lines).encode()))
        write("corpus/b.txt", "plain")
        expected = [*(line.rstrip() for line in lines), "plain"]
        assert documents(char_prepare("corpus")) == expected
        assert documents(char_prepare("corpus/a.GZ")) == expected[:-1]


class TestRefused:
    def test_what_is_not_there(self, folder):
        """A path that does not exist is named."""
        with pytest.raises(InputError, match="missing.txt"):
            char_prepare("missing.txt")

    def test_a_text_given_in_place_of_a_path(self, folder):
        """A name that is too long for any file is no such file, not a crash."""
        with pytest.raises(InputError, match="once upon a time"):
            char_prepare("once upon a time " * 500)

    def test_empty_file(self, folder):
        """An empty file is named."""
        with pytest.raises(InputError, match="void.txt is empty"):
            char_prepare(write("void.txt", ""))

    @pytest.mark.parametrize("content", [{}, {"a.txt": b""}, {".hidden": b"text"}])
    def test_folder_without_text(self, folder, content):
        """A folder with nothing to read is named."""
        Path("corpus").mkdir()
        for name, raw in content.items():
            write(Path("corpus") / name, raw)
        with pytest.raises(InputError, match="corpus contains no text"):
            char_prepare("corpus")

    def test_binary_files_in_a_folder_are_passed_over(self, folder, caplog):
        """Pictures among texts are left out, and that is announced."""
        write("corpus/a.txt", words(1000))
        write("corpus/b.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
        with caplog.at_level("INFO", logger="myllm"):
            assert documents(char_prepare("corpus")) == [words(1000)]
        assert "b.png" in caplog.text

    def test_folder_of_binaries(self, folder):
        """A folder of nothing but binaries is refused by name."""
        write("corpus/b.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
        write("corpus/c.bin", bytes(range(256)))
        with pytest.raises(InputError, match="corpus.*image.*b.png.*binary.*c.bin"):
            char_prepare("corpus")

    @pytest.mark.parametrize(
        "before",
        [
            b"",
            b"plain ",
            "schön 你好 ".encode(),
            b"\xef\xbb\xbfwith a mark ",
            b"x" * (1 << 20),
            b"x" * ((1 << 20) - 1),
            "é".encode() * ((1 << 19) + 7) + b"x",
            b"y" + "你".encode() * 1_100_000,
        ],
        ids=["0", "ascii", "wide", "mark", "at-1MiB", "before-1MiB", "past-1MiB", "past-3MiB"],
    )
    @pytest.mark.parametrize("bad", [b"\xff tail " * 30, b"\xe4\xbd"], ids=["inside", "at-end"])
    def test_not_utf8_names_file_and_byte(self, folder, before, bad):
        """The offset in the message is the file's first bad byte, wherever it lies."""
        write("broken.txt", before + bad)
        with pytest.raises(InputError, match=rf"broken\.txt.*\bbyte {len(before)}\b.*--encoding"):
            char_prepare("broken.txt")
        assert prepared_folders() == []

    @pytest.mark.parametrize("at", [0, 5, 1 << 20, (1 << 20) + 3])
    def test_null_characters_name_file_and_offset(self, folder, at):
        """The first null character is named by its position."""
        write("zero.txt", b"x" * at + b"\0" + b"tail\0 " * 100)
        for kind in ("char", "bpe"):
            with pytest.raises(InputError, match=rf"zero\.txt.*null characters.*\b{at}\b"):
                prepare(DataConfig(("zero.txt",), tokenizer=kind), 300)
        assert prepared_folders() == []

    @pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32"])
    def test_other_encodings_are_read(self, folder, encoding):
        """--encoding NAME reads a file and a folder that UTF-8 does not."""
        text = "schön, größer, naïve\n" * 100
        write("corpus/a.txt", text, encoding)
        assert documents(char_prepare("corpus/a.txt", encoding=encoding)) == [text]
        assert documents(char_prepare("corpus", encoding=encoding)) == [text]

    def test_errors_are_replaced_or_ignored_on_request(self, folder):
        """--encoding-errors replace keeps the rest of the text."""
        write("a.txt", b"before \xff after\n" * 20)
        replaced = char_prepare("a.txt", encoding_errors="replace")
        assert documents(replaced) == ["before \ufffd after\n" * 20]
        ignored = char_prepare("a.txt", encoding_errors="ignore")
        assert documents(ignored) == ["before  after\n" * 20]

    @pytest.mark.parametrize(
        "name",
        ["utf-9", "klingon", "rot13", "base64", "hex", "undefined", "idna", "punycode", "", " "]
        + ["unicode_escape", "raw_unicode_escape", "utf-7", "a\0b", "os.path", "\udcff"],
    )
    @pytest.mark.parametrize("setting", ["encoding", "fallback_encoding"])
    def test_unknown_encoding(self, name, setting):
        """What is no text encoding is refused by name, before a file is opened."""
        with pytest.raises(ConfigError) as error:
            DataConfig(**{setting: name}).validate()
        assert f"unknown {setting} {name!r}" in str(error.value)

    def test_too_short_a_text(self, folder):
        """Below the least number of tokens there is an error with both numbers, no folder."""
        write("a.txt", "x" * (MIN_TOKENS - 2))
        with pytest.raises(InputError, match=rf"{MIN_TOKENS - 1} tokens.*{MIN_TOKENS}"):
            char_prepare("a.txt")
        assert prepared_folders() == []
        write("a.txt", "x" * (MIN_TOKENS - 1))
        assert char_prepare("a.txt").n_tokens == MIN_TOKENS

    def test_sources_keep_the_order_of_the_paths(self, folder):
        """find_sources gives sizes and hashes in the order of the paths."""
        a, b = write("b.txt", "one"), write("a.txt", "three")
        sources = find_sources(DataConfig((a, b)))
        assert [(s.path, s.size_bytes) for s in sources] == [("b.txt", 3), ("a.txt", 5)]

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
    @pytest.mark.parametrize("path", ["corpus", "corpus/locked.txt"])
    def test_unreadable_file(self, folder, path):
        """A file without permission is named."""
        Path(write("corpus/locked.txt", words(1000))).chmod(0)
        with pytest.raises(InputError, match="locked.txt"):
            char_prepare(path)


class TestNames:
    @pytest.mark.parametrize(
        "path, name",
        [
            ("novel.txt", "novel"),
            ("a/b/My Novel (1).txt", "My-Novel-1"),
            ("notes/", "notes"),
            ("-", "stdin"),
            ("小说.txt", "小说"),
            ("???.txt", "text"),
            ("python-docs-3.11.7.jsonl", "python-docs"),
        ],
    )
    def test_a_text_has_a_name_for_folders(self, path, name):
        """The first path's name without what folders' names cannot have."""
        assert text_name(DataConfig((path,))) == name
