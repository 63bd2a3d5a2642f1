"""A run and its token file that an earlier version saved: all of it still works, and is resumed.

tests/saved_run holds them. It was trained with float32 on a CPU, so that it can be repeated.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from myllm.cli import main
from myllm.data.prepare import prepare
from myllm.runs.folder import RunFolder
from myllm.runs.weights import load_model

SAVED = Path(__file__).parent / "saved_run"


@pytest.fixture
def run(folder) -> RunFolder:
    """The saved run, its token file and its text, where its configuration expects them."""
    shutil.copytree(SAVED / "runs", "checkpoints")
    shutil.copytree(SAVED / "tokens", "data")
    shutil.copy(SAVED / "story.txt", "story.txt")
    return RunFolder("checkpoints/before")


@pytest.fixture
def no_preparing(monkeypatch):
    monkeypatch.setattr("myllm.data.prepare._make", lambda *_, **__: pytest.fail("prepared again"))


def test_it_loads(run):
    assert run.checkpoints.steps() == [4, 8]
    assert run.checkpoints.best_step() == run.checkpoints.newest_good() == 8
    assert [record["step"] for record in run.metrics()] == [4, 8]
    model, tokenizer, checkpoint = load_model(run)
    assert model.config == run.config.model and tokenizer.vocab_size == 300
    assert checkpoint.metadata["torch"] and checkpoint.step == 8


def test_its_token_file_is_found(run, no_preparing):
    names = sorted(path.name for path in Path("data").iterdir())
    for vocab_size, tokenizer in ((300, None), (0, run.tokenizer)):
        found = prepare(run.config.text, vocab_size, tokenizer)
        assert found.folder == Path("data") / names[0]
        assert found.n_tokens == 2732 and found.n_characters == 4000
    assert sorted(path.name for path in Path("data").iterdir()) == names


def test_every_verb_takes_it(run, no_preparing, capsys):
    assert main(["verify", "before"]) == 0
    assert main("generate the --run before --max-new-tokens 5 --device cpu".split()) == 0
    assert main(["evaluate", "--run", "before", "--device", "cpu"]) == 0
    measured = capsys.readouterr().out
    best = min(record["val_loss"] for record in run.metrics())
    assert f"loss {best:.4f} nats per token" in measured


def test_it_is_resumed_to_the_same_weights(run, no_preparing):
    """From step 4, with the text's batches, the optimizer's state and the dropout of that run.

    On the machine that saved it, to the same bits. Others round the products otherwise, bfloat16
    in Muon above all: that is 1.5 % of what a tensor moves since step 4, while another seed or a
    lost optimizer state is more than 100 % of it.
    """
    saved = run.checkpoints.load()
    shutil.rmtree(run.checkpoints.folder(8))
    before = RunFolder(run.path).checkpoints.load()
    assert main(["train", "--resume", "before", "--quiet"]) == 0
    resumed = RunFolder(run.path).checkpoints.load()
    assert resumed.step == 8 and resumed.state.keys() == saved.state.keys()
    for what in ("model", "optimizer"):
        start, old, new = (getattr(point, what) for point in (before, saved, resumed))
        assert start.keys() == old.keys() == new.keys()
        for name in old:
            moved = (old[name] - start[name]).norm()
            assert moved > 0 and (new[name] - old[name]).norm() <= 0.1 * moved, name
    names = ("step", "train_loss", "val_loss")
    assert [run.metrics()[-1][name] for name in names] == pytest.approx(
        [8, *(_last_record(name) for name in names[1:])], abs=5e-5
    )


def _last_record(name: str) -> float:
    return float(RunFolder(SAVED / "runs" / "before").metrics()[-1][name])
