"""Room: a model and a batch → nats, and how many targets they are of.

Knows nothing of optimizers or files.

Another loss is a function with the signature of `LossFunction`, given to `Trainer`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from myllm.data.dataset import Batch
from myllm.model.gpt import GPTModel

# The sum of nats over the targets that count (a float32 scalar), and the number of those targets:
# sums, as means of micro-batches with unequal numbers cannot be averaged.
LossFunction = Callable[[GPTModel, Batch], tuple[Tensor, int | Tensor]]

LOGITS_AT_ONCE = 1 << 25  # numbers; more than that would dominate the memory of a step
_MASKED = -100  # the target that `F.cross_entropy` counts for nothing


def language_loss(model: GPTModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The negative log-likelihood of the targets, without ever holding all of their logits.

    Where they are many, they are computed for some rows at a time, and again in the backward
    pass: a third more time for the head, and for a vocabulary of 50,257 and 16 sequences of 1,024
    tokens 8 GB less.

    Args:
        model: gives features and head.
        batch: on the model's device; masked targets count for nothing (law 10).

    Returns:
        The sum of nats, a float32 scalar, and the number of targets counted, an int64 scalar.
    """
    features = model.features(batch.tokens).flatten(0, 1)  # (B · T, C)
    labels = batch.targets.masked_fill(~batch.mask, _MASKED).flatten()  # (B · T,)

    def nats_of(part: Tensor, part_labels: Tensor) -> Tensor:
        logits = model.lm_head(part).float()  # (rows, V)
        return F.cross_entropy(logits, part_labels, ignore_index=_MASKED, reduction="sum")

    n_targets = batch.mask.sum()
    rows = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    if len(labels) <= rows:
        return nats_of(features, labels), n_targets
    parts = zip(torch.split(features, rows), torch.split(labels, rows))
    nats = [checkpoint(nats_of, *part, use_reentrant=False) for part in parts]
    return torch.stack(nats).sum(), n_targets


def mean_loss(model: GPTModel, batch: Batch, loss: LossFunction = language_loss) -> Tensor:
    """Nats per counted target of a batch that is computed at once: a float32 scalar."""
    nats, n_targets = loss(model, batch)
    return nats / n_targets
