"""What a person meets who lets a trained model write: `myllm generate`, `myllm write`."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path
from typing import cast

import pytest
from cli_place import assert_refused

from myllm.cli.writer import Writer, joined
from myllm.config import SamplingConfig
from myllm.generate.generator import TextGenerator
from myllm.runs.folder import RunFolder
from myllm.tokenizer import BPETokenizer

pytestmark = pytest.mark.usefixtures("quiet_terminal")
SHORT = ("--run", "chars", "--max-new-tokens", "5", "--ignore-end")


class TestPrompts:
    def test_words_without_quotes(self, place, run):
        """As with quotes; flags between them, and what begins with - behind --."""
        args = (*SHORT, "--sample-seed", "3")
        quoted = run("generate", "the old moon", *args).out
        assert quoted.startswith("the old moon")
        assert run("generate", "the", "old", *args, "moon").out == quoted
        assert run("generate", *args, "--", "the", "old", "moon").out == quoted
        assert run("generate", *args, "--", "-", "old").out.startswith("- old")

    @pytest.mark.parametrize(
        "content", [b"the old moon", b"the old moon\n", b"\xef\xbb\xbfthe old moon\r\n",
                    "the old moon\n".encode("utf-16")],
    )  # fmt: skip
    def test_from_a_file(self, place, run, monkeypatch, content):
        """Its last line end is the editor's; standard input is read alike."""
        Path("p.txt").write_bytes(content)
        args = (*SHORT, "--sample-seed", "3")
        expected = run("generate", "the old moon", *args).out
        assert run("generate", "--prompt-file", "p.txt", *args).out == expected
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert run("generate", "--prompt-file", "-", *args).out == expected

    def test_lines_of_a_file_stay(self, place, run):
        Path("p.txt").write_text("the old\n\nmoon\n\n", encoding="utf-8", newline="")
        assert run("generate", "--prompt-file", "p.txt", *SHORT).out.startswith(
            "the old\n\nmoon\n"
        )

    def test_files_that_hold_none(self, place, run):
        Path("empty.txt").touch()
        Path("latin.txt").write_bytes("für".encode("latin-1"))
        Path("program").write_bytes(b"\x7fELF\2\1\1\0\0\0")
        Path("null.txt").write_bytes(b"a\0\x01b\0\0")
        cases = {
            "missing.txt": "no file missing.txt", "empty.txt": "is empty", ".": "is no file",
            "latin.txt": "not UTF-8", "program": "a program", "null.txt": "null.txt", "": "''",
        }  # fmt: skip
        for name, told in cases.items():
            assert_refused(run("generate", "--prompt-file", name), 2, told)
        assert_refused(run("generate", "x", "--prompt-file", "empty.txt"), 2, "only one")

    def test_another_writing_is_told(self, model_config, caplog):
        """Once, and only where it is another one: a word or a number is none."""
        import dataclasses

        from myllm.model import GPTModel

        syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
        text = " ".join(a + b for a in syllables for b in syllables)
        tokenizer = BPETokenizer(800).train(text)
        config = dataclasses.replace(model_config, vocab_size=tokenizer.vocab_size)
        writer = TextGenerator(GPTModel(config), tokenizer)
        for known in ("baba dedo kitu rasa bolo", "", "你", "x 17"):
            writer.encode_prompt(known)
        assert not caplog.text
        for _ in range(2):
            writer.encode_prompt("清晨，老王走过石桥")
        assert caplog.text.count("spelled byte by byte") == 1
        assert BPETokenizer(300).train(text).foreign_share(writer.tokenizer.byte_counts()) == 0


class TestSeveralTexts:
    def test_each_can_be_had_again(self, place, run):
        """Different texts; the seed that is shown gives the same one."""
        made = run("generate", "the", *SHORT, "--num-samples", 3)
        heads = re.findall(r"^--- (\d) of 3 \(seed (\d+)\) ---$", made.out, re.MULTILINE)
        assert [int(number) for number, _ in heads] == [1, 2, 3] and made.err == ""
        assert made.out.startswith("--- 1 of 3")
        texts = re.split(r"^--- .*\n", made.out, flags=re.MULTILINE)[1:]
        for (number, seed), text in zip(heads, texts):
            alone = run("generate", "the", *SHORT, "--sample-seed", seed).out
            assert text == alone + ("" if number == "3" else "\n")
        assert len(set(texts)) > 1

    def test_one_has_no_head(self, place, run):
        assert "---" not in run("generate", "the", *SHORT, "--num-samples", 1).out

    def test_seeds_count_up_from_the_one_given(self, place, run):
        out = run("generate", *SHORT, "--num-samples", 2, "--sample-seed", 7).out
        assert "(seed 7)" in out and "(seed 8)" in out

    @pytest.mark.parametrize("more", [["--temperature", "0"], ["--top-k", "1"],
                                      ["--sample-seed", str(2**63 - 1)]])  # fmt: skip
    def test_what_cannot_differ(self, place, run, more):
        assert_refused(run("generate", "the", "--num-samples", 2, *more), 2, "2")

    @pytest.mark.parametrize("n", ["0", "-1", "1.5", "x"])
    def test_numbers_that_are_none(self, place, run, n):
        result = run("generate", "the", "--num-samples", n)
        assert result.code == 2 and len(result.lines) == 1


