"""Room: ids and a cache → the logits of what follows. Knows nothing of text or sampling.

Each text is a row. A text of any length joins the others by a prefill in a cache of its own and
`KVCache.join`; after that, one call a token serves all of them. Where there are kernels for the
model (`kernels.decode_cpu`), they compute; the logits are the same to 1e-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from myllm.kernels.decode_cpu import decoder_of
from myllm.model.cache import Cache, KVCache
from myllm.model.gpt import GPTModel


def prefill(
    model: GPTModel, tokens: Tensor, cache: Cache, counts: Sequence[int] | None = None
) -> Tensor:
    """Reads texts, or what follows what the cache holds of them.

    Args:
        model: in evaluation mode.
        tokens: (B, T), shorter texts padded on the right by any id.
        cache: extended in place.
        counts: how many of its T tokens each text has, at least one; all of them by default.

    Returns:
        The logits (B, V) of what follows each text.

    Raises:
        InputError: a text becomes longer than the context.
    """
    if (decoder := decoder_of(model, cache)) is not None:
        return decoder(tokens, cast(KVCache, cache), counts)
    features = model.features(tokens, cache, counts)  # (B, T, C)
    if counts is None:
        last = features[:, -1]  # (B, C)
    else:
        assert min(counts) > 0
        last = features[torch.arange(len(counts)), torch.tensor(counts) - 1]  # (B, C)
    logits: Tensor = model.lm_head(last)  # (B, V)
    return logits


def decode_one_token(model: GPTModel, ids: Tensor, cache: Cache) -> Tensor:
    """Reads one more token of each text: `ids` (B,) → the logits (B, V) of what follows."""
    return prefill(model, ids[:, None], cache)
