"""Text sources → token files: what is read, what is refused, what is reused."""

import io
import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myllm import data
from myllm.config import VAL_SPLITS, DataConfig
from myllm.data import (
    MIN_TOKENS,
    encode_file,
    fitting_context,
    open_token_file,
    prepare,
    split_ranges,
)
from myllm.errors import ConfigError, DiskFullError, InputError
from myllm.sources import find_sources, text_name
from myllm.tokenizer import BPETokenizer, CharTokenizer

WORDS = "river stone lamp door cloud seven green walks sings über naïve 河 the a of and".split()


def words(n_characters, seed=1):
    """About so many characters of random words in lines."""
    rng = random.Random(seed)
    lines, size = [], 0
    while size < n_characters:
        lines.append(" ".join(rng.choices(WORDS, k=rng.randint(1, 14))) + "\n")
        size += len(lines[-1])
    return "".join(lines)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory, so that data/ is in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, text, encoding="utf-8"):
    """Writes a text byte for byte; returns the path as a string."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return str(path)


def char_prepare(*paths, **settings):
    return prepare(DataConfig(tuple(map(str, paths)), tokenizer="char", **settings), 0)


def documents(made):
    """The documents of a token file, decoded."""
    ids, end = made.tokens(), made.tokenizer.eos_token_id
    assert ids[-1] == end
    cuts = np.flatnonzero(ids == end)
    starts = [0, *(cuts[:-1] + 1)]
    return [made.tokenizer.decode(ids[a:b].tolist()) for a, b in zip(starts, cuts)]


def prepared_folders(where="data"):
    return sorted(path.name for path in Path(where).iterdir() if path.is_dir())


class TestReuse:
    def test_same_text_is_not_prepared_again(self, folder, monkeypatch):
        """The second call gives the same folder and writes nothing."""
        path = write("a.txt", words(3000))
        first = char_prepare(path)
        monkeypatch.setattr(data, "_write_tokens", lambda *_: pytest.fail("prepared again"))
        second = char_prepare(path)
        assert second.folder == first.folder
        assert np.array_equal(second.tokens(), first.tokens())

    def test_same_text_elsewhere_under_the_same_name_is_reused(self, folder):
        """It is the content that counts, not the place."""
        text = words(3000)
        first = char_prepare(write("x/a.txt", text))
        assert char_prepare(write("y/a.txt", text)).folder == first.folder

    def test_changed_text_is_prepared_anew(self, folder):
        """One changed letter, same length and date, gives another token file."""
        text = words(3000)
        first = char_prepare(write("a.txt", text))
        date = os.stat("a.txt").st_mtime_ns
        write("a.txt", text.replace("river", "rover"))
        os.utime("a.txt", ns=(date, date))
        second = char_prepare("a.txt")
        assert second.folder != first.folder
        assert documents(second) == [text.replace("river", "rover")]
        assert documents(first) == [text]

    def test_changed_tokenizer_vocabulary_or_reading_is_prepared_anew(self, folder):
        """Kind, size, encoding and error handling each make another token file."""
        path = write("a.txt", words(3000))
        made = [
            prepare(DataConfig((path,), tokenizer="char"), 0),
            prepare(DataConfig((path,)), 300),
            prepare(DataConfig((path,)), 310),
            prepare(DataConfig((path,), tokenizer="char", encoding="latin-1"), 0),
            prepare(DataConfig((path,), tokenizer="char", encoding_errors="replace"), 0),
        ]
        assert len({one.folder for one in made}) == len(made)

    def test_a_given_tokenizer_is_used_and_is_part_of_the_key(self, folder):
        """A trained tokenizer is kept as it is; another one gives another folder."""
        path = write("a.txt", words(3000))
        one, two = CharTokenizer().train("abc \n"), CharTokenizer().train("xyz \n")
        first, second = (prepare(DataConfig((path,)), 0, tokenizer) for tokenizer in (one, two))
        assert first.folder != second.folder
        assert first.tokenizer.content_hash == one.content_hash
        assert prepare(DataConfig((path,)), 0, one).folder == first.folder

    def test_another_order_or_split_into_files_is_another_text(self, folder):
        """Files in another order are not the same training text."""
        a, b = write("a.txt", words(2000)), write("b.txt", words(2000, seed=2))
        assert char_prepare(a, b).folder != char_prepare(b, a).folder

    def test_a_prepared_folder_is_opened_as_it_is(self, folder):
        """A folder made with out is found by its path, and only by its own tokenizer."""
        path = write("a.txt", words(3000))
        made = prepare(DataConfig((path,)), 300, out=Path("my/tokens"))
        assert made.folder == Path("my/tokens")
        opened = prepare(DataConfig(("my/tokens",)), 0)
        assert opened.text_hash == made.text_hash
        assert prepare(DataConfig(("my/tokens",)), 0, made.tokenizer).folder == made.folder
        with pytest.raises(InputError, match="another tokenizer"):
            prepare(DataConfig(("my/tokens",)), 0, CharTokenizer().train("a"))

    def test_out_that_holds_something_else_is_left_alone(self, folder):
        """A folder with other files, or another text's tokens, is never replaced."""
        path = write("a.txt", words(3000))
        write("mine/diary.md", "dear diary")
        with pytest.raises(InputError, match="mine"):
            prepare(DataConfig((path,)), 300, out=Path("mine"))
        assert [p.name for p in Path("mine").iterdir()] == ["diary.md"]
        prepare(DataConfig((path,)), 300, out=Path("out"))
        with pytest.raises(InputError, match="something else"):
            prepare(DataConfig((write("b.txt", words(3000, 2)),)), 300, out=Path("out"))


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
        """Sub-folders too; hidden and empty files are passed over."""
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

    @pytest.mark.parametrize(
        "line", ["{", "[1]", '"text"', '{"body": "x"}', '{"text": 3}', "null", "[" * 100_000]
    )
    def test_jsonl_that_is_none_names_the_line(self, folder, line):
        """A line without a string text is named by file and number."""
        write("a.jsonl", json.dumps({"text": words(500)}) + "\n\n" + line + "\n")
        with pytest.raises(InputError, match=r"a\.jsonl.*line 3"):
            char_prepare("a.jsonl")

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
        """The sidecar has size and SHA-256 of every source."""
        import hashlib

        raw = words(1000).encode()
        made = char_prepare(write("a.txt", raw))
        source = json.loads((made.folder / "tokens.json").read_text())["sources"][0]
        digest = hashlib.sha256(raw).hexdigest()
        assert source == {"path": "a.txt", "size_bytes": len(raw), "sha256": digest}

    def test_encode_file_is_a_document_with_its_end(self, folder):
        """encode_file gives a file's ids and end of text, with any trained tokenizer."""
        tokenizer = BPETokenizer(300).train(words(2000))
        path = write("other.txt", "河 another text")
        ids = encode_file(path, tokenizer, DataConfig())
        assert ids.tolist() == tokenizer.encode("河 another text") + [tokenizer.eos_token_id]


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
        assert Path(made[0].source_paths[0]).read_bytes() == text.encode()

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
        with pytest.raises(InputError, match="corpus.*binary.*b.png"):
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

    def test_null_characters_in_jsonl_name_the_line(self, folder):
        """An escaped null character is found, too."""
        write("a.jsonl", json.dumps({"text": words(500)}) + '\n{"text": "a\\u0000b"}\n')
        with pytest.raises(InputError, match=r"a\.jsonl.*line 2.*null"):
            char_prepare("a.jsonl")

    @pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32"])
    def test_other_encodings_are_read(self, folder, encoding):
        """--encoding NAME reads a file and a folder that UTF-8 does not."""
        text = "schön, größer, naïve\n" * 100
        write("corpus/a.txt", text, encoding)
        assert documents(char_prepare("corpus/a.txt", encoding=encoding)) == [text]
        assert documents(char_prepare("corpus", encoding=encoding)) == [text]
        with pytest.raises(InputError, match="--encoding"):
            char_prepare("corpus/a.txt")

    def test_errors_are_replaced_or_ignored_on_request(self, folder):
        """--encoding-errors replace keeps the rest of the text."""
        write("a.txt", b"before \xff after\n" * 20)
        replaced = char_prepare("a.txt", encoding_errors="replace")
        assert documents(replaced) == ["before \ufffd after\n" * 20]
        ignored = char_prepare("a.txt", encoding_errors="ignore")
        assert documents(ignored) == ["before  after\n" * 20]

    @pytest.mark.parametrize("name", ["utf-9", "klingon", "rot13", "base64", "undefined"])
    def test_unknown_encoding(self, name):
        """What is no text encoding is refused by name."""
        with pytest.raises(ConfigError, match=name):
            DataConfig(encoding=name).validate()

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


