"""Room: model + tokens → loss, bits per byte. Knows nothing of files or training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from myllm.errors import InputError
from myllm.model import GPTModel

IGNORED = -100  # a target that is padding
LOGITS_AT_ONCE = 1 << 25  # numbers; more than that would dominate the memory of a step


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of a text.

    Attributes:
        loss: mean negative log-likelihood, nats per token.
        bits_per_byte: the same per UTF-8 byte of the text, which compares across tokenizers.
        n_tokens: tokens that were predicted.
    """

    loss: float
    bits_per_byte: float
    n_tokens: int

    @property
    def perplexity(self) -> float:
        """e to the loss: among so many equally likely tokens the model is undecided."""
        return math.exp(self.loss)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean loss in nats: logits (B, T, V), targets (B, T) → a float32 scalar."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)


def language_loss(model: GPTModel, tokens: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of a batch in nats, without ever holding all of its logits.

    Where they are many, they are computed for some rows at a time, and again in the backward
    pass: a third more time for the head, and for a vocabulary of 50,257 and 16 windows of 1,024
    tokens 8 GB less.

    Args:
        model: gives features and head.
        tokens: (B, T).
        targets: (B, T); `IGNORED` counts for nothing.

    Returns:
        A float32 scalar.
    """
    features = model.features(tokens)  # (B, T, C)
    rows = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    if targets.numel() <= rows:
        return cross_entropy(model.lm_head(features), targets)

    def summed(part: Tensor, labels: Tensor) -> Tensor:
        logits = model.lm_head(part).float()  # (rows, V)
        return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")

    parts = zip(features.flatten(0, 1).split(rows), targets.flatten().split(rows))
    losses = [checkpoint(summed, part, labels, use_reentrant=False) for part, labels in parts]
    return torch.stack(losses).sum() / (targets != IGNORED).sum()


@torch.inference_mode()
def evaluate(
    model: GPTModel,
    tokens: np.ndarray,
    ranges: Sequence[tuple[int, int]],
    byte_counts: np.ndarray,
    batch_size: int = 32,
    autocast: AbstractContextManager[object] | None = None,
) -> Evaluation:
    """The loss over every token of the ranges but the first of each, in windows side by side.

    Args:
        model: put into evaluation mode, and back into its own afterwards.
        tokens: all ids (n,).
        ranges: the parts to predict.
        byte_counts: bytes of each token (V,), from `Tokenizer.byte_counts`.
        batch_size: windows at a time.
        autocast: a re-enterable context for mixed precision.

    Raises:
        InputError: the ranges hold no token to predict.
    """
    was_training = model.training
    device = model.token_embedding.weight.device
    nats, n_tokens, n_bytes = 0.0, 0, 0
    model.eval()
    try:
        for inputs, targets in _windows(tokens, ranges, model.config.context_length, batch_size):
            with autocast or nullcontext():
                loss = language_loss(model, inputs.to(device), targets.to(device))
            counted = targets[targets != IGNORED]
            nats += loss.item() * len(counted)
            n_tokens += len(counted)
            n_bytes += int(byte_counts[counted.numpy()].sum())
    finally:
        model.train(was_training)
    if not n_tokens:
        raise InputError("the text is too short to evaluate: it needs two tokens")
    bits = nats / math.log(2)
    return Evaluation(nats / n_tokens, bits / n_bytes if n_bytes else math.nan, n_tokens)


def _windows(
    tokens: np.ndarray, ranges: Sequence[tuple[int, int]], context_length: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of (inputs, targets), each (B, T); the last window of a range is padded."""
    starts = [(s, end) for start, end in ranges for s in range(start, end - 1, context_length)]
    longest = min(context_length, max((end - s - 1 for s, end in starts), default=1))
    for i in range(0, len(starts), batch_size):
        batch = starts[i : i + batch_size]
        inputs = torch.zeros(len(batch), longest, dtype=torch.long)
        targets = torch.full((len(batch), longest), IGNORED)
        for row, (s, end) in enumerate(batch):
            window = torch.from_numpy(tokens[s : min(s + longest + 1, end)].astype(np.int64))
            inputs[row, : len(window) - 1] = window[:-1]
            targets[row, : len(window) - 1] = window[1:]
        yield inputs, targets
