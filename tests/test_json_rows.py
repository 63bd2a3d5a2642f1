"""Rows of JSON as documents: recognised by content, whatever the suffix; bad ones passed over."""

import io
import json
import sys
import tracemalloc
from types import SimpleNamespace

import pytest
from cli_place import assert_refused
from text_files import char_prepare, documents, read, words, write

from myllm.config import DataConfig, RunConfig, with_values
from myllm.data import readers
from myllm.data.readers import read_pieces
from myllm.data.sources import find_sources, text_hash
from myllm.errors import InputError

pytestmark = pytest.mark.usefixtures("quiet_terminal")

TEXTS = [words(500), 'a "quoted"\nline é 你', "last " * 40]
ROWS = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
LINES = "\n".join(map(json.dumps, ROWS)) + "\n"
FORMS = {
    "lines": LINES,
    "one line": json.dumps(ROWS[0]),
    "blank lines": "\n\n" + LINES.replace("\n", "\n\n"),
    "dos": LINES.replace("\n", "\r\n") + "\x1a",
    "array": json.dumps(ROWS),
    "array by lines": json.dumps(ROWS, indent=1),
    "objects by lines": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "strings": json.dumps(TEXTS),
    "string a line": "\n".join(map(json.dumps, TEXTS)),
}


class TestRecognised:
    @pytest.mark.parametrize("form", FORMS)
    def test_rows_are_documents(self, folder, form):
        name = "a.jsonl" if form == "string a line" else "a.json"
        expected = TEXTS[:1] if form == "one line" else TEXTS
        assert read(write(name, FORMS[form])) == expected
        for mark in (b"\xef\xbb\xbf", b"\xff\xfe"):
            encoding = "utf-8" if len(mark) == 3 else "utf-16-le"
            assert read(write(name, mark + FORMS[form].encode(encoding))) == expected

    @pytest.mark.parametrize("name", ["a.JSONL", "a.Json", "a.txt", "a", "a.log", "a.jsonl.bak"])
    @pytest.mark.parametrize("form", ["lines", "one line", "array", "array by lines"])
    def test_the_suffix_does_not_matter(self, folder, name, form):
        expected = TEXTS[:1] if form == "one line" else TEXTS
        assert read(write(name, FORMS[form])) == expected

    @pytest.mark.parametrize("form", ["lines", "array"])
    def test_on_standard_input(self, folder, monkeypatch, form):
        raw = io.BytesIO(FORMS[form].encode())
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=raw))
        assert documents(char_prepare("-")) == TEXTS

    @pytest.mark.parametrize(
        "text",
        [
            "{ a brace begins this text\n" + LINES,
            "{}\nis an empty object\n",
            '{"text": "not the only one"} on this line\n' + LINES,
            '{"name": "no text"}\nand then words\n',
            '{\n  "text": "a program\'s settings"\n}\n',
            "[link](target.md) begins a page\n",
            "[1, 2, 3]\n",
            '["apple", "pear"]\n',
            '[{"name": "no text"}]\n',
            "[" * 100_000,
            "{" * 100_000,
        ],
    )
    @pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "a"])
    def test_a_text_that_begins_with_a_bracket_is_a_text(self, folder, name, text):
        assert read(write(name, text)) == [text]

    def test_text_under_a_suffix_of_json_is_text(self, folder):
        assert read(write("a.json", "once upon a time\n")) == ["once upon a time\n"]

    def test_a_long_first_row_is_recognised(self, folder):
        """Longer than what is read to recognise any other file."""
        rows = [{"text": "long " * 100_000}, {"text": "short"}]
        for name in ("a.txt", "a.jsonl"):
            assert read(write(name, "\n".join(map(json.dumps, rows)))) == [
                row["text"] for row in rows
            ]

    def test_the_hash_is_of_how_the_text_is_read(self, folder):
        """Rows are another text than braces; where nothing new is said, hashes stay."""

        def hash_of(path, **settings):
            config = DataConfig((path,), **settings)
            return text_hash(find_sources(config), config)

        lines = "".join(json.dumps({"text": t, "body": t}) + "\n" for t in TEXTS)
        rows, plain = write("a.jsonl", lines), write("a.txt", "plain text")
        assert hash_of(plain) == hash_of(plain, text_field="body")
        assert hash_of(plain) != hash_of(plain, separator="x")
        assert hash_of(rows) != hash_of(rows, text_field="body")
        assert hash_of(rows) == hash_of(rows, on_bad_file="stop", fallback_encoding="latin-1")
        # of version 0.1.0
        assert hash_of(plain) == (
            "8a42849840164b802c7dd4d6dba3282922131121e32bfe4de76d1470cccd663e"
        )


