"""Benchmarks measure what they say."""

from __future__ import annotations

import dataclasses
import itertools
import re
import textwrap
from unittest.mock import Mock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from myllm.cli.benchmark import lines_of, lines_of_duel
from myllm.config import TrainConfig
from myllm.errors import ConfigError, InputError
from myllm.generate.benchmark import benchmark_generation, benchmark_reading
from myllm.speeds import measure_against, measure_speeds
from myllm.train.benchmark import (
    benchmark_forward,
    benchmark_training_step,
    measure_peak_flops,
)
from myllm.train.shares import is_product

TRAIN = TrainConfig(batch_size=2, device="cpu")


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

    def test_generation_writes_that_many(self, small_model):
        small_model.features = Mock(wraps=small_model.features)  # no kernels know that one
        benchmark_generation(small_model, n_rows=2, seq_len=5, n_iterations=1)
        shapes = [tuple(call.args[0].shape) for call in small_model.features.call_args_list]
        assert shapes == [(2, 1)] * 5 * 3  # two runs warm up

    def test_reading_is_one_pass(self, small_model, clock):
        timing = benchmark_reading(small_model, n_rows=2, seq_len=5, n_iterations=3)
        assert (timing.seconds, timing.tokens_per_second) == (0.5, 20.0)

    def test_reading_counts_the_head_once(self, small_model):
        """What is chosen from is computed of the last token alone."""
        timing = benchmark_reading(small_model, n_rows=2, seq_len=8, n_iterations=1)
        with FlopCounterMode(display=False) as counter:
            small_model.lm_head(small_model.features(torch.zeros(2, 8, dtype=torch.long))[:, -1])
        counted = timing.flops_per_second * timing.seconds
        assert counted == pytest.approx(counter.get_total_flops(), rel=0.1)

    def test_peak(self):
        assert measure_peak_flops(torch.device("cpu"), torch.float32, 128) > 1e8

    def test_all(self, model_config):
        found = measure_speeds(model_config, TRAIN, 2)
        assert found.peak > 0 and len(found.timings) == 6
        assert sum(found.shares.values()) == pytest.approx(1)
        assert min(found.shares.values()) >= 0 and found.shares["products"] > 0
        for width in (60, 80, 120):
            lines = "\n".join(lines_of(found, width)).split("\n")
            assert max(map(len, lines)) <= width and "writing 32 texts" in "".join(lines)
            percents = re.findall(r" (\d+)%", " ".join(lines).partition("kernels:")[2])
            assert sum(map(int, percents)) == 100

    @pytest.mark.parametrize(
        "name",
        ["aten::mm", "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT", "ampere_sgemm_128x64_nn",
         "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "triton_tem_fused_mm_3"],
    )  # fmt: skip
    def test_product(self, name):
        assert is_product(name)

    @pytest.mark.parametrize(
        "name",
        [
            "aten::mul",
            "triton_poi_fused_add_mm_4",
            "void pytorch_flash::flash_fwd_kernel<cutlass>",
        ],
    )
    def test_no_product(self, name):
        assert not is_product(name)

    @pytest.mark.gpu
    def test_cuda(self, model_config):
        found = measure_speeds(model_config, TrainConfig(batch_size=2, device="cuda"), 5)
        assert found.timings["forward pass"].seconds > 0
        assert sum(found.shares.values()) == pytest.approx(1)


class TestAgainst:
    NANOGPT = """
        from __future__ import annotations
        import torch
        from dataclasses import dataclass

        @dataclass
        class GPTConfig:
            block_size: int
            vocab_size: int
            n_layer: int
            n_head: int
            n_embd: int
            dropout: float
            bias: bool

        class GPT(torch.nn.Module):
            def __init__(self, config):
                super().__init__()
                print("number of parameters: many")
                self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)

            def forward(self, x, y):
                logits = self.table(x)
                return logits, torch.nn.functional.cross_entropy(logits.mT, y)
    """

    def test_nanogpt(self, model_config, tmp_path, capsys):
        (tmp_path / "model.py").write_text(textwrap.dedent(self.NANOGPT), encoding="utf-8")
        found = measure_against(str(tmp_path), model_config, TRAIN, 2)
        assert list(found.seconds) == ["MyLLM", "nanoGPT"] and min(found.seconds.values()) > 0
        assert found.parameters["nanoGPT"] == model_config.vocab_size**2
        assert "number of parameters" not in capsys.readouterr().out
        lines = "\n".join(lines_of_duel(found, 60)).split("\n")
        assert max(map(len, lines)) <= 60 and "times as long" in " ".join(lines)

    def test_transformers(self, model_config, capfd):
        pytest.importorskip("transformers")
        found = measure_against("transformers", model_config, TRAIN, 1)
        assert found.parameters["transformers"] > 0
        output = capfd.readouterr()
        assert output.out + output.err == ""

    @pytest.mark.parametrize("program", ["transformers", "a folder"])
    def test_what_has_no_like_is_told(self, model_config, program):
        shape = dataclasses.replace(model_config, d_model=32, n_heads=3, head_dim=16)
        with pytest.raises(ConfigError, match="d_model 32 .* n_heads 3"):
            measure_against(program, shape, TRAIN, 1)

    @pytest.mark.parametrize("content", [None, "GPT = 1", "def (", "GPT = GPTConfig = dict"])
    def test_what_is_not_there_is_told(self, model_config, tmp_path, content):
        if content is not None:
            (tmp_path / "model.py").write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match="nanoGPT"):
            measure_against(str(tmp_path), model_config, TRAIN, 1)
