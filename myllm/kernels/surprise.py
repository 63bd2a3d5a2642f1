"""Room: features, head and labels → nats, with the gradient computed forward, while the logits are
at hand: they are neither kept nor computed twice.

What kernels differ in is one function, `Surprises`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from myllm.model.head import MASKED

# Logits (rows, V) and labels (rows,) → nats (rows,) in float32, and the gradient of their sum by
# the logits, in the dtype of the logits; it may take their place. Rows that are masked count for
# nothing.
Surprises = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def nats_of(
    features: Tensor, weight: Tensor, labels: Tensor, surprises: Surprises, at_once: int
) -> Tensor:
    """The sum of the negative log-likelihoods, a float32 scalar.

    Args:
        features: (n, C), in the dtype of the products.
        weight: of the head, (V, C).
        labels: (n,).
        surprises: see there.
        at_once: logits computed at a time.
    """
    wanted = torch.is_grad_enabled()
    y: Tensor = _Nats.apply(features, weight, labels, surprises, at_once, wanted)
    return y


class _Nats(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, labels: Tensor, surprises: Surprises, at_once: int,
        wanted: bool,
    ) -> Tensor:  # fmt: skip
        weight, rows = w.to(x.dtype), max(1, at_once // len(w))
        total, parts, dw = torch.zeros((), device=x.device), [], None
        for features, wanted_ids in zip(x.split(rows), labels.split(rows)):
            logits = features @ weight.T  # (rows, V)
            nats, slope = surprises(logits, wanted_ids)
            total = total + nats.sum()
            if wanted:
                parts.append(slope @ weight)
                mine = slope.T @ features  # (V, C)
                dw = mine if dw is None else dw.add_(mine)
        if wanted:
            ctx.save_for_backward(torch.cat(parts) if len(parts) > 1 else parts[0], dw)
        ctx.dtype = w.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> Any:
        dx, dw = ctx.saved_tensors
        return (dx * scale).to(dx.dtype), dw.to(ctx.dtype) * scale, None, None, None, None


def surprises_in_pytorch(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """As `Surprises` says; compiled, it reads the logits twice and writes them once."""
    x = logits.float()
    top = x.amax(-1, keepdim=True)
    total = (x - top).exp().sum(-1, keepdim=True).log() + top  # (rows, 1)
    is_label = torch.arange(x.shape[-1], device=x.device) == labels[:, None]  # (rows, V)
    counts = labels != MASKED
    chosen = (x * is_label).sum(-1)
    nats = (total[:, 0] - chosen) * counts
    slope = ((x - total).exp() - is_label.float()) * counts[:, None]
    return nats, slope.to(logits.dtype)
