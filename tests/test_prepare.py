"""Text → token files: what is made, and what is found again."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from text_files import char_prepare, documents, words, write

from myllm.config import DataConfig
from myllm.data import prepare as room
from myllm.data.prepare import prepare
from myllm.errors import DiskFullError, InputError
from myllm.tokenizer import CharTokenizer


class TestReuse:
    def test_same_text_is_not_prepared_again(self, folder, monkeypatch):
        """The second call gives the same folder and writes nothing."""
        path = write("a.txt", words(3000))
        first = char_prepare(path)
        monkeypatch.setattr(room, "_write_tokens", lambda *_: pytest.fail("prepared again"))
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


class TestFailure:
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
        whole = room.encode_sources

        def half(*args):
            yield next(whole(*args))
            raise error

        monkeypatch.setattr(room, "encode_sources", half)
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


MEMORY_PROGRAM = """
    import random, sys
    from pathlib import Path
    from myllm.config import DataConfig
    from myllm.data.encode import small_texts
    from myllm.data import prepare as room
    from myllm.data.prepare import encode_text, prepare
    from myllm.data.readers import read_pieces
    from myllm.data.sources import find_sources
    from myllm.tokenizer import CharTokenizer

    def peak():  # not getrusage: its peak begins with that of the process that started this one
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def config(megabytes):
        with open(f"{megabytes}.txt", "w", encoding="utf-8", newline="\\n") as file:
            for _ in range(megabytes):
                file.write(block)
        return DataConfig((f"{megabytes}.txt",))

    rng = random.Random(1)
    letters = "aaabcddeeeefghiiijklmnnooopqrrsssttuvwxyz"
    vocabulary = ["".join(rng.choices(letters, k=rng.randint(1, 11))) for _ in range(50_000)]
    lines = (" ".join(rng.choices(vocabulary, k=12)) + "\\n" for _ in range(12_500))
    block = "".join(lines)

    def use(to_prepare, to_measure, to_read):
        made = prepare(config(to_prepare), 1024)
        assert made.n_characters == to_prepare * len(block)
        given = config(to_measure)
        encoded = encode_text(given.paths[0], CharTokenizer().train(block), given)
        assert len(encoded.ids) > to_measure
        given = config(to_read)
        texts = (text for source in find_sources(given) for text, _ in read_pieces(source, given))
        assert sum(map(len, small_texts(texts))) == to_read * len(block)

    room.SAMPLE_BYTES = 1 << 24  # so that less text than a gigabyte is more than that
    use(4, 5, 6)
    small = peak()
    use(30, 100, 1000)
    print(len(block), small, peak() - small)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures as Linux does")
def test_memory_does_not_grow_with_the_text(tmp_path):
    """A gigabyte read, 100 MB encoded to be measured, 30 MB learned from and prepared: little more
    memory than for a few megabytes."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY_PROGRAM)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PYTHONPATH": str(Path(room.__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert int(done.stdout.split()[-1]) < 300_000_000
