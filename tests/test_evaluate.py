"""Evaluation: the mean loss over every token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from myllm.errors import InputError
from myllm.train.evaluate import evaluate


class TestEvaluate:
    def test_is_the_mean_over_every_token(self, small_model, tokens):
        """Sequences, batches and padding leave no mark: compared with a plain loop."""
        ranges = [(0, 40), (100, 117), (200, 202)]
        total, count = 0.0, 0
        small_model.eval()
        for start, end in ranges:
            for s in range(start, end - 1, 16):
                ids = torch.tensor(tokens[s : min(s + 17, end)].astype(int))[None]
                n = ids.shape[1] - 1
                logits = small_model(ids[:, :-1])
                total += F.cross_entropy(logits[0], ids[0, 1:], reduction="sum").item()
                count += n
        counts = np.full(61, 2)
        for batch_size in (1, 2, 32):
            found = evaluate(small_model, tokens, ranges, counts, batch_size)
            assert found.n_tokens == count == 39 + 16 + 1
            assert found.loss == pytest.approx(total / count, rel=1e-5)
            assert found.bits_per_byte == pytest.approx(found.loss / math.log(2) / 2)

    def test_keeps_the_mode(self, small_model, tokens):
        small_model.train()
        evaluate(small_model, tokens, [(0, 50)], np.ones(61))
        assert small_model.training

    def test_too_short(self, small_model):
        with pytest.raises(InputError, match="too short"):
            evaluate(small_model, np.array([1]), [(0, 1)], np.ones(61))
