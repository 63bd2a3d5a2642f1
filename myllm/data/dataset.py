"""Room: token ids → the `Batch` of a step (`TextDataset`). Knows nothing of models or files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from myllm.errors import InputError


class Batch(NamedTuple):
    """Sequences of one length, and which of their targets count.

    Attributes:
        tokens: (B, T), int64.
        targets: (B, T), int64: `targets[:, t]` follows `tokens[:, t]`. Where the mask is false,
            any valid id.
        mask: (B, T), bool: the targets that count.
    """

    tokens: Tensor
    targets: Tensor
    mask: Tensor

    @property
    def n_sequences(self) -> int:
        """B."""
        return self.tokens.shape[0]

    def split(self, n: int) -> list[Batch]:
        """The sequences in order, dealt to `n` micro-batches, whose sizes differ by one at most.

        >>> batch = Batch(*(torch.zeros(5, 3, dtype=torch.long),) * 3)
        >>> [part.n_sequences for part in batch.split(2)]
        [3, 2]
        """
        assert 1 <= n <= self.n_sequences
        return [Batch(*parts) for parts in zip(*(t.tensor_split(n) for t in self))]

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; a GPU takes it from memory that it reads without waiting."""
        here = (t.pin_memory() for t in self) if device.type == "cuda" else self
        return Batch(*(t.to(device, non_blocking=True) for t in here))


class TextDataset:
    """Token ids → the batch of a step, as a function of seed and step alone (law 3).

    An epoch cuts each range into sequences side by side, from an offset drawn for that epoch, and
    shuffles them: every token is seen once per epoch, each time in another sequence. Nothing
    is kept between steps but a copy of the current epoch's order.
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
            ranges: the parts to take sequences from; all of it by default.
            context_length: T, tokens of a sequence.
            batch_size: B, sequences of a batch.
            seed: another seed gives another order.

        Raises:
            InputError: no range holds a sequence and the token that follows it.
        """
        self.tokens, self.context_length, self.batch_size = tokens, context_length, batch_size
        self.ranges = list(ranges) if ranges is not None else [(0, len(tokens))]
        self.seed = seed
        # one sequence less than fits, where possible, leaves room for any offset
        room = [(start, end - start - 1) for start, end in self.ranges]
        self._room = [(start, n) for start, n in room if n >= context_length]
        self._counts = [max(1, n // context_length - 1) for _, n in self._room]
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        if not self._counts:
            longest = max((n + 1 for _, n in room), default=0)
            raise InputError(
                f"the text has at most {longest} tokens in a row, a sequence needs "
                f"{context_length + 1}: take a smaller --context-length or a longer text"
            )

    def __len__(self) -> int:
        """Sequences of an epoch."""
        return sum(self._counts)

    def batch(self, step: int) -> Batch:
        """The batch of a step, on the CPU; all of its targets count."""
        starts = self.sequence_starts(step)
        rows = np.stack([self.tokens[s : s + self.context_length + 1] for s in starts])
        ids = torch.from_numpy(rows.astype(np.int64))  # (B, T + 1)
        tokens, targets = ids[:, :-1], ids[:, 1:]  # (B, T) each
        return Batch(tokens, targets, torch.ones_like(targets, dtype=torch.bool))

    def sequence_starts(self, step: int) -> list[int]:
        """Where the sequences of a step's batch begin in `tokens`."""
        first = step * self.batch_size
        index = range(first, first + self.batch_size)
        return [int(self._epoch_starts(i // len(self))[i % len(self)]) for i in index]

    def _epoch_starts(self, epoch: int) -> np.ndarray:
        """Where the sequences of an epoch begin, in the order of their use."""
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
