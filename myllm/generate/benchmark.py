"""Room: a model → how fast it reads and writes on this machine. Knows nothing of text."""

from __future__ import annotations

from collections.abc import Callable

import torch

from myllm.generate.decode import decode_one_token, prefill
from myllm.model.cache import KVCache
from myllm.model.gpt import GPTModel
from myllm.system.timing import Timing, median_seconds, timing_of


def benchmark_reading(
    model: GPTModel, n_rows: int = 1, seq_len: int = 100, n_iterations: int = 10
) -> Timing:
    """Times reading a prompt of `seq_len` tokens into an empty cache, of each row at once."""
    tokens = _random_tokens(model, n_rows, seq_len)

    def read() -> None:
        prefill(model, tokens, KVCache(model.config))

    flops = model.estimate_flops_per_token(seq_len) / 3
    flops -= 2 * model.lm_head.weight.numel() * (1 - 1 / seq_len)  # of the last token alone
    return _timing_without_gradients(model, read, n_iterations, n_rows * seq_len, flops)


def benchmark_generation(
    model: GPTModel, n_rows: int = 1, seq_len: int = 100, n_iterations: int = 10
) -> Timing:
    """Times writing `seq_len` tokens of each row one by one with the cache, which tokens they are
    being known."""
    tokens = _random_tokens(model, n_rows, seq_len)

    def write() -> None:
        cache = KVCache(model.config)
        for ids in tokens.T:
            decode_one_token(model, ids, cache)

    flops = model.estimate_flops_per_token(seq_len // 2) / 3
    return _timing_without_gradients(model, write, n_iterations, n_rows * seq_len, flops)


def _random_tokens(model: GPTModel, n_rows: int, seq_len: int) -> torch.Tensor:
    device = model.token_embedding.weight.device
    return torch.randint(model.config.vocab_size, (n_rows, seq_len), device=device)


def _timing_without_gradients(
    model: GPTModel, work: Callable[[], None], n_iterations: int, n_tokens: int, flops: float
) -> Timing:
    device, was_training = model.token_embedding.weight.device, model.training
    model.eval()
    try:
        with torch.inference_mode():
            seconds = median_seconds(work, device, n_iterations)
    finally:
        model.train(was_training)
    return timing_of(seconds, n_tokens, flops, device)
