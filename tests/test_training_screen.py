"""What a person sees while `myllm train` runs, on screens of several widths and without one."""

from __future__ import annotations

import io
import logging
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from cli_place import TINY, words
from rich.cells import cell_len
from rich.console import Console

import myllm
from myllm.display import TrainingDisplay
from myllm.runs.metrics import Metrics
from myllm.runs.verdict import Facts
from myllm.system.progress import stage, watched_by
from myllm.system.wrapping import wrapped

pytestmark = pytest.mark.usefixtures("quiet_terminal")
WIDTHS = (60, 80, 120)
FACTS = Facts(20_000, 2_000, 2_000, 600, 6.0)
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def rows(text):
    """What has stood in the rows of a screen, one after the other."""
    return [row.rstrip() for row in re.split(r"[\n\r]", ESCAPES.sub("", text)) if row.strip()]


@pytest.fixture
def shown(monkeypatch, run):
    """Runs the program on a terminal of some width; returns the rows of its two streams."""

    def call(width, *args):
        terminal = Terminal()
        with monkeypatch.context() as patch:
            for name in ("stdout", "stderr", "__stderr__"):
                patch.setattr(sys, name, terminal)
            patch.setenv("COLUMNS", str(width))
            patch.setenv("TERM", "xterm")
            code = myllm.cli.main([str(arg) for arg in args])
        return code, rows(terminal.getvalue())

    return call


def record(step, val_loss, train_loss=1.0):
    return Metrics(step, 1.0, train_loss, val_loss, val_loss / 3, 0.1, 1.0, 123_456.0)


def display(width, write=lambda step: " and so on", **more):
    out = Terminal()
    console = Console(file=out, force_terminal=True, width=width, soft_wrap=True, highlight=False)
    return TrainingDisplay(console, write, facts=FACTS, evaluation_steps=60, **more), out


class TestWidth:
    @pytest.mark.parametrize("width", WIDTHS)
    def test_nothing_is_wider_than_the_terminal(self, folder, shown, width):
        """But commands, which stand on lines of their own; nothing gets lost by that."""
        Path("my text.txt").write_text(words(), encoding="utf-8")
        flags = ["--runs-dir", "old runs", "--run", "a (1st) run of mine", *TINY]
        code, found = shown(width, "train", "my text.txt", *flags)
        assert code == 0
        wide = [row for row in found if cell_len(row) > width]
        assert all(re.fullmatch(r" +myllm (generate|write|train) .*", row) for row in wide), wide
        text = " ".join(" ".join(found).split())
        for part in ("held out to measure the model", "1 layer,", "to 6, 64 tokens each"):
            assert part in text
        assert "--max-steps" in text and "hardly learned anything" in text
        assert any(row.startswith("step ") and "left" in row for row in found)

    @pytest.mark.parametrize("width", WIDTHS)
    def test_other_verbs_and_warnings(self, place, shown, width):
        """Figures; a warning; an error of many words, whose command stays in one piece."""
        code, found = shown(width, "evaluate", "--run", "story")
        assert code == 0 and max(map(cell_len, found)) <= width
        code, found = shown(width, "train", "story.txt", *TINY, "--max-steps", "1")
        assert any("this one is story-2" in row for row in found)
        Path("story.txt").unlink()
        code, found = shown(width, "train", "--resume", "story")
        assert code == 2 and max(map(cell_len, found)) <= width
        assert "myllm train NEW-PATH --resume story" in " ".join(found)

    def test_wrapped(self):
        assert wrapped("a" * 30 + " b", None) == "a" * 30 + " b"
        assert wrapped("one two  three", 40) == "one two  three"
        assert (
            wrapped("日月盈昃" * 10, 20).splitlines()
            == ["日月盈昃日月盈昃日月", "盈昃日月盈昃日月盈昃"] * 2
        )
        assert wrapped("  myllm train " + "x" * 90, 40) == "  myllm train " + "x" * 90
        long = "go on with: myllm train --resume 'my run' --max-steps 2000; or begin anew"
        assert wrapped(long, 30).splitlines() == [
            "go on with:", "myllm train --resume 'my run' --max-steps 2000;", "or begin anew"
        ]  # fmt: skip

    @pytest.mark.parametrize("width", [20, 40, *WIDTHS])
    def test_the_bar_fits(self, width):
        """What matters least is left out: the time that is left stays longest."""
        shown, out = display(width)
        with shown:
            shown.on_start(0, 600)
            shown.on_step(1, 4.321, 123_456.0)
            shown.on_step(2, 4.321, 123_456.0)
            shown.on_evaluation(record(2, 4.0), True)
            shown.on_step(3, 4.321, 123_456.0)
            shown._progress.refresh()
        found = rows(out.getvalue())
        assert all(cell_len(row) <= width for row in found)
        bars = [row for row in found if row.startswith("step 3/600")]
        assert bars and all("…" not in bar for bar in bars)
        assert all("left" in bar for bar in bars) or width < 40
        assert all("tokens/s" in bar for bar in bars) or width < 80


