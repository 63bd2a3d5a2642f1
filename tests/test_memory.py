"""The memory that training takes, told beforehand."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from myllm.cli import main
from myllm.config import GPTConfig, TrainConfig
from myllm.errors import OutOfMemoryError
from myllm.model import GPTModel
from myllm.train.memory import check_memory, estimate_training_memory
from myllm.train.optim import build_optimizer, optimizer_tensors

CPU = torch.device("cpu")
SHAPE = GPTConfig(
    vocab_size=512, context_length=128, d_model=256, n_layers=4, n_heads=4, dropout=0.0
)
TRAIN = TrainConfig(batch_size=16, device="cpu", dtype="float32")


def estimate(**changes) -> int:
    shape = {k: v for k, v in changes.items() if hasattr(SHAPE, k)}
    train = {k: v for k, v in changes.items() if hasattr(TRAIN, k)}
    return estimate_training_memory(
        dataclasses.replace(SHAPE, **shape), dataclasses.replace(TRAIN, **train), CPU
    )


class TestEstimate:
    def test_follows_what_is_known(self):
        """Activations grow with the batch; weights and optimizer do not."""
        small, large, larger = (estimate(batch_size=B) for B in (8, 16, 32))
        assert larger - large == pytest.approx(2 * (large - small), rel=0.01)
        assert estimate(n_layers=8, batch_size=1) > 1.5 * estimate(batch_size=1)

    def test_no_memory_is_taken(self):
        """A terabyte is estimated on any machine."""
        assert estimate(d_model=8192, n_heads=64, n_layers=80, batch_size=64) > 1e12

    def test_what_saves_memory(self):
        plain = estimate()
        assert estimate(dtype="bfloat16") < 0.95 * plain
        assert estimate(activation_checkpointing=True) < 0.6 * plain
        assert estimate(batch_size=4, accumulation_steps=4) < 0.6 * plain
        assert estimate(n_kv_heads=1) < plain

    def test_adamw_keeps_more_than_muon(self):
        """By what their states hold after a real step: one more number for each hidden weight."""
        held = {}
        for optimizer in ("adamw", "muon"):
            model = GPTModel(SHAPE)
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            step = build_optimizer(model, dataclasses.replace(TRAIN, optimizer=optimizer))
            step.step()
            held[optimizer] = sum(t.nbytes for t in optimizer_tensors(model, step).values())
        more = held["adamw"] - held["muon"]
        assert more == pytest.approx(4 * 12 * 4 * 256**2, rel=0.01)  # 12.6 MB
        estimated = estimate(optimizer="adamw") - estimate(optimizer="muon")
        assert more < estimated < 1.5 * more  # with what CPUs' allocator cannot use again


class TestCheck:
    @pytest.fixture
    def free(self, monkeypatch):
        def prepare(n_bytes: int | None) -> None:
            monkeypatch.setattr("myllm.system.device.available_memory_bytes", lambda: n_bytes)

        return prepare

    def test_a_run_that_fits(self, free):
        free(2 * estimate())
        check_memory(SHAPE, TRAIN, CPU)

    def test_a_run_that_does_not(self, free):
        free(int(0.8 * estimate()))
        with pytest.raises(OutOfMemoryError, match=r"GiB are free: take --batch-size \d "):
            check_memory(SHAPE, TRAIN, CPU)

    def test_each_remedy_helps(self, free):
        """The batch that is named fits; of a model that is too large itself no batch is named."""
        free(int(0.8 * estimate()))
        with pytest.raises(OutOfMemoryError) as raised:
            check_memory(SHAPE, TRAIN, CPU, shape_is_free=False)
        B, k = re.findall(r"--batch-size (\d+) --accumulation-steps (\d+)", str(raised.value))[0]
        assert int(B) * int(k) == 16
        check_memory(SHAPE, dataclasses.replace(TRAIN, batch_size=int(B)), CPU)
        assert "--context-length" in str(raised.value) and "--d-model" not in str(raised.value)
        free(20 << 20)
        with pytest.raises(OutOfMemoryError, match="free: take a smaller --d-model") as raised:
            check_memory(SHAPE, TRAIN, CPU)
        assert "--batch-size" not in str(raised.value)

    def test_shorter_sequences_take_less(self):
        short = estimate(sequence_length=32)
        assert short < 0.6 * estimate()
        assert short == pytest.approx(estimate(context_length=32), rel=0.01)

    def test_unknown_or_other_memory_is_not_judged(self, free):
        free(None)
        check_memory(SHAPE, TRAIN, CPU)
        free(1)
        check_memory(SHAPE, TRAIN, torch.device("cuda"))

    def test_command_line(self, free, tmp_path, longer_text, monkeypatch, capsys):
        """Exit code 6, one line, no run folder left behind."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.txt").write_text(longer_text, encoding="utf-8")
        free(10_000_000)
        assert main(["train", "a.txt", "--max-steps", "5", "--device", "cpu"]) == 6
        assert "training would take about" in capsys.readouterr().err
        assert not (tmp_path / "checkpoints" / "a").exists()
