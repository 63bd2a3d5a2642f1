"""Room: token ids → the batch of a step (`TextDataset`). Knows nothing of models or files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from myllm.errors import InputError


class TextDataset:
    """Token ids → the batch of a step, as a function of seed and step alone (law 3).

    An epoch cuts each range into windows side by side, from an offset drawn for that epoch, and
    shuffles them: every token is seen once per epoch, each time in another window. Nothing is
    kept between steps but a copy of the current epoch's order.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        ranges: Sequence[tuple[int, int]] | None = None,
        context_length: int = 128,
        batch_size: int = 16,
        seed: int = 1,
    ) -> None:
        """
        Args:
            tokens: all ids (n,), an array in memory or mapped from disk.
            ranges: the parts to take windows from; all of it by default.
            context_length: T, tokens of a window.
            batch_size: B, windows of a batch.
            seed: another seed gives another order.

        Raises:
            InputError: no range holds a window and what follows it.
        """
        self.tokens, self.context_length, self.batch_size = tokens, context_length, batch_size
        self.ranges = list(ranges) if ranges is not None else [(0, len(tokens))]
        self.seed = seed
        # one window less than fit, where possible, leaves room for any offset
        room = [(start, end - start - 1) for start, end in self.ranges]
        self._room = [(start, n) for start, n in room if n >= context_length]
        self._counts = [max(1, n // context_length - 1) for _, n in self._room]
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        if not self._counts:
            longest = max((n + 1 for _, n in room), default=0)
            raise InputError(
                f"the text has at most {longest} tokens in a row, a window needs "
                f"{context_length + 1}: take a smaller --context-length or a longer text"
            )

    def __len__(self) -> int:
        """Windows of an epoch."""
        return sum(self._counts)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The tokens and targets (B, T) of a step, int64 on the CPU."""
        starts = self.window_starts(step)
        rows = np.stack([self.tokens[s : s + self.context_length + 1] for s in starts])
        windows = torch.from_numpy(rows.astype(np.int64))  # (B, T + 1)
        return windows[:, :-1], windows[:, 1:]

    def window_starts(self, step: int) -> list[int]:
        """Where the windows of a step's batch begin in `tokens`."""
        first = step * self.batch_size
        index = range(first, first + self.batch_size)
        return [int(self._epoch_starts(i // len(self))[i % len(self)]) for i in index]

    def _epoch_starts(self, epoch: int) -> np.ndarray:
        """Where the windows of an epoch begin, in the order of their use."""
        if self._epoch[0] != epoch:
            rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            T = self.context_length
            starts = [
                start + rng.integers(0, n - count * T, endpoint=True) + T * np.arange(count)
                for (start, n), count in zip(self._room, self._counts)
            ]
            self._epoch = (epoch, rng.permutation(np.concatenate(starts)))
        return self._epoch[1]


def batch_number(step: int, skipped: Sequence[int]) -> int:
    """Which batch a step learns from: those that a run leaves out move the others forward."""
    number = step
    for left_out in sorted(skipped):
        number += left_out <= number
    return number
