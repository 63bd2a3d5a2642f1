"""Benchmarks measure what they say."""

from __future__ import annotations

import pytest
import torch

from myllm.benchmark import (
    benchmark_forward,
    benchmark_generation,
    benchmark_training_step,
    measure_peak_flops,
    run_benchmark,
)
from myllm.config import TrainConfig


class TestBenchmark:
    def test_forward(self, small_model):
        before = [p.clone() for p in small_model.parameters()]
        timing = benchmark_forward(small_model, batch_size=2, seq_len=8, n_iterations=3)
        assert timing.tokens_per_second == pytest.approx(16 / timing.seconds)
        flops = small_model.estimate_flops_per_token(8) / 3 * 16
        assert timing.flops_per_second == pytest.approx(flops / timing.seconds)
        assert timing.peak_memory_bytes > 0 and small_model.training
        assert all(torch.equal(p, q) for p, q in zip(before, small_model.parameters()))

    def test_training_step_updates(self, small_model):
        before = small_model.blocks[0].attention.W_q.weight.clone()
        timing = benchmark_training_step(small_model, 2, 8, n_iterations=3)
        assert timing.seconds > 0
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