class TestSplit:
    @settings(max_examples=500, deadline=None)
    @given(
        n=st.one_of(st.integers(MIN_TOKENS, 5000), st.integers(MIN_TOKENS, 10**10)),
        where=st.sampled_from(VAL_SPLITS),
    )
    def test_ranges_are_disjoint_and_together_everything(self, n, where):
        """Every position is in one range; both sides have something to predict."""
        train, val = split_ranges(n, where)
        everything = sorted(train + val)
        assert everything[0][0] == 0 and everything[-1][1] == n
        assert all(a[1] == b[0] for a, b in zip(everything, everything[1:]))
        assert all(start < end for start, end in everything)
        assert all(end - start >= 2 for start, end in val)
        n_val = sum(end - start for start, end in val)
        assert 0 < n_val <= 0.11 * n + 2

    def test_the_end_can_be_held_out(self):
        """As published figures for tiny Shakespeare do: the first nine tenths are learned from."""
        assert split_ranges(1_115_394, "end") == ([(0, 1_003_854)], [(1_003_854, 1_115_394)])

    @pytest.mark.parametrize("n", [20_000, 1_000_000, 300_000_000])
    def test_long_text_is_held_out_in_several_pieces(self, n):
        """The pieces are spread: each third of the text has some, none is the last tenth alone."""
        train, val = split_ranges(n)
        assert len(val) >= 5
        for third in range(3):
            low, high = n * third // 3, n * (third + 1) // 3
            assert any(low <= start < high for start, _ in val)
        assert val[-1][1] < n and train[0][0] == 0

    @pytest.mark.parametrize("n", [0, 1, MIN_TOKENS - 1])
    def test_below_the_least_is_refused(self, n):
        """Too few tokens are an InputError with both numbers."""
        with pytest.raises(InputError, match=rf"{n} tokens.*{MIN_TOKENS}"):
            split_ranges(n)

    def test_short_text_takes_a_smaller_context(self, folder, caplog):
        """2,000 characters fit a smaller context, which is announced; training has room for it."""
        made = char_prepare(write("a.txt", words(2000)))
        with caplog.at_level("WARNING", logger="myllm"):
            fitted = fitting_context(made, 4096)
        assert 8 <= fitted < 2000
        assert str(fitted) in caplog.text and "4096" in caplog.text
        assert max(end - start for start, end in made.train_ranges) > fitted

    def test_long_enough_text_keeps_its_context(self, folder, caplog):
        """A context that fits is not touched, and nothing is said."""
        made = char_prepare(write("a.txt", words(20_000)))
        assert fitting_context(made, 64) == 64
        assert caplog.text == ""

    def test_the_least_text_has_a_context(self, folder):
        """The shortest text that is accepted still holds a window and what follows it."""
        made = char_prepare(write("a.txt", "ab" * (MIN_TOKENS // 2)))
        fitted = fitting_context(made, 128)
        assert max(end - start for start, end in made.train_ranges) > fitted


class TestDamage:
    @pytest.fixture
    def made(self, folder):
        return char_prepare(write("a.txt", words(5000)))

    def truncate(self, folder):
        path = folder / "tokens.npy"
        path.write_bytes(path.read_bytes()[:-100])

    def empty(self, folder):
        (folder / "tokens.npy").write_bytes(b"")

    def lose(self, folder):
        (folder / "tokens.npy").unlink()

    def retype(self, folder):
        path = folder / "tokens.npy"
        np.save(path, np.load(path).astype(np.int64))

    def shorten(self, folder):
        path = folder / "tokens.npy"
        np.save(path, np.load(path)[:-1])

    def overflow(self, folder):
        tokens = np.load(folder / "tokens.npy")
        tokens[77] = 60_000
        np.save(folder / "tokens.npy", tokens)

    def pickled(self, folder):
        np.save(folder / "tokens.npy", np.array([{}]), allow_pickle=True)

    def lose_sidecar(self, folder):
        (folder / "tokens.json").unlink()

    def cut_sidecar(self, folder):
        path = folder / "tokens.json"
        path.write_text(path.read_text()[:-30])

    def retype_sidecar(self, folder):
        path = folder / "tokens.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "n_tokens": "many"}))

    def binary_sidecar(self, folder):
        (folder / "tokens.json").write_bytes(b"\xff\xfe\0")

    def list_sidecar(self, folder):
        (folder / "tokens.json").write_text("[]")

    def lose_tokenizer(self, folder):
        (folder / "tokenizer.json").unlink()

    def swap_tokenizer(self, folder):
        CharTokenizer().train("abcdefghij").save(folder / "tokenizer.json")

    @pytest.mark.parametrize(
        "damage",
        "truncate empty lose retype shorten overflow pickled lose_sidecar cut_sidecar "
        "retype_sidecar binary_sidecar list_sidecar lose_tokenizer swap_tokenizer".split(),
    )
    def test_is_found_and_prepared_anew(self, made, damage):
        """Opening a damaged folder is an InputError that names it; prepare makes it anew."""
        before = np.array(made.tokens())
        getattr(self, damage)(made.folder)
        with pytest.raises(InputError, match=made.folder.name):
            open_token_file(made.folder)
        again = char_prepare("a.txt")
        assert np.array_equal(again.tokens(), before)
        assert open_token_file(again.folder).n_tokens == len(before)

    def test_damaged_folder_that_was_named_is_not_deleted(self, made):
        """A prepared folder given as the text is refused, not touched."""
        self.truncate(made.folder)
        before = sorted(path.name for path in made.folder.iterdir())
        with pytest.raises(InputError, match=made.folder.name):
            prepare(DataConfig((str(made.folder),)), 0)
        assert sorted(path.name for path in made.folder.iterdir()) == before

    @pytest.mark.parametrize(
        "error, raised",
        [
            (OSError(28, "No space left on device"), DiskFullError),
            (RuntimeError("!"), RuntimeError),
        ],
    )
    @pytest.mark.parametrize("out", [None, "out"])
    def test_failing_halfway_leaves_nothing(self, folder, monkeypatch, error, raised, out):
        """What stops in the middle leaves neither a folder nor a part of one."""
        whole = data._batches

        def half(*args):
            yield next(whole(*args))
            raise error

        monkeypatch.setattr(data, "_batches", half)
        write("a.txt", words(5000))
        with pytest.raises(raised):
            prepare(DataConfig(("a.txt",)), 300, out=Path(out) if out else None)
        left = [path for path in folder.rglob("*") if path.name not in ("a.txt", "data")]
        assert left == []

    def test_folder_that_cannot_be_made(self, folder):
        """A data_dir that is a file is an InputError that names it."""
        write("taken", "a file")
        with pytest.raises(InputError, match="taken"):
            char_prepare(write("a.txt", words(1000)), data_dir="taken")


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


MEMORY_PROGRAM = """
    import random, sys
    from pathlib import Path
    from myllm.config import DataConfig
    from myllm.data import prepare
    rng = random.Random(1)
    letters = "aaabcddeeeefghiiijklmnnooopqrrsssttuvwxyz"
    vocabulary = ["".join(rng.choices(letters, k=rng.randint(1, 11))) for _ in range(50_000)]
    with open("big.txt", "w", encoding="utf-8", newline="\\n") as file:
        while file.tell() < 300_000_000:
            block = "".join(
                " ".join(rng.choices(vocabulary, k=12)) + "\\n" for _ in range(2000)
            )
            for _ in range(5):
                file.write(block)
    made = prepare(DataConfig(("big.txt",)), 4096)
    assert made.n_characters >= 300_000_000, made.n_characters
    assert len(made.tokens()) == made.n_tokens
    # not getrusage: its peak begins with that of the process that started this one
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(int(status.split("VmHWM:")[1].split()[0]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures as Linux does")
def test_memory_stays_bounded(tmp_path):
    """300 MB of text are prepared within 1 GB of memory."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY_PROGRAM)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PYTHONPATH": str(Path(data.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    peak_bytes = int(done.stdout.split()[-1])
    print(f"peak memory {peak_bytes / 1e6:.0f} MB")
    assert peak_bytes < 1_000_000_000
