"""Room: a model and a batch → nats, and how many targets they are of.

Knows nothing of optimizers or files.

Another loss is a function with the signature of `LossFunction`, given to `Trainer`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from myllm.data.dataset import Batch
from myllm.model.gpt import GPTModel
from myllm.model.head import MASKED

# The sum of nats over the targets that count (a float32 scalar), and the number of those targets:
# sums, as means of micro-batches with unequal numbers cannot be averaged.
LossFunction = Callable[[GPTModel, Batch], tuple[Tensor, int | Tensor]]


def language_loss(model: GPTModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The negative log-likelihood of the targets.

    Args:
        model: gives features and head.
        batch: on the model's device; masked targets count for nothing (law 10).

    Returns:
        The sum of nats, a float32 scalar, and the number of targets counted, an int64 scalar.
    """
    features = model.features(batch.tokens).flatten(0, 1)  # (B · T, C)
    labels = batch.targets.masked_fill(~batch.mask, MASKED).flatten()  # (B · T,)
    return model.lm_head.nats(features, labels), batch.mask.sum()


def mean_loss(model: GPTModel, batch: Batch, loss: LossFunction = language_loss) -> Tensor:
    """Nats per counted target of a batch that is computed at once: a float32 scalar."""
    nats, n_targets = loss(model, batch)
    return nats / n_targets