class TestSamples:
    def test_begin_with_a_line_that_is_held_out(self, folder, shown):
        """Before training and at each evaluation the same one, in the hint, and when the run goes
        on."""
        Path("story.txt").write_text(words(), encoding="utf-8")
        code, found = shown(100, "train", "story.txt", *TINY)
        labels = [row for row in found if row.startswith("sample, step ")]
        assert [label.split()[2] for label in labels] == ["0", "3", "6"]
        assert "before training" in labels[0]
        lines = [row[3:].partition("]")[0] for row in found if row.startswith("│ [")]
        assert len(lines) == 3 and len(set(lines)) == 1
        line = lines[0]
        assert 20 <= len(line) <= 60 and line in words()
        assert any(row.startswith(f"  myllm generate '{line}' --run story") for row in found)
        code, found = shown(100, "train", "--resume", "story", "--max-steps", "8")
        assert {row[3:].partition("]")[0] for row in found if row.startswith("│ [")} == {line}
        assert any("sample, step 6 (where the run goes on; in brackets" in row for row in found)

    def test_of_a_model_that_is_not_kept(self):
        shown, out = display(80, beginning="The king")
        shown.on_start(0, 600)
        for step, val_loss, is_best in ((60, 4.0, True), (120, 5.0, False), (180, 3.0, True)):
            shown.on_evaluation(record(step, val_loss), is_best)
        shown.__exit__()
        labels = [row for row in rows(out.getvalue()) if row.startswith("sample")]
        assert labels[1:] == [
            "sample, step 60", "sample, step 120 (not kept: the best is step 60)",
            "sample, step 180",
        ]  # fmt: skip

    @pytest.mark.parametrize("width", WIDTHS)
    def test_are_a_few_rows(self, width):
        shown, out = display(width, lambda step: " 日月 word" * 200 + "\n\n\nend", beginning="It")
        shown.on_evaluation(record(60, 4.0), True)
        sample = [row for row in rows(out.getvalue()) if row.startswith("│")]
        assert len(sample) == 5 and sample[0].startswith("│ [It] 日月") and sample[-1] == "│ …"
        assert all(cell_len(row) <= width for row in sample)

    def test_are_not_shown_without_a_terminal(self, place, run):
        """One plain line for each evaluation, however wide."""
        out = run("train", "story.txt", *TINY, "--max-steps", "30").out
        assert "sample" not in out and "│" not in out
        assert all(character.isprintable() or character == "\n" for character in out)
        assert len([line for line in out.splitlines() if line.startswith("step ")]) == 10


