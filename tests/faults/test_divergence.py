"""NaN, spikes and too little memory: found, told, and where asked for, survived."""

from __future__ import annotations

import dataclasses
import logging
import math

import numpy as np
import pytest
import torch

from myllm.config import RunConfig, TrainConfig
from myllm.data.dataset import TextDataset, batch_number
from myllm.errors import NonFiniteError, OutOfMemoryError
from myllm.model import GPTModel
from myllm.runs.folder import RunFolder
from myllm.train import Trainer
from myllm.train.state import LossWatch

CONFIG = TrainConfig(
    batch_size=4, max_steps=12, eval_interval=3, warmup_steps=2, device="cpu", dtype="float32",
    on_nonfinite="rollback", keep=10,
)  # fmt: skip


class Poisoned(GPTModel):
    """Gives NaN for the batches that hold certain sequences, as a division by zero would."""

    bad: list[torch.Tensor] = []

    def features(self, tokens, cache=None, counts=None):
        x = super().features(tokens, cache, counts)
        if self.training and any(torch.equal(tokens, sequences) for sequences in self.bad):
            x = x * math.nan
        return x


@pytest.fixture
def make(tmp_path, tokenizer, longer_text, model_config):
    """Makes a trainer; the batches of `bad` numbers lead to NaN."""
    tokens = np.array(tokenizer.encode(longer_text[:1600]), np.uint16)

    def build(name="run", bad=(), kind=Poisoned, **changes) -> Trainer:
        config = dataclasses.replace(CONFIG, **changes)
        folder = tmp_path / name
        whole = RunConfig(model=model_config, train=config)
        if not folder.exists():
            RunFolder.create(tmp_path, name, whole, tokenizer)
        torch.manual_seed(config.seed)
        model = kind(dataclasses.replace(model_config, dropout=0.1))
        size = config.batch_size * config.accumulation_steps
        data = TextDataset(tokens, [(0, 1400)], 16, size, config.seed)
        model.bad = [data.batch(number).tokens for number in bad]
        run = RunFolder(folder)
        return Trainer(model, data, tokens, [(1400, 1600)], config, run)

    return build


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


class TestRollback:
    def test_leaves_the_batch_out_and_continues(self, make, caplog):
        trainer = make(bad=[7])
        trainer.train()
        assert trainer.step == 12 and trainer.state.skipped == [7]
        assert "rolled back to step 6; batch 7 is left out" in caplog.text
        assert trainer.run is not None
        events = [r for r in trainer.run.metrics() if r.get("event") == "rollback"]
        assert [(e["failed_step"], e["left_out_batch"]) for e in events] == [(7, 7)]
        steps = [r["step"] for r in trainer.run.metrics() if "val_loss" in r]
        assert steps == [3, 6, 9, 12]

    def test_lowers_the_learning_rate_once(self, make):
        one, two = make("one", bad=[4]), make("two", bad=[4, 8])
        one.train(), two.train()
        assert one.state.rate_scale == two.state.rate_scale == 0.5

    def test_before_the_first_evaluation(self, make):
        trainer = make(bad=[1])
        trainer.train()
        assert trainer.step == 12 and trainer.state.skipped == [1]

    def test_gives_up_after_three(self, make):
        with pytest.raises(NonFiniteError, match="given up after 3 rollbacks: step .*loss nan"):
            make(bad=range(4, 9)).train()

    def test_resumes_exactly(self, make):
        """Stopped after the rollback, between two checkpoints, and crashed before the next one."""
        whole = make("whole", bad=[4])
        whole.train()
        half = make("half", bad=[4], max_steps=12)
        half.train_data.batch, original = _stop_at(half, 8), half.train_data.batch
        with pytest.raises(ZeroDivisionError):
            half.train()
        assert original is not None
        resumed = make("half", bad=[4])
        resumed.resume()
        assert resumed.step == 6 and resumed.state.skipped == [4]
        resumed.train()
        for name, p in weights(whole).items():
            assert torch.equal(weights(resumed)[name], p), name


def _stop_at(trainer: Trainer, number: int):
    original = trainer.train_data.batch

    def batch(n: int):
        if n == number:
            raise ZeroDivisionError("a crash")
        return original(n)

    return batch


class TestStop:
    def test_tells_how_to_see_the_batch(self, make):
        with pytest.raises(
            NonFiniteError, match=r"step 5: .*its batch: myllm inspect-batch \S+ 5"
        ):
            make(bad=[5], on_nonfinite="stop").train()

    def test_weights_that_are_not_finite_are_not_saved(self, make):
        trainer = make(on_nonfinite="stop")
        trainer.train()
        with torch.no_grad():
            trainer.model.ln_final.weight[0] = math.inf
        with pytest.raises(NonFiniteError, match="ln_final.weight holds NaN or infinity"):
            trainer.save()


class TestSpikes:
    def test_are_told_once(self):
        watch = LossWatch()
        rng = np.random.default_rng(1)
        scores = [watch.add(3 + 0.1 * rng.standard_normal()) for _ in range(300)]
        assert scores == [None] * 300
        assert (watch.add(9.0) or 0) > 6
        assert [watch.add(3 + 0.1 * rng.standard_normal()) for _ in range(50)] == [None] * 50

    def test_a_falling_loss_has_none(self):
        watch = LossWatch()
        assert all(watch.add(8 * 0.99**i) is None for i in range(500))

    def test_in_training(self, make, caplog):
        trainer = make(max_steps=60, eval_interval=60, on_nonfinite="stop")
        plain = trainer.train_step.loss

        def spiking(model, batch):
            nats, n_targets = plain(model, batch)
            return nats + (50 * n_targets if trainer.step == 50 else 0), n_targets

        trainer.train_step.loss = spiking
        trainer.train()
        assert "step 51: the loss rose to" in caplog.text


class TestMemory:
    class Small(GPTModel):
        """A model whose device holds few sequences."""

        fits = 2

        def features(self, tokens, cache=None, counts=None):
            if len(tokens) > self.fits:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super().features(tokens, cache, counts)

    def test_smaller_micro_batches_of_the_same_batch(self, make, caplog):
        caplog.set_level(logging.INFO)
        trainer = make(kind=self.Small, batch_size=8)
        trainer.train()
        assert (trainer.config.batch_size, trainer.config.accumulation_steps) == (2, 4)
        assert "--batch-size 2 --accumulation-steps 4" in caplog.text
        assert trainer.run is not None
        kept = trainer.run.config.train
        assert (kept.batch_size, kept.accumulation_steps) == (2, 4)
        other = make("other", batch_size=2, accumulation_steps=4)
        other.train()
        for name, p in weights(other).items():
            assert torch.equal(weights(trainer)[name], p), name

    def test_one_sequence_that_does_not_fit(self, make):
        class None_(self.Small):  # type: ignore[name-defined]
            fits = 0

        with pytest.raises(OutOfMemoryError, match=r"2.00 GiB.*--context-length 16"):
            make(kind=None_).train()


@pytest.mark.parametrize(
    "skipped, numbers",
    [([], [0, 1, 2, 3]), ([0], [1, 2, 3, 4]), ([2, 1], [0, 3, 4, 5]), ([2, 3], [0, 1, 4, 5])],
)
def test_batches_move_forward(skipped, numbers):
    assert [batch_number(step, skipped) for step in range(4)] == numbers
