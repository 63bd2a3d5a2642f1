"""Nothing that a model, a text or a file name holds can move the cursor or hide text."""

import io
import sys
from pathlib import Path
from typing import cast

import pytest
from cli_place import TINY, assert_refused
from rich.console import Console

from myllm.cli.writer import Writer
from myllm.config import SamplingConfig
from myllm.display import TrainingDisplay
from myllm.generate.generator import TextGenerator
from myllm.runs.metrics import Metrics
from myllm.system.terminal import Screen, printable
from myllm.tokenizer import CharTokenizer

pytestmark = pytest.mark.usefixtures("quiet_terminal")
NASTY = "a\x1b[2J\x9b1mb\x08\x7fc\x85\u202ed\u2066e\u200ff\u061cg\x00h"
OBEYED = set(NASTY) - set("abcdefgh[2J1m")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(*pieces, end=True):
    stream = Terminal()
    screen = Screen(stream)
    for piece in pieces:
        screen.write(piece)
    if end:
        screen.end()
    return stream.getvalue()


class TestScreen:
    def test_what_a_terminal_would_obey_is_shown_as_a_mark(self):
        assert not OBEYED & set(printable(NASTY)) and len(printable(NASTY)) == len(NASTY)
        assert shown(*NASTY) == printable(NASTY) + "\n"

    def test_text_of_all_scripts_stays(self):
        text = "Zoë 你好 שלום سلام नमस्ते 👩‍🚀🏴 e\u0301\ttab\nline\u200c\u200d"
        assert printable(text) == text and shown(*text) == text + "\n"

    @pytest.mark.parametrize("pieces", [["a\r\nb"], ["a\r", "\nb"], ["a", "\r", "", "\n", "b"]])
    def test_windows_line_ends_are_line_ends(self, pieces):
        """Also where a line end comes in two pieces."""
        assert shown(*pieces) == "a\nb\n"

    @pytest.mark.parametrize("pieces", [["a\rb"], ["a\r", "b"], ["a\r", "", "b"]])
    def test_a_lone_carriage_return_can_be_seen(self, pieces):
        assert shown(*pieces) == "a␍b\n"

    def test_a_carriage_return_at_the_end_can_be_seen(self):
        assert shown("a\r") == "a␍\n" and shown("a\r", "\r", "\n", end=False) == "a␍\n"

    def test_files_get_what_was_written(self):
        stream = io.StringIO()
        screen = Screen(stream)
        screen.write(NASTY + "\r")
        screen.end()
        assert stream.getvalue() == NASTY + "\r\n"


class Nasty:
    """Writes what no terminal should obey."""

    tokenizer = CharTokenizer(NASTY.replace("\0", ""))

    def stream(self, prompt, sampling):
        return iter(NASTY)

    def generate(self, prompt, sampling):
        return NASTY

    def next_probabilities(self, text):
        return [(NASTY, 1.0)]


class TestScreens:
    def test_generate(self, place, monkeypatch, run):
        """The prompt, too."""
        monkeypatch.setattr("myllm.run.Run.stream", lambda run, prompt, **_: iter(NASTY))
        assert run("generate", "p\x1b[1mq").out == "p\x1b[1mq" + NASTY + "\n"
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        assert run("generate", "p\x1b[1mq").code == 0
        assert terminal.getvalue() == printable("p\x1b[1mq" + NASTY) + "\n"

    def test_write(self, monkeypatch):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        writer = Writer(cast(TextGenerator, Nasty()), SamplingConfig())
        for line in ("the", "/probs", "/\x1b[2J", "/temperature \x1b[2J", "/stop \x1b\u202e"):
            assert writer.respond(line)
        writer.respond("/settings")
        assert not OBEYED & set(terminal.getvalue())

    def test_samples_of_training(self):
        out = Terminal()
        console = Console(file=out, force_terminal=True, no_color=True, width=200)
        display = TrainingDisplay(console, lambda step: NASTY)
        record = Metrics(1, 0.0, 1.0, 1.0, 1.0, 0.1, 1.0, 1.0)
        display.on_evaluation(record, True)
        assert printable(NASTY) in out.getvalue()

    @pytest.mark.parametrize("name", ["a\x1b[2Jb.txt", "a\u202eb.txt", "a\x9bb.txt"])
    def test_names_of_files(self, place, run, name):
        """In results, in errors, in what is announced."""
        Path(name).write_bytes(Path("story.txt").read_bytes())
        folder = name.removesuffix(".txt")
        results = [
            run("evaluate", name, "--run", "story"),
            run("train", "no" + name),
            run("prepare", name, "--out", folder),
            run("export", "story", "--out", folder + "-hf", "--no-verify"),
            run("train", "story.txt", *TINY, "--max-steps", "1", "--runs-dir", "runs" + folder),
            run("generate", "--run", name),
            run("verify", "story" + name),
            run("train", "story.txt", "--from", name),
        ]
        for result in results:
            assert not OBEYED & set(result.out + result.err), (result.out, result.err)
        assert [result.code for result in results] == [0, 2, 0, 0, 0, 2, 2, 2]

    def test_a_name_with_a_line_end_is_one_line(self, place, run):
        assert_refused(run("train", "no\nsuch.txt"), 2, r"no\nsuch.txt")

    def test_inspect_batch(self, place, run):
        Path("nasty.txt").write_text(NASTY.replace("\0", "") * 200, encoding="utf-8", newline="")
        args = ["--run", "nasty", "--tokenizer", "char", *TINY, "--max-steps", "1"]
        assert run("train", "nasty.txt", *args).code == 0
        out = run("inspect-batch", "nasty", "0").out
        assert not OBEYED & set(out) and "␛" in out
