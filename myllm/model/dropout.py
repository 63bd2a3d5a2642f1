"""Room: features → the same with some set to zero while training. Knows nothing of the model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Sets a share of the features to zero while training, and scales the others up.

    On a CPU what is dropped is a function of a seed, drawn at each call, and of the place
    (`random_words`): any kernel computes it as it goes, and four decisions come from each word. So
    the rate is a multiple of 1/256, on every device alike: `GPTConfig.dropout_rate`.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same."""
        if not self.training or not self.rate:
            return x
        if not x.is_cpu:
            return F.dropout(x, self.rate)
        n_words = -(-x.shape[-1] // 4)
        words = random_words(x.numel() // x.shape[-1] * n_words, dropout_seed())
        # the k-th byte of a row's words decides about the k-th quarter of its features
        decisions = words.view(torch.uint8).view(*x.shape[:-1], n_words, 4).mT.flatten(-2)
        keep = decisions[..., : x.shape[-1]] >= self.n_dropped
        return x * keep * (256 / (256 - self.n_dropped))

    @property
    def n_dropped(self) -> int:
        """Of 256 features."""
        return round(self.rate * 256)


def dropout_seed() -> Tensor:
    """A seed for `random_words`, an int32 scalar, drawn from PyTorch's generator."""
    return torch.randint(2**31 - 1, (), dtype=torch.int32)


def random_words(n: int, seed: Tensor) -> Tensor:
    """32 random bits for each of n places, int32 (n,): products and shifts that mix the place's
    number with the seed (as in Chris Wellons' "Prospecting for hash functions", 2018)."""
    x = torch.arange(n, dtype=torch.int32) * -1640531535
    x = (x ^ ((x >> 15) & 0x1FFFF)) ^ seed
    x = x * 2146121005
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * -2073254261
    return x ^ ((x >> 16) & 0xFFFF)
