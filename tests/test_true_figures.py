"""What `evaluate` measures is what it says: the run's own text, a prepared one, a learned one."""

import json
import math
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from cli_place import TINY, assert_refused, words
from rich.console import Console

import myllm
from myllm.config import TrainConfig
from myllm.data.dataset import TextDataset
from myllm.display import TrainingDisplay
from myllm.runs.folder import RunFolder
from myllm.runs.metrics import Metrics
from myllm.train import Observer, Trainer
from myllm.train.evaluate import Evaluation, Validation, evaluate
from myllm.train.observer import TensorBoard

pytestmark = pytest.mark.usefixtures("quiet_terminal")


class TestOwnText:
    @pytest.mark.parametrize("verb", [["evaluate", "--run"], ["inspect-batch"]])
    @pytest.mark.parametrize("kind", ["file", "folder", "prepared", "another tokenizer"])
    def test_another_text_in_its_place_is_refused(self, folder, run, kind, verb):
        """Known by content: of the same size, a file more, a folder prepared again."""
        Path("a.txt").write_text(words(3000))
        text = "a.txt"
        if kind == "folder":
            Path("texts").mkdir()
            text = str(shutil.copy("a.txt", "texts").replace("/a.txt", ""))
        elif kind != "file":
            text = "made"
            assert run("prepare", "a.txt", "--out", "made", "--tokenizer", "char").code == 0
        assert run("train", text, "--run", "own", *TINY, "--max-steps", "1").code == 0
        assert run(*verb, "own").code == 0
        if kind == "file":
            Path("a.txt").write_text(Path("a.txt").read_text().replace("moon", "noon"))
        elif kind == "folder":
            Path("texts/b.txt").write_text("one more\n")
        else:
            shutil.rmtree("made")
            Path("a.txt").write_text(Path("a.txt").read_text() + "the moon\n")
            which = ["--tokenizer", "char"] if kind == "prepared" else ["--vocab-size", "290"]
            assert run("prepare", "a.txt", "--out", "made", *which).code == 0
        remedy = ["--resume own"] + ["myllm evaluate PATH --run own"] * (verb[0] == "evaluate")
        assert_refused(run(*verb, "own"), 2, "own", "bring back", *remedy)


class TestPrepared:
    def test_is_measured_as_its_tokens(self, place, run):
        """The same figures as of the text itself."""
        Path("new.txt").write_text(words(3000, seed=5))
        own = ["--run", "chars"]
        assert run("prepare", "new.txt", "--out", "made", "--tokenizer", "char").code == 0
        tokenizer = "checkpoints/chars/tokenizer.json"
        assert Path("made/tokenizer.json").read_text() == Path(tokenizer).read_text()
        text, made = run("evaluate", "new.txt", *own), run("evaluate", "made", *own)
        assert made.code == 0 and made.err == ""
        assert made.out.partition(": ")[2] == text.out.partition(": ")[2]

    def test_of_another_tokenizer_is_refused(self, place, run):
        assert run("prepare", "story.txt", "--out", "made").code == 0
        assert_refused(run("evaluate", "made", "--run", "chars"), 2, "made", "another tokenizer")

    def test_how_it_is_read_cannot_be_said_any_more(self, place, run):
        made = next(Path("data").glob("story-*"))
        assert_refused(run("evaluate", made, "--separator", "x"), 2, "leave that out")


class TestLearned:
    def said(self, run, *args):
        result = run("evaluate", *args)
        assert result.code == 0
        return [line for line in result.lines if "was trained on" in line]

    def test_the_text_itself_wherever_it_lies(self, place, run):
        shutil.copy("story.txt", "copy.txt")
        for name in ("story.txt", "copy.txt"):
            (line,) = self.said(run, name)
            assert line.startswith(f"{name} belongs to the text that story was trained on")
        shutil.rmtree("data")
        assert len(self.said(run, "story.txt")) == 1

    def test_a_part_and_a_superset(self, place, run):
        Path("texts").mkdir()
        for i in range(3):
            Path(f"texts/{i}.txt").write_text(words(2000, seed=i + 10))
        assert run("train", "texts", *TINY).code == 0
        assert len(self.said(run, "texts/1.txt")) == 1
        Path("texts/new.txt").write_text(words(1000, seed=20))
        (line,) = self.said(run, "texts")
        assert line.startswith("3 of the 4 files of texts belong")

    def test_prepared_before(self, place, run):
        made = next(p for p in Path("data").glob("story-*") if _is_bpe(p))
        assert len(self.said(run, made, "--run", "story")) == 1

    def test_no_false_accusation(self, place, run):
        """Not of another text of that name, of one that was changed, nor without a text."""
        assert self.said(run) == []
        Path("elsewhere").mkdir()
        Path("elsewhere/story.txt").write_text(words(3000, seed=7))
        assert self.said(run, "elsewhere/story.txt") == []
        Path("story.txt").write_text(Path("story.txt").read_text().replace("moon", "noon"))
        assert self.said(run, "story.txt") == []


