"""The length of training sequences, apart from how far a model looks back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_place import assert_refused, words

from myllm.cli import main
from myllm.config import with_values
from myllm.model import GPTModel
from myllm.presets import default_config
from myllm.runs.checkpoint import Checkpoint
from myllm.runs.folder import RunFolder
from myllm.runs.weights import load_model, model_tensors
from myllm.tokenizer import CharTokenizer
from myllm.train.memory import estimate_training_memory
from myllm.train.state import TrainState

pytestmark = pytest.mark.usefixtures("quiet_terminal")

SHAPE = dict(d_model=16, n_layers=1, n_heads=2, dropout=0.0)
QUICK = "--max-steps 2 --eval-interval 2 --batch-size 2 --device cpu --dtype float32".split()


def base(context_length: int, position: str = "rotary", name: str = "base", **shape) -> RunFolder:
    """A model that looks back so far, as one that is imported: it has no text of its own."""
    tokenizer = CharTokenizer().train(words())
    shape = {**SHAPE, **shape, "vocab_size": tokenizer.vocab_size}
    values = {**shape, "context_length": context_length, "position": position}
    config = with_values(default_config(), values)
    run = RunFolder.create(Path("checkpoints"), name, config, tokenizer)
    torch.manual_seed(1)
    model = {n: t.clone() for n, t in model_tensors(GPTModel(config.model)).items()}
    state = {"progress": TrainState().to_json(), "scaler": {}}
    metadata = {"tokenizer": tokenizer.content_hash}
    saved = Checkpoint(0, model, {}, state, metadata, run.small_files())
    run.checkpoints.save(saved, is_best=True, keep=2)
    return run


@pytest.fixture
def text(folder):
    (folder / "story.txt").write_text(words(40_000), encoding="utf-8")


def lengths(name: str) -> tuple[int, int | None]:
    config = RunFolder(f"checkpoints/{name}").config
    return config.model.context_length, config.train.sequence_length


class TestBegun:
    def test_a_long_context_is_kept_and_not_trained_on(self, text, run):
        """Modest sequences, told in one line; the model looks back as far as before."""
        base(40_960)
        result = run("train", "story.txt", "--from", "base", "--run", "more", *QUICK)
        assert result.code == 0, result.err
        assert lengths("more") == (40_960, 1024)
        assert sum("1024" in line and "40960" in line for line in result.lines) == 1
        assert "2,048 tokens each in sequences of 1,024" in result.out
        model, _, _ = load_model(RunFolder("checkpoints/more"))
        assert model.config.context_length == 40_960

    @pytest.mark.parametrize("position", ["rotary", "learned"])
    def test_a_named_length_is_that_of_the_sequences(self, text, run, position):
        """--context-length never shrinks a trained model; a resumed run does as before."""
        base(64, position)
        begin = ["train", "story.txt", "--from", "base", "--context-length", "32", *QUICK]
        assert run(*begin, "--run", "more").code == 0
        assert lengths("more") == (64, 32)
        resumed = run("train", "--resume", "more", "--max-steps", "4")
        assert resumed.code == 0 and "64 tokens each in sequences of 32" in resumed.out
        assert run("train", "story.txt", "--resume", "more", "--context-length", "16").code == 2

    def test_a_longer_one_lets_rotary_positions_grow(self, text, run):
        base(64)
        begin = ["train", "story.txt", "--from", "base", "--context-length", "96", *QUICK]
        assert run(*begin, "--run", "more").code == 0
        assert lengths("more") == (96, 96)

    def test_learned_positions_cannot_grow(self, text, run):
        base(64, "learned")
        begin = ["train", "story.txt", "--from", "base", "--context-length", "96"]
        for more in ([], ["--show-settings"]):
            result = run(*begin, *QUICK, *more)
            assert_refused(result, 2, "context_length 96", "learned positions for 64")

    @pytest.mark.parametrize("position", ["rotary", "learned"])
    def test_a_short_text_shortens_the_sequences_only(self, folder, run, position):
        base(512, position)
        (folder / "short.txt").write_text(words(600), encoding="utf-8")
        assert run("train", "short.txt", "--from", "base", "--run", "more", *QUICK).code == 0
        context, sequence = lengths("more")
        assert context == 512 and sequence is not None and 8 <= sequence < 300

    def test_evaluation_takes_the_sequences_of_training(self, text, run):
        """Both of a run that was trained here, and of one that was only imported."""
        base(40_960)
        begin = ["train", "story.txt", "--from", "base", "--context-length", "32", *QUICK]
        assert run(*begin, "--run", "more").code == 0
        more = RunFolder("checkpoints/more")
        best = min(record["val_loss"] for record in more.metrics())
        assert f"loss {best:.4f}" in run("evaluate", "--run", "more", "--device", "cpu").out
        assert run("evaluate", "story.txt", "--run", "base", "--device", "cpu").code == 0

    def test_the_batch_fits_the_memory(self, text, run, monkeypatch):
        """Micro-batches become smaller and more: the step is the same."""
        base(1024, d_model=32)
        config = RunFolder("checkpoints/base").config
        train = with_values(config, {"batch_size": 4, "device": "cpu", "dtype": "float32"}).train
        device = torch.device("cpu")
        free = estimate_training_memory(config.model, train, device, saving=True)
        monkeypatch.setattr("myllm.system.device.available_memory_bytes", lambda: free)
        flags = "--max-steps 1 --device cpu --dtype float32 --attention flash --run more".split()
        result = run("train", "story.txt", "--from", "base", *flags)
        assert result.code == 0, result.err
        chosen = RunFolder("checkpoints/more").config.train
        assert chosen.batch_size <= 4 and chosen.batch_size * chosen.accumulation_steps == 16
        result = run("train", "story.txt", "--from", "base", "--batch-size", "16", *flags)
        assert result.code == 6 and "--context-length" in result.lines[-1]
        assert "--d-model" not in result.lines[-1]


class TestNew:
    def test_a_new_model_may_look_back_further(self, text, run):
        flags = "--d-model 16 --n-layers 1 --n-heads 2 --context-length 64".split()
        flags += ["--sequence-length", "24", "--run", "new", *QUICK]
        assert run("train", "story.txt", "--tokenizer", "char", *flags).code == 0
        assert lengths("new") == (64, 24)
        assert len(list(map(len, main_batch("new")))) == 2

    def test_longer_than_it_looks_back(self, text, run):
        result = run("train", "story.txt", "--context-length", "16", "--sequence-length", "17")
        assert_refused(result, 2, "sequence_length 17", "16", "--context-length")
        assert_refused(run("train", "story.txt", "--sequence-length", "0"), 2, "sequence_length 0")


def main_batch(name: str) -> list[str]:
    """The texts of a run's first batch."""
    from myllm import load

    texts = [text for _, text in load(name).batch(0)]
    assert all(len(text) == 25 for text in texts)
    assert main(["inspect-batch", name, "0"]) == 0
    return texts
