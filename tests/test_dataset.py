"""Batches of a text: a function of seed and step, each sequence once an epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from myllm.data.dataset import TextDataset
from myllm.errors import InputError


class TestTextDataset:
    def test_targets_follow_tokens(self):
        data = TextDataset(np.arange(500), context_length=8, batch_size=3)
        tokens, targets, mask = data.batch(5)
        assert mask.all() and mask.shape == tokens.shape
        assert tokens.shape == targets.shape == (3, 8) and tokens.dtype == torch.int64
        assert torch.equal(targets, tokens + 1)

    def test_batch_is_a_function_of_seed_and_step(self):
        """Law 3: no history; another object, another order of asking, the same batch."""
        ids = np.arange(1000)
        first = TextDataset(ids, context_length=8, batch_size=3, seed=5)
        wanted = [first.batch(step)[0] for step in range(100)]
        second = TextDataset(ids, context_length=8, batch_size=3, seed=5)
        for step in (99, 0, 50, 98, 1):
            assert torch.equal(second.batch(step)[0], wanted[step])
        other = TextDataset(ids, context_length=8, batch_size=3, seed=6)
        assert not torch.equal(other.batch(0)[0], wanted[0])

    def test_an_epoch_sees_each_sequence_once(self):
        data = TextDataset(np.arange(1000), context_length=10, batch_size=1)
        for epoch in (0, 1):
            rows = [data.batch(epoch * len(data) + i)[0] for i in range(len(data))]
            seen = torch.cat(rows).ravel().tolist()
            assert len(seen) == len(set(seen)) >= 0.95 * 1000

    def test_epochs_differ(self):
        data = TextDataset(np.arange(1000), context_length=10, batch_size=len(range(98)))
        assert not torch.equal(data.batch(0)[0].sort(0)[0], data.batch(1)[0].sort(0)[0])

    def test_sequences_stay_in_their_ranges(self):
        ranges = [(0, 100), (150, 300), (310, 400)]
        data = TextDataset(np.arange(400), ranges, context_length=16, batch_size=4)
        for step in range(60):
            tokens, targets, _ = data.batch(step)
            for first, last in zip(tokens[:, 0].tolist(), targets[:, -1].tolist()):
                assert any(start <= first and last < end for start, end in ranges)

    def test_no_room(self):
        with pytest.raises(InputError, match="at most 16 tokens in a row, a sequence needs 17"):
            TextDataset(np.arange(16), context_length=16)
