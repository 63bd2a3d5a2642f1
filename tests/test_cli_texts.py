"""The command line: texts that cannot be read, prompts of every kind."""

import io
import sys
from pathlib import Path

import pytest
from cli_place import TINY, assert_refused, leftovers

pytestmark = pytest.mark.usefixtures("quiet_terminal")


class TestTexts:
    def test_no_such_file(self, folder, run):
        """Exit 2, names it, makes nothing."""
        for verb in ("train", "prepare"):
            assert_refused(run(verb, "missing.txt"), 2, "missing.txt")
        assert not list(Path(".").glob("checkpoints/*"))

    def test_no_such_file_to_evaluate(self, place, run):
        """evaluate names what is not there."""
        assert_refused(run("evaluate", "missing.txt"), 2, "missing.txt")

    def test_empty_file(self, folder, run):
        """Exit 2, names it."""
        Path("void.txt").touch()
        assert_refused(run("train", "void.txt", *TINY), 2, "void.txt", "empty")

    def test_empty_folder(self, folder, run):
        """Exit 2, names it."""
        Path("corpus").mkdir()
        assert_refused(run("train", "corpus", *TINY), 2, "corpus")

    def test_folder_of_binaries(self, folder, run):
        """Exit 2, names it."""
        Path("corpus").mkdir()
        Path("corpus/a.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
        assert_refused(run("train", "corpus", *TINY), 2, "corpus", "image 1 (a.png)")

    def test_not_utf8(self, folder, run):
        """Exit 2 with file and byte offset; the flags it names help."""
        Path("old.txt").write_bytes(b"plain " * 1000 + "café ".encode("latin-1") * 300)
        result = run("train", "old.txt", *TINY)
        remedies = ("--fallback-encoding latin-1", "--encoding-errors replace")
        assert_refused(result, 2, "old.txt", "6003", *remedies)
        assert run("train", "old.txt", "--fallback-encoding", "latin-1", *TINY).code == 0
        assert run("train", "old.txt", "--encoding", "latin-1", *TINY).code == 0
        assert run("train", "old.txt", "--encoding-errors", "replace", *TINY).code == 0
        assert run("train", "old.txt", "--encoding", "klingon", *TINY).code == 2

    def test_null_characters(self, folder, run):
        """Exit 2 with file and offset, whichever the tokenizer."""
        Path("zero.txt").write_bytes(b"plain " * 1000 + b"\0" + b"more " * 100)
        for kind in ("bpe", "char"):
            result = run("train", "zero.txt", "--tokenizer", kind, *TINY)
            assert_refused(result, 2, "zero.txt", "null characters", "6000")

    def test_too_short(self, folder, run):
        """Exit 2 with the number and the least."""
        Path("short.txt").write_text("too short")
        assert_refused(run("train", "short.txt", *TINY), 2, "64")
        assert not list(Path(".").glob("checkpoints/*")) and not leftovers()

    def test_prepare_without_a_text(self, folder, run):
        """Exit 2, says what to give."""
        assert_refused(run("prepare"), 2, "myllm prepare")


class TestPrompts:
    def test_unknown_characters_are_announced_once(self, place, run):
        """A character model takes any prompt; what it does not know is said on one line."""
        result = run("generate", "the 你好 Ω moon", "--run", "chars", "--max-new-tokens", "20")
        assert result.code == 0
        assert result.out.startswith("the 你好 Ω moon")
        assert len(result.lines) == 1 and "3" in result.lines[0]

    def test_unknown_characters_in_write_are_announced_once(self, place, run, monkeypatch):
        """Going on with the same text does not repeat what was said."""
        monkeypatch.setattr(sys, "stdin", io.StringIO("the Ω moon\n\n\n"))
        result = run("write", "--run", "chars", "--max-new-tokens", "3")
        assert result.code == 0
        assert len(result.lines) == 1, result.err

    @pytest.mark.parametrize("kind", ["chars", "story"])
    @pytest.mark.parametrize("prompt", [[], [""], ["the old sea and " * 50]])
    def test_empty_and_long_prompts_work(self, place, run, kind, prompt):
        """No prompt begins a text; of a long one the end is read. Nothing is announced."""
        result = run(
            "generate", *prompt, "--run", kind, "--max-new-tokens", "40", "--ignore-end",
            "--sample-seed", "1",
        )  # fmt: skip
        assert result.code == 0 and result.err == ""
        assert result.out.startswith("".join(prompt))
        assert len(result.out) > len("".join(prompt)) + 1