def _is_bpe(folder):
    return json.loads((folder / "tokenizer.json").read_text())["kind"] == "bpe"


class TestForeign:
    def test_is_said_of_another_alphabet_only(self, place, run):
        """By the tokens that a byte takes."""
        Path("greek.txt").write_text("Το φεγγάρι περπατά πάνω από το ποτάμι. " * 20, "utf-8")
        Path("new.txt").write_text(words(2000, seed=9))
        (line,) = run("evaluate", "greek.txt", "--run", "story").lines
        assert line.startswith("greek.txt takes ") and "alphabet" in line
        assert run("evaluate", "new.txt", "--run", "story").err == ""

    def test_not_where_nothing_is_known(self, place, run, monkeypatch):
        """Runs of earlier versions do not say how many tokens their text has."""
        Path("greek.txt").write_text("Το φεγγάρι. " * 50, "utf-8")
        known = RunFolder("checkpoints/story").checkpoints
        assert "n_tokens" in known.metadata()
        found = myllm.load("story")
        monkeypatch.setattr(found.folder.checkpoints, "metadata", dict)
        assert found.evaluate("greek.txt").n_tokens > 500


class TestSeveral:
    def test_are_told_together_too(self, place, run):
        """As if they were one text."""
        for name, seed in (("a", 3), ("b", 4)):
            Path(f"{name}.txt").write_text(words(2000, seed=seed))
        lines = run("evaluate", "a.txt", "b.txt").out.splitlines()
        assert [line.split(":")[0] for line in lines] == ["a.txt", "b.txt", "all 2 texts"]
        assert len(run("evaluate", "a.txt").out.splitlines()) == 1
        parts = [myllm.load("story").evaluate(name) for name in ("a.txt", "b.txt")]
        both = Evaluation.together(parts)
        assert both.n_tokens == sum(part.n_tokens for part in parts)
        assert min(p.loss for p in parts) <= both.loss <= max(p.loss for p in parts)
        assert Evaluation.together(parts[:1]).bits_per_byte == pytest.approx(
            parts[0].bits_per_byte
        )


class TestWithoutByteCounts:
    def test_bits_per_byte_are_not_known(self, small_model, tokens):
        """Not those of tokens that stand for one byte each."""
        assert math.isnan(evaluate(small_model, tokens, [(0, 50)]).bits_per_byte)
        measured = Validation(small_model, tokens).measure(small_model, 4, nullcontext())
        assert math.isnan(measured.bits_per_byte) and measured.loss > 0

    def test_nor_told(self, small_model, tokens, tmp_path, place, capsys):
        """Null in metrics.jsonl, which is JSON; nothing on the screen, nothing for TensorBoard."""
        config = TrainConfig(max_steps=2, batch_size=2, eval_interval=2, device="cpu")
        data = TextDataset(tokens, None, 16, 2)
        folder = RunFolder(shutil.copytree("checkpoints/story", tmp_path / "run"))
        (folder.path / "metrics.jsonl").unlink()
        told = []

        class Watcher(Observer):
            def on_evaluation(self, record, is_best):
                told.append(record)

        Trainer(small_model, data, tokens, None, config, folder, observer=Watcher()).train()
        line = (folder.path / "metrics.jsonl").read_text()
        assert json.loads(line, parse_constant=pytest.fail)["val_bits_per_byte"] is None
        display = TrainingDisplay(Console(), lambda step: "")
        for record, is_known in (
            (told[0], False),
            (replace(told[0], val_bits_per_byte=1.5), True),
        ):
            display.on_evaluation(record, True)
            out = capsys.readouterr().out
            assert ("bits per byte" in out) == is_known and "nan" not in out

    def test_nor_written_for_tensorboard(self):
        board = TensorBoard.__new__(TensorBoard)
        board._writer = Mock()
        board.on_evaluation(Metrics(1, 1.0, 2.0, 2.0, math.nan, 0.1, 1.0, 5.0), True)
        names = [call.args[0] for call in board._writer.add_scalar.call_args_list]
        assert "val_loss" in names and "val_bits_per_byte" not in names


def test_the_figure_is_that_of_training_in_bfloat16_too(place, run):
    """With the type and the length of sequences that it was trained with."""
    flags = [*TINY, "--dtype", "bfloat16", "--sequence-length", "8", "--run", "half"]
    assert run("train", "story.txt", *flags).code == 0
    half = myllm.load("half", device="cpu")
    assert half.evaluate().loss == pytest.approx(half.metrics()[-1]["val_loss"], rel=1e-3)
    assert half.summary.val_loss == pytest.approx(half.metrics()[-1]["val_loss"])