class TestFiles:
    def test_what_is_shown_is_what_is_written(self, place, run):
        """One line says where it is; the folders above are made."""
        args = ("generate", "the moon 你", *SHORT, "--sample-seed", "3", "--num-samples", "2")
        shown = run(*args).out
        made = run(*args, "--out", "a/b/text.txt")
        path = Path("a/b/text.txt")
        assert path.read_bytes().decode("utf-8") == shown
        assert made.out == f"{path}: written ({len(shown)} characters)\n"
        assert os.listdir("a/b") == ["text.txt"]

    def test_nothing_is_written_over(self, place, run):
        """Refused before the model is loaded."""
        Path("there.txt").write_text("mine", encoding="utf-8")
        assert_refused(run("generate", "--run", "no", "--out", "there.txt"), 2, "exists", "--out")
        assert Path("there.txt").read_text(encoding="utf-8") == "mine"
        assert_refused(run("generate", "--out", "checkpoints"), 2, "folder", "--runs-dir")
        assert_refused(run("generate", "--out", "-"), 2, "standard output")
        assert_refused(run("generate", *SHORT, "--out", "there.txt/x"), 2, "there.txt")


class Known:
    """Writes the same after anything."""

    def __init__(self, *pieces):
        self.pieces, self.prompts = pieces, []

    def stream(self, prompt, sampling):
        self.prompts.append(prompt)
        return iter(self.pieces)


class TestWrite:
    def room(self, *pieces, **settings):
        self.shown: list[str] = []
        generator = cast(TextGenerator, Known(*pieces))
        return Writer(generator, SamplingConfig(), self.shown.append, **settings)

    @pytest.mark.parametrize(
        "before, line, expected",
        [
            ("", "The king", "The king"),
            ("the riv", "The king", "the riv\nThe king"),
            ("the riv\n", "The king", "the riv\nThe king"),
            ("the riv ", "and", "the riv and"),
            ("the riv", " and", "the riv and"),
            ("if x:", "    y()", "if x:\n    y()"),
            ("if x:", "\ty()", "if x:\n\ty()"),
            ("", " help", "help"),
            ("", "  x", "  x"),
            ("the riv", "", "the riv"),
        ],
    )
    def test_where_a_line_goes(self, before, line, expected):
        assert joined(before, line) == expected

    def test_lines_and_texts_take_turns(self):
        room = self.room(" rode", " to")
        for line in ("The king", "", "The queen", " sang"):
            room.respond(line)
        assert room.text == "The king rode to rode to\nThe queen rode to sang rode to"

    @pytest.mark.parametrize("word", ["quit", "exit", "Quit", "exit ", "/quit", "/exit"])
    def test_words_that_leave(self, word):
        room = self.room("x")
        assert room.respond(word) is False and room.text == ""
        assert room.respond(f" {word}") is True and room.text == word + "x"

    def test_help_by_its_word(self):
        room = self.room("x")
        assert room.respond("help") and "/temperature" in "".join(self.shown) and room.text == ""
        assert room.respond("help me") and room.text == "help mex"

    def test_an_end_is_told(self):
        room = self.room()
        room.respond("The end.")
        assert "the text ends here" in "".join(self.shown)

    @pytest.mark.parametrize(
        "line, told",
        [
            ("/temperature abc", "temperature abc: must be a number"),
            ("/top-k 1.5", "top-k 1.5: must be a whole number, or off"),
            ("/ignore-end maybe", "ignore-end maybe: must be on or off"),
            ("/stop", "needs a value, or off"),
            ("/top_p", "/top-p needs one value, or off"),
            ("/max-new-tokens off", "cannot be switched off"),
            ("/top-q 3", "top-k"),
            ("/stop 'x", "quotation mark"),
        ],
    )
    def test_mistakes_are_told_in_plain_words(self, line, told, monkeypatch):
        monkeypatch.setenv("COLUMNS", "200")
        room = self.room()
        assert room.respond(line) and room.sampling == SamplingConfig()
        assert told in "".join(self.shown)

    def test_settings_as_they_are_typed(self):
        room = self.room()
        for line in ("/ignore-end on", "/top-p off", "/stop a 'b c'", "/settings"):
            room.respond(line)
        said = "".join(self.shown)
        assert "ignore-end: on\n" in said and "top-p: off\n" in said and "stop: 'a' 'b c'" in said
        room.respond("/ignore-end off")
        assert room.sampling.ignore_end is False and "None" not in "".join(self.shown)

    @pytest.mark.parametrize("width", [60, 80, 120])
    def test_fits_the_terminal(self, place, run, monkeypatch, width):
        """Every line of ours, without a terminal's codes; the example is of the run's own text."""
        for module in ("cli.writer", "system.terminal"):
            monkeypatch.setattr(f"myllm.{module}.terminal_width", lambda stream: width)
        example = RunFolder(Path("checkpoints/chars")).checkpoints.metadata()["beginning"]
        lines = "/help\n/settings\n/what\n/temperature abc\n/quit\n"
        for verb in ("write", "chat"):
            monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
            out = run(verb, "--run", "chars", "--max-new-tokens", "3").out
            assert max(map(len, out.splitlines())) <= width and "\x1b" not in out
            assert f'such as "{example}", and press' in " ".join(out.split())
            assert out.index("leaves") < out.index("/reset")

    def test_where_what_is_typed_is_kept(self, place, run, monkeypatch):
        """Said by /help; nothing is kept of what comes from elsewhere than a terminal."""
        monkeypatch.setenv("HOME", str(Path("home").resolve()))
        monkeypatch.setenv("USERPROFILE", str(Path("home").resolve()))
        Path("home").mkdir()
        for flag, told in (((), ".myllm_history, for"), (("--no-history",), "is not kept")):
            monkeypatch.setattr(sys, "stdin", io.StringIO("/help\n"))
            assert told in run("write", "--run", "chars", *flag).out
        assert not list(Path("home").iterdir())
