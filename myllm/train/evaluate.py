"""Room: model + tokens → loss, bits per byte (`evaluate`). Knows nothing of files or training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from myllm.data.dataset import Batch
from myllm.errors import InputError
from myllm.model.gpt import GPTModel
from myllm.system.device import out_of_memory
from myllm.system.progress import stage
from myllm.train.loss import language_loss


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of a text.

    Attributes:
        loss: mean negative log-likelihood, nats per token.
        bits_per_byte: the same per UTF-8 byte of the text, which compares across tokenizers.
            NaN where it is not known how many bytes a token stands for.
        n_tokens: tokens that were predicted.
        n_bytes: bytes that these stand for.
    """

    loss: float
    bits_per_byte: float
    n_tokens: int
    n_bytes: int = 0

    @classmethod
    def nothing(cls) -> Evaluation:
        """That of no text."""
        return cls(math.nan, math.nan, 0)

    @classmethod
    def of(cls, nats: float, n_tokens: int, n_bytes: int) -> Evaluation:
        """That of a text with so many nats in all."""
        bits = nats / math.log(2)
        return cls(nats / n_tokens, bits / n_bytes if n_bytes else math.nan, n_tokens, n_bytes)

    @classmethod
    def together(cls, parts: Sequence[Evaluation]) -> Evaluation:
        """That of several texts as one."""
        nats = sum(part.loss * part.n_tokens for part in parts)
        return cls.of(nats, sum(p.n_tokens for p in parts), sum(p.n_bytes for p in parts))

    @property
    def perplexity(self) -> float:
        """e to the loss: among so many equally likely tokens the model is undecided."""
        return math.exp(self.loss)


class Validation:
    """The text that a training run is measured on, again and again."""

    def __init__(
        self,
        model: GPTModel,
        tokens: np.ndarray,
        ranges: Sequence[tuple[int, int]] | None = None,
        byte_counts: np.ndarray | None = None,
        sequence_length: int | None = None,
    ) -> None:
        """
        Args:
            model: whose vocabulary the tokens are of.
            tokens: all ids (n,).
            ranges: the parts to predict; all by default.
            byte_counts: see `evaluate`.
            sequence_length: see `evaluate`.
        """
        self.tokens = tokens
        self.ranges = [(0, len(tokens))] if ranges is None else list(ranges)
        self.byte_counts = byte_counts
        self.sequence_length = sequence_length

    def measure(
        self, model: GPTModel, batch_size: int, autocast: AbstractContextManager[object]
    ) -> Evaluation:
        """`evaluate`, with fewer sequences at a time where the memory is too small.

        Raises:
            InputError: the ranges hold no token to predict.
        """
        while True:
            try:
                return evaluate(
                    model, self.tokens, self.ranges, self.byte_counts, batch_size, autocast,
                    self.sequence_length,
                )  # fmt: skip
            except RuntimeError as error:
                if batch_size == 1 or out_of_memory(error, "") is None:
                    raise
            batch_size //= 2


@torch.inference_mode()
def evaluate(
    model: GPTModel,
    tokens: np.ndarray,
    ranges: Sequence[tuple[int, int]],
    byte_counts: np.ndarray | None = None,
    batch_size: int = 32,
    autocast: AbstractContextManager[object] | None = None,
    sequence_length: int | None = None,
) -> Evaluation:
    """The loss over every token of the ranges but the first of each, in sequences side by side.

    Args:
        model: put into evaluation mode, and back into its own afterwards.
        tokens: all ids (n,).
        ranges: the parts to predict.
        byte_counts: bytes of each token (V,), from `Tokenizer.byte_counts`; without them bits
            per byte are not known.
        batch_size: sequences at a time.
        autocast: a re-enterable context for mixed precision.
        sequence_length: T, tokens of a sequence; the model's context by default.

    Raises:
        InputError: the ranges hold no token to predict.
    """
    was_training = model.training
    device = model.token_embedding.weight.device
    length = sequence_length or model.config.context_length
    nats, n_tokens, n_bytes = 0.0, 0, 0
    model.eval()
    try:
        with stage("evaluating", sum(end - start for start, end in ranges)) as advance:
            for batch in _batches(tokens, ranges, length, batch_size):
                with autocast or nullcontext():
                    batch_nats, _ = language_loss(model, batch.to(device))
                counted = batch.targets[batch.mask]  # (n,)
                nats += batch_nats.item()
                n_tokens += len(counted)
                if byte_counts is not None:
                    n_bytes += int(byte_counts[counted.numpy()].sum())
                advance(len(counted))
    finally:
        model.train(was_training)
    if not n_tokens:
        raise InputError("the text is too short to evaluate: it needs two tokens")
    return Evaluation.of(nats, n_tokens, n_bytes)


def _batches(
    tokens: np.ndarray, ranges: Sequence[tuple[int, int]], length: int, batch_size: int
) -> Iterator[Batch]:
    """Batches of sequences; the last one of a range is padded and masked."""
    starts = ((s, end) for start, end in ranges for s in range(start, end - 1, length))
    longest = min(length, max((end - start - 1 for start, end in ranges), default=1))
    while rows := list(islice(starts, batch_size)):
        inputs, targets = torch.zeros(2, len(rows), longest, dtype=torch.long)  # (B, T) each
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for row, (s, end) in enumerate(rows):
            ids = torch.from_numpy(tokens[s : min(s + longest + 1, end)].astype(np.int64))
            n = len(ids) - 1
            inputs[row, :n], targets[row, :n], mask[row, :n] = ids[:-1], ids[1:], True
        yield Batch(inputs, targets, mask)
