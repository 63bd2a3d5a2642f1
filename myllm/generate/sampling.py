"""Room: logits (V,) → the id that is drawn. Pure functions; knows nothing of models or text."""

from __future__ import annotations

from collections.abc import Iterable

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
    return int(torch.multinomial(probabilities, 1, generator=rng))


def filter_probabilities(probabilities: Tensor, sampling: SamplingConfig) -> Tensor:
    """Sets the unlikely ones of `probabilities` (V,) to 0; the likeliest always stays."""
    p = probabilities
    if sampling.top_k is not None and sampling.top_k < len(p):
        p = torch.where(p >= p.topk(sampling.top_k).values[-1], p, 0.0)
    if sampling.top_p is not None and sampling.top_p < 1:
        # All those below this together are less than half of what is dropped: sorting the rest
        # finds the same ones, in a tenth of the time.
        least, total = (1 - sampling.top_p) / (2 * len(p)) * p.sum(), p.sum()
        likely = (p >= least).nonzero().squeeze(-1)
        values, order = p[likely].sort(descending=True, stable=True)
        before = values.cumsum(-1) - values  # what the likelier ones sum to
        kept = likely[order[before < sampling.top_p * total]]
        p = torch.zeros_like(p).index_copy(0, kept, p[kept])
    if sampling.min_p is not None:
        p = torch.where(p >= sampling.min_p * p.max(), p, 0.0)
    return p