class TestRowsWithoutText:
    @pytest.mark.parametrize(
        "line",
        ["{", "[1]", "3", '{"body": "x"}', '{"text": 3}', '{"text": null}', "null", "[" * 100_000]
        + ['{"text": "a\\u0000b"}'],
    )
    def test_is_passed_over_and_counted_or_refused(self, folder, run, line):
        write("a.jsonl", LINES + "\n" + line + "\n" + LINES)
        assert documents(char_prepare("a.jsonl")) == TEXTS * 2
        result = run("prepare", "a.jsonl")
        assert result.code == 0 and "6 documents" in result.out
        assert len(result.lines) == 1 and "1 (a.jsonl, line 5)" in result.lines[0]
        assert_refused(run("prepare", "a.jsonl", "--on-bad-file", "stop"), 2, "a.jsonl, line 5")

    def test_an_empty_text_leaves_no_end_token(self, folder, run):
        empty = "".join(json.dumps({"text": text}) + "\n" for text in ("", " \n", "\t"))
        write("a.jsonl", empty + LINES + empty)
        made = char_prepare("a.jsonl", on_bad_file="stop")  # which is no error
        assert documents(made) == TEXTS and made.n_documents == 3
        write("empty.jsonl", empty + '{"text": null}\n')
        assert_refused(run("prepare", "empty.jsonl"), 2, "all its rows are empty")
        assert "empty text 6 (a.jsonl, line 1, …)" in run("prepare", "a.jsonl").err

    def test_in_arrays(self, folder, run):
        write("a.json", json.dumps([None, *ROWS, {}, 3, [["x"]], {"text": ""}]))
        result = run("prepare", "a.json")
        assert result.code == 0 and "3 documents" in result.out
        assert "row without text 4 (a.json, row 1, …), empty text 1" in result.err

    @pytest.mark.parametrize("cut", [1, 20, 300])
    def test_a_broken_array_is_refused_with_its_place(self, folder, run, cut):
        whole = json.dumps(ROWS * 30)
        write("a.json", whole[: len(whole) // 2] + "\x01" + whole[len(whole) // 2 + cut :])
        assert_refused(run("prepare", "a.json"), 2, "a.json is no JSON at character ")
        write("b.json", whole[:-cut])
        if cut > 1:  # without its last bracket all rows are there
            assert_refused(run("prepare", "b.json"), 2, "b.json is no JSON at character ")


class TestTextField:
    CASES = {
        "content": [{"id": "a", "content": text} for text in TEXTS],
        "data.text": [{"meta": {"url": "x"}, "data": {"text": text}} for text in TEXTS],
        "a.b": [{"a.b": text, "c": "short"} for text in TEXTS],
        "my text": [{"my text": text} for text in TEXTS],
    }

    @pytest.mark.parametrize("field", CASES)
    @pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "-"])
    def test_the_error_names_it_and_the_flag_reads_it(self, folder, run, monkeypatch, field, name):
        lines = "\n".join(map(json.dumps, self.CASES[field]))

        def prepare(*flags):
            if name == "-":
                raw = io.BytesIO(lines.encode())
                monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=raw))
            else:
                write(name, lines)
            return run("prepare", name, *flags)

        quoted = f"'{field}'" if " " in field else field
        assert_refused(prepare(), 2, f"(--text-field {quoted})", *self.CASES[field][0])
        assert "3 documents" in prepare("--text-field", field).out

    def test_evaluate_has_the_flag_too(self, place, run):
        write("a.jsonl", "\n".join(json.dumps({"body": "the moon " * 30}) for _ in range(3)))
        assert_refused(run("evaluate", "a.jsonl", "--run", "story"), 2, "--text-field body")
        assert run("evaluate", "a.jsonl", "--run", "story", "--text-field", "body").code == 0

    def test_json_that_is_no_rows_says_what_it_is(self, folder, run):
        write("a.json", json.dumps({"version": 2, "model": {"layers": 3}}, indent=1))
        assert_refused(run("prepare", "a.json"), 2, "a.json", "version, model.layers", '"text"')
        write("b.json", "[]")
        assert_refused(run("prepare", "b.json"), 2, "b.json holds no text")

    def test_in_a_folder_the_others_are_read(self, folder, run):
        write("corpus/a.txt", words(1000))
        write("corpus/package.json", json.dumps({"name": "x", "version": 1}))
        result = run("prepare", "corpus")
        assert "1 document," in result.out
        assert "file without texts 1 (package.json, fields name, version)" in result.err
        assert_refused(run("prepare", "corpus", "--on-bad-file", "stop"), 2, "package.json")

    @pytest.mark.parametrize("name", ["text_field", "separator"])
    def test_empty_is_refused(self, name):
        with pytest.raises(InputError, match=name):
            with_values(RunConfig(), {name: ""}).validate()


class TestMemory:
    """What is held does not grow with the file."""

    def peak(self, path):
        config = DataConfig((str(path),))
        tracemalloc.start()
        sources = find_sources(config)
        n = sum(len(text) for text, _ in read_pieces(sources[0], config))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return n, peak

    def make(self, path, kind, n_bytes):
        text = words(100_000)
        row = json.dumps({"text": text})
        begin, part, end = {
            "text": ("", text, "end"),
            "one line": ("", text.replace("\n", " "), "end"),
            "lines": ("", row + "\n", ""),
            "array": ("[", row + ",\n", row + "]"),
        }[kind]
        with open(path, "w", encoding="utf-8") as file:
            file.write(begin)
            for _ in range(n_bytes // len(part.encode())):
                file.write(part)
            file.write(end)
        return str(path)

    @pytest.mark.parametrize("kind", ["text", "one line", "lines", "array"])
    @pytest.mark.parametrize(
        "n_bytes", [30 << 20, pytest.param(1 << 30, marks=pytest.mark.slow)], ids=["30MB", "1GB"]
    )
    def test_of_readers(self, folder, kind, n_bytes):
        n, peak = self.peak(self.make("a.json", kind, n_bytes))
        assert n > n_bytes // 2
        assert peak < 16 << 20

    @pytest.mark.parametrize("kind", ["lines", "array"])
    def test_a_row_that_is_too_long_is_not_held(self, folder, run, monkeypatch, kind):
        monkeypatch.setattr(readers, "MAX_ROW_CHARACTERS", 1 << 20)
        rows = [*ROWS, {"text": "x" * (40 << 20)}, *ROWS]
        if kind == "array":
            write("a.json", json.dumps(rows))
            tracemalloc.start()
            assert_refused(run("prepare", "a.json"), 2, "a.json", "more than 1,048,576")
        else:
            write("a.json", "\n".join(map(json.dumps, rows)))
            tracemalloc.start()
            result = run("prepare", "a.json")
            assert "6 documents" in result.out
            assert "row too long 1 (a.json, line 4)" in result.err
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 24 << 20
