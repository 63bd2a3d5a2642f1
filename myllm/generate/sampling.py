"""Room: logits (V,) → the id that is drawn. Pure functions; knows nothing of models or text."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from myllm.config import SamplingConfig


def next_token(
    logits: Tensor, sampling: SamplingConfig, rng: torch.Generator, context: Iterable[int] = ()
) -> int:
    """Draws one id.

    Args:
        logits: (V,), float32 on the CPU.
        sampling: the settings, applied in this order: repetition penalty, temperature, top-k,
            top-p (arXiv 1904.09751), min-p (arXiv 2407.01082).
        rng: the source of the draw.
        context: ids whose repetition is penalised (arXiv 1909.05858).
    """
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(context)), dtype=torch.long)
        penalty = sampling.repetition_penalty
        values = logits[seen]
        logits = logits.index_copy(
            0, seen, torch.where(values > 0, values / penalty, values * penalty)
        )
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = filter_probabilities((logits / sampling.temperature).softmax(-1), sampling)
    return _draw(probabilities, rng)


def _draw(probabilities: Tensor, rng: torch.Generator) -> int:
    """An id with a chance in proportion to its entry (V,). `torch.multinomial` draws a number for
    each of the V, in five times as long."""
    sums = probabilities.cumsum(-1, dtype=torch.float64)
    point = sums[-1] * torch.rand((), dtype=torch.float64, generator=rng)
    return int(torch.searchsorted(sums, point, right=True))


def filter_probabilities(probabilities: Tensor, sampling: SamplingConfig) -> Tensor:
    """Sets the unlikely ones of `probabilities` (V,) to 0; the likeliest always stays."""
    p = probabilities
    if sampling.top_k is not None and sampling.top_k < len(p):
        p = torch.where(p >= p.topk(sampling.top_k).values[-1], p, 0.0)
    if sampling.top_p is not None and sampling.top_p < 1:
        # All those below this together are less than half of what is dropped: sorting the rest
        # finds the same ones, in a tenth of the time. By NumPy: PyTorch would wait for threads.
        values = p.numpy()
        total = values.sum()
        likely = np.flatnonzero(values >= (1 - sampling.top_p) / (2 * len(p)) * total)
        order = likely[np.argsort(-values[likely], kind="stable")]
        before = np.cumsum(values[order], dtype=np.float64) - values[order]  # the likelier ones
        kept = order[before < sampling.top_p * total]
        filtered = np.zeros_like(values)
        filtered[kept] = values[kept]
        p = torch.from_numpy(filtered)
    if sampling.min_p is not None:
        p = torch.where(p >= sampling.min_p * p.max(), p, 0.0)
    return p
