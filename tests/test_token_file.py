"""Token files: their split, and what is noticed when they are damaged."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_files import char_prepare, words, write

from myllm.config import VAL_SPLITS, DataConfig
from myllm.data.prepare import prepare
from myllm.data.token_file import MIN_TOKENS, fitting_context, open_token_file, split_ranges
from myllm.errors import InputError
from myllm.system import atomic
from myllm.system.atomic import _sealed_text
from myllm.tokenizer import CharTokenizer


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


class TestSources:
    def test_a_folder_of_an_older_version_is_read(self, folder):
        """Until format 2 the sidecar had the sources; nothing is made again for that."""
        made = char_prepare(write("a.txt", words(5000)))
        (made.folder / "sources.jsonl").unlink()
        content = json.loads((made.folder / "tokens.json").read_text(encoding="utf-8"))
        del content["sha256"], content["files"]["sources.jsonl"]
        content |= {"format": 2, "sources": [{"path": "a.txt", "size_bytes": 1, "sha256": "…"}]}
        text = _sealed_text(content)
        (made.folder / "tokens.json").write_text(text, encoding="utf-8")
        assert open_token_file(made.folder).source_paths() == ["a.txt"]
        before = (made.folder / "tokens.npy").stat().st_mtime_ns
        assert char_prepare("a.txt").folder == made.folder
        assert (made.folder / "tokens.npy").stat().st_mtime_ns == before

    def test_many_names_are_not_beyond_a_limit(self, folder, monkeypatch):
        """What is read as a whole does not grow with the number of files."""
        for i in range(300):
            write(f"corpus/a name that takes its room, of file number {i:03}.txt", words(40))
        monkeypatch.setattr(atomic, "SMALL_FILE_BYTES", 4000)
        made = char_prepare("corpus")
        assert char_prepare("corpus").folder == made.folder
        assert len(made.source_paths()) == 300

    def test_a_damaged_list_is_said(self, folder):
        made = char_prepare(write("a.txt", words(5000)))
        (made.folder / "sources.jsonl").write_text("{}", encoding="utf-8")
        with pytest.raises(InputError, match="sources.jsonl.*prepare it again"):
            made.source_paths()
