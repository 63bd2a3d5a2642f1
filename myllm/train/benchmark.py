"""Room: a model → its speed and memory on this machine. Knows nothing of text."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from myllm.config import GPTConfig, TrainConfig
from myllm.data.dataset import Batch
from myllm.model.cache import KVCache
from myllm.model.gpt import GPTModel
from myllm.system.device import (
    autocast,
    choose_attention,
    choose_device,
    choose_dtype,
    peak_memory_bytes,
    synchronize,
)
from myllm.train.loss import mean_loss
from myllm.train.optim import build_optimizer


@dataclass(frozen=True)
class Timing:
    """What a benchmark measured.

    Attributes:
        seconds: median time of one iteration.
        tokens_per_second: tokens of one iteration over that time.
        flops_per_second: floating-point operations over that time, by the usual estimate.
        peak_memory_bytes: the most memory held so far.
    """

    seconds: float
    tokens_per_second: float
    flops_per_second: float
    peak_memory_bytes: int


def benchmark_forward(
    model: GPTModel, batch_size: int, seq_len: int, n_iterations: int = 100
) -> Timing:
    """Times forward passes over random tokens (B, T), without gradients.

    Args:
        model: on the device to measure.
        batch_size: B.
        seq_len: T, at most the context length.
        n_iterations: timed passes, after a tenth as many that warm up.
    """
    tokens = _random_tokens(model, batch_size, seq_len)
    device = tokens.device
    precision = autocast(device, choose_dtype(device))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), precision:
            seconds = _median_seconds(lambda: model(tokens), device, n_iterations)
    finally:
        model.train(was_training)
    flops = model.estimate_flops_per_token(seq_len) / 3
    return _timing(seconds, batch_size * seq_len, flops, device)


def benchmark_training_step(
    model: GPTModel,
    batch_size: int,
    seq_len: int,
    n_iterations: int = 100,
    config: TrainConfig = TrainConfig(),
    budget_s: float = math.inf,
) -> Timing:
    """Times whole training steps: forward, loss, backward, update. Changes the weights.

    Args:
        model: on the device to measure.
        batch_size: B.
        seq_len: T, at most the context length.
        n_iterations: timed steps, after a tenth as many that warm up.
        config: optimizer and precision.
        budget_s: after so many seconds no step is begun, but for a first one that is timed.
    """
    device = model.token_embedding.weight.device
    step = training_step(model, batch_size, seq_len, config)
    seconds = _median_seconds(step, device, n_iterations, budget_s)
    flops = model.estimate_flops_per_token(seq_len)
    return _timing(seconds, batch_size * seq_len, flops, device)


def training_step(
    model: GPTModel, batch_size: int, seq_len: int, config: TrainConfig, updates: bool = True
) -> Callable[[], None]:
    """A function that does a whole training step on random tokens.

    Args:
        model: on its device.
        batch_size: B.
        seq_len: T, at most the context length.
        config: optimizer and precision.
        updates: whether it changes the weights, or leaves that part out.
    """
    tokens = _random_tokens(model, batch_size, seq_len)
    batch = Batch(tokens, tokens, torch.ones_like(tokens, dtype=torch.bool))
    device = tokens.device
    optimizer = build_optimizer(model, config)
    precision = choose_dtype(device, config.dtype)
    model.train()

    def step() -> None:
        with autocast(device, precision):
            loss = mean_loss(model, batch)
        torch.autograd.backward(loss)
        if updates:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return step


def benchmark_generation(
    model: GPTModel, batch_size: int = 1, seq_len: int = 100, n_iterations: int = 10
) -> Timing:
    """Times writing `seq_len` tokens one by one with the cache."""
    tokens = _random_tokens(model, batch_size, seq_len)
    device = tokens.device
    was_training = model.training
    model.eval()

    def write() -> None:
        cache = KVCache(model.config)
        for t in range(seq_len):
            model(tokens[:, t : t + 1], cache)

    try:
        with torch.inference_mode():
            seconds = _median_seconds(write, device, n_iterations)
    finally:
        model.train(was_training)
    flops = model.estimate_flops_per_token(seq_len // 2) / 3
    return _timing(seconds, batch_size * seq_len, flops, device)


def measure_peak_flops(
    device: torch.device, dtype: torch.dtype, size: int = 0, budget_s: float = math.inf
) -> float:
    """The fastest matrix product of this machine, FLOP/s: what utilisation is a share of."""
    size = size or (8192 if device.type == "cuda" else 1536)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _median_seconds(lambda: a @ b, device, 10, budget_s)


def run_benchmark(
    config: GPTConfig, train: TrainConfig, n_iterations: int
) -> tuple[float, dict[str, Timing]]:
    """The user's quick view: the peak, and the timings by what was timed.

    Raises:
        ConfigError: a value out of its limits.
    """
    device = choose_device(train.device)
    peak = measure_peak_flops(device, choose_dtype(device, train.dtype))
    attention = config.attention or choose_attention(device)
    model = GPTModel(replace(config, attention=attention)).to(device)
    B, T = train.batch_size, config.context_length
    return peak, {
        "forward": benchmark_forward(model, B, T, n_iterations),
        "training step": benchmark_training_step(model, B, T, n_iterations, train),
        "generation": benchmark_generation(model, 1, min(T, 100), max(1, n_iterations // 10)),
    }


def _random_tokens(model: GPTModel, batch_size: int, seq_len: int) -> torch.Tensor:
    device = model.token_embedding.weight.device
    return torch.randint(model.config.vocab_size, (batch_size, seq_len), device=device)


def _median_seconds(
    work: Callable[[], object], device: torch.device, n_iterations: int, budget_s: float = math.inf
) -> float:
    deadline = time.perf_counter() + budget_s
    for i in range(max(2, n_iterations // 10)):
        if not i or time.perf_counter() < deadline:
            work()
    times: list[float] = []
    for _ in range(n_iterations):
        synchronize(device)
        start = time.perf_counter()
        if times and start > deadline:
            break
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _timing(seconds: float, n_tokens: int, flops: float, device: torch.device) -> Timing:
    return Timing(
        seconds, n_tokens / seconds, flops * n_tokens / seconds, peak_memory_bytes(device)
    )