class TestWarnings:
    def test_overfitting_is_told_once_when_it_begins(self, caplog):
        caplog.set_level(logging.WARNING)
        shown, _ = display(80)
        for i, val_loss in enumerate([4.0, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5], 1):
            shown.on_evaluation(record(60 * i, val_loss, train_loss=3.0 / i), i < 3)
        told = [message for message in caplog.messages if "by heart" in message]
        assert len(told) == 1 and "has risen since step 120" in told[0]

    def test_a_short_text_is_not_gone_through_for_ever(self, folder, run):
        """The plan says so, the run stops, the result says why; --patience 0 goes on."""
        Path("short.txt").write_text(words(2_500), encoding="utf-8")
        flags = [*TINY, "--learning-rate", "0.02", "--d-model", "48", "--batch-size", "16"]
        flags += ["--max-steps", "100", "--eval-interval", "10"]
        found = run("train", "short.txt", *flags)
        assert "stops early after 3 evaluations" in found.out and "--patience 0" in found.out
        assert "stopped early, at step" in found.err and "of 100" in found.err
        saved = myllm.load("short")
        assert saved.config.train.patience == 3
        assert saved.metrics()[-1]["step"] < 100
        assert "by heart" in found.out and "generate uses the checkpoint of step" in found.out
        on = run("train", "short.txt", *flags, "--patience", "0", "--run", "on")
        assert "stops early" not in on.out and "stopped early" not in on.err
        assert myllm.load("on").metrics()[-1]["step"] == 100

    def test_a_run_without_patience_goes_on_to_its_end(self, folder, run):
        """As those of older versions do, that have none."""
        Path("short.txt").write_text(words(2_500), encoding="utf-8")
        path = Path("checkpoints/short/config.toml")
        assert run("train", "short.txt", *TINY, "--learning-rate", "0.02").code == 0
        assert "patience" not in path.read_text(encoding="utf-8")
        more = ["--max-steps", "150", "--eval-interval", "15", "--quiet"]
        assert run("train", "--resume", "short", *more).code == 0
        assert "patience" not in path.read_text(encoding="utf-8")
        assert myllm.load("short").metrics()[-1]["step"] == 150

    def test_a_run_that_sees_little_of_its_text(self, place, run):
        """The remedy does what it says."""
        out = run("train", "story.txt", *TINY).out
        steps = re.search(r"sees only \d+% of the text: --max-steps (\d+)", out)
        assert steps is not None
        again = run("train", "story.txt", *TINY, "--max-steps", steps[1], "--eval-interval", "999")
        assert "(1.0 times the text)" in again.out and "sees only" not in again.out


class TestStages:
    def test_are_shown_within_the_bar(self):
        """An evaluation, or whatever else takes long, is no standstill."""
        shown, out = display(80)
        with shown, watched_by(shown.watch):
            shown.on_start(0, 600)
            with stage("evaluating", 10) as advance:
                advance(4)
                shown._progress.refresh()
            shown._progress.refresh()
        found = rows(out.getvalue())
        assert any("evaluating 40%" in row for row in found) and "evaluating" not in found[-1]

    def test_evaluations_and_checkpoints_are_stages(self, place, run, monkeypatch):
        seen = []

        def watch(self, what, total):
            seen.append((what, total))
            return nullcontext(lambda amount: None)

        monkeypatch.setattr(TrainingDisplay, "watch", watch)
        assert run("train", "story.txt", *TINY).code == 0
        assert "saving a checkpoint" in {what for what, _ in seen}
        assert [total for what, total in seen if what == "evaluating"][0] > 100

    def test_long_ones_are_told_without_a_terminal(self, monkeypatch, caplog):
        """When they have become long, and when they are over; short ones are not."""
        from myllm.cli import progress

        caplog.set_level(logging.INFO, "myllm")
        with progress.bar("reading", 10) as advance:
            advance(1)
        assert not caplog.messages
        monkeypatch.setattr(progress, "LONG_S", 0.01)
        with progress.bar("reading", 10) as advance:
            advance(3)
            while not caplog.messages:
                pass
        first, last = caplog.messages
        assert first.startswith("reading, 30% after") and last.startswith("reading took ")
