"""Room: features → logits, or how surprising labels are. Knows nothing of the layers below."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from myllm.model.roles import Role

LOGITS_AT_ONCE = 1 << 25  # numbers; more than that would dominate the memory of a step
MASKED = -100  # the label that `F.cross_entropy` counts for nothing


class Head(nn.Linear):
    """The linear layer that gives the logits."""

    role = Role.HEAD

    def nats(self, features: Tensor, labels: Tensor) -> Tensor:
        """How surprising the labels are, without ever holding all of the logits.

        Where they are many, they are computed for some rows at a time, and again in the backward
        pass: a third more time for the head, and for a vocabulary of 50,257 and 16 sequences of
        1,024 tokens 8 GB less.

        Args:
            features: (n, C).
            labels: (n,); those that are `MASKED` count for nothing.

        Returns:
            The sum of the negative log-likelihoods, a float32 scalar.
        """
        rows = max(1, LOGITS_AT_ONCE // self.out_features)
        if len(labels) <= rows:
            return self._nats_at_once(features, labels)
        parts = zip(torch.split(features, rows), torch.split(labels, rows))
        nats = [checkpoint(self._nats_at_once, *part, use_reentrant=False) for part in parts]
        return torch.stack(nats).sum()

    def _nats_at_once(self, features: Tensor, labels: Tensor) -> Tensor:
        logits = self(features).float()  # (n, V)
        return F.cross_entropy(logits, labels, ignore_index=MASKED, reduction="sum")
