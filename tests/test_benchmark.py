"""Benchmarks measure what they say."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from myllm.config import TrainConfig
from myllm.train.benchmark import (
    benchmark_forward,
    benchmark_generation,
    benchmark_training_step,
    measure_peak_flops,
    run_benchmark,
)


class TestBenchmark:
    @pytest.fixture
    def clock(self, monkeypatch):
        """A clock that advances by half a second whenever it is read."""
        reads = itertools.count()
        monkeypatch.setattr("time.perf_counter", lambda: 0.5 * next(reads))

    def test_forward(self, small_model, clock):
        """By a clock that is known, and PyTorch's own count of operations; the estimate takes
        vectors for matrices, a fourteenth of so small a model."""
        before = [p.clone() for p in small_model.parameters()]
        timing = benchmark_forward(small_model, batch_size=2, seq_len=8, n_iterations=3)
        assert (timing.seconds, timing.tokens_per_second) == (0.5, 32.0)
        with FlopCounterMode(display=False) as counter:
            small_model(torch.zeros(2, 8, dtype=torch.long))
        assert timing.flops_per_second == pytest.approx(2 * counter.get_total_flops(), rel=0.1)
        assert timing.peak_memory_bytes > 0 and small_model.training
        assert all(torch.equal(p, q) for p, q in zip(before, small_model.parameters()))

    def test_training_step_updates(self, small_model, clock):
        tokens = torch.zeros(2, 8, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            small_model(tokens).sum().backward()
        before = small_model.blocks[0].attention.W_q.weight.clone()
        timing = benchmark_training_step(small_model, 2, 8, n_iterations=3)
        assert (timing.seconds, timing.tokens_per_second) == (0.5, 32.0)
        assert timing.flops_per_second == pytest.approx(2 * counter.get_total_flops(), rel=0.1)
        assert not torch.equal(before, small_model.blocks[0].attention.W_q.weight)

    def test_generation_writes_that_many(self, small_model, monkeypatch):
        seen = []
        small_model.register_forward_hook(lambda m, args, out: seen.append(args[0].shape))
        benchmark_generation(small_model, batch_size=2, seq_len=5, n_iterations=1)
        assert set(seen) == {(2, 1)} and len(seen) == 5 * 3  # two runs warm up

    def test_peak(self):
        assert measure_peak_flops(torch.device("cpu"), torch.float32, 128) > 1e8

    def test_all(self, model_config):
        peak, timings = run_benchmark(model_config, TrainConfig(batch_size=2, device="cpu"), 2)
        assert peak > 0 and list(timings) == ["forward", "training step", "generation"]

    @pytest.mark.gpu
    def test_cuda(self, model_config):
        _, timings = run_benchmark(model_config, TrainConfig(batch_size=2, device="cuda"), 5)
        assert timings["forward"].seconds > 0
