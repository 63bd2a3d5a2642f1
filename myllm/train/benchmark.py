"""Room: a model → how fast it is trained on this machine. Knows nothing of text."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from myllm.config import TrainConfig
from myllm.data.dataset import Batch
from myllm.model.gpt import GPTModel
from myllm.system.device import autocast, choose_dtype
from myllm.system.timing import Timing, median_seconds, timing_of
from myllm.train.loss import mean_loss
from myllm.train.optim import build_optimizer


def benchmark_forward(
    model: GPTModel,
    batch_size: int,
    seq_len: int,
    n_iterations: int = 100,
    config: TrainConfig = TrainConfig(),
) -> Timing:
    """Times forward passes over random tokens (B, T), without gradients.

    Args:
        model: on the device to measure.
        batch_size: B.
        seq_len: T, at most the context length.
        n_iterations: timed passes, after a tenth as many that warm up.
        config: precision.
    """
    tokens = _random_tokens(model, batch_size, seq_len)
    device = tokens.device
    precision = autocast(device, choose_dtype(device, config.dtype))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), precision:
            seconds = median_seconds(lambda: model(tokens), device, n_iterations)
    finally:
        model.train(was_training)
    flops = model.estimate_flops_per_token(seq_len) / 3
    return timing_of(seconds, batch_size * seq_len, flops, device)


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
    seconds = median_seconds(step, device, n_iterations, budget_s)
    flops = model.estimate_flops_per_token(seq_len)
    return timing_of(seconds, batch_size * seq_len, flops, device)


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
    batch = random_batch(model, batch_size, seq_len)
    device = batch.tokens.device
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


def measure_peak_flops(
    device: torch.device, dtype: torch.dtype, size: int = 0, budget_s: float = math.inf
) -> float:
    """The fastest matrix product of this machine, FLOP/s: what utilisation is a share of."""
    size = size or (8192 if device.type == "cuda" else 1536)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, device, 10, budget_s)


def random_batch(model: GPTModel, batch_size: int, seq_len: int) -> Batch:
    """Random tokens (B, T) on the model's device, which cost as much to learn from as a text."""
    tokens = _random_tokens(model, batch_size, seq_len)
    return Batch(tokens, tokens, torch.ones_like(tokens, dtype=torch.bool))


def _random_tokens(model: GPTModel, batch_size: int, seq_len: int) -> torch.Tensor:
    device = model.token_embedding.weight.device
    return torch.randint(model.config.vocab_size, (batch_size, seq_len), device=device)
