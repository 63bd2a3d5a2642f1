"""Room: modules of a model → the same functions of `loops`, forward and backward, on a CPU.

Each class below computes what the class of the model it stands in for computes; the products stay
PyTorch's. What is between two products is one pass over memory instead of several.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from myllm.kernels.loop_calls import is_loaded, loops_for
from myllm.kernels.surprise import nats_of
from myllm.model import gpt
from myllm.model.cache import Cache
from myllm.model.dropout import Dropout
from myllm.model.head import LOGITS_AT_ONCE, Head

NOTHING, NO_ANGLES = torch.empty(0), torch.empty(0, 0)


def dropout_seed() -> int:
    """A seed of what dropout draws, from PyTorch's generator."""
    return int(torch.randint(2**31 - 1, (1,), dtype=torch.int32).item())


def n_dropped(dropout: Dropout) -> int:
    """How many features of 256 it drops at present."""
    return round(dropout.rate * 256) if dropout.training else 0


def for_each_thread(width: int) -> Tensor:
    """Zeros: a row that each thread has to itself."""
    return torch.zeros(torch.get_num_threads(), width)


class Norm(Function):
    """RMSNorm, (rows, C) → (rows, C) of `dtype`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        y, r = torch.empty_like(x, dtype=dtype), torch.empty(len(x))
        loops_for(dtype)("norm", x, w, eps, y, r)
        ctx.save_for_backward(x, w, r)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w, r = ctx.saved_tensors
        dx, shares = torch.empty_like(x), for_each_thread(len(w))
        loops_for(dy.dtype)("norm_back", x, w, r, dy.contiguous(), dx, shares)
        return dx, shares.sum(0), None, None


class ToHeads(Function):
    """(B, T, H · D) → (B, H, T, D), normalised with `w` and turned, each if there is one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, eps: float, cos: Tensor, sin: Tensor, D: int
    ) -> Tensor:
        B, T, C = x.shape
        y, r = x.new_empty(B, C // D, T, D), torch.empty(B * T, C // D)
        x, between = x.reshape(B * T, C), for_each_thread(D)
        loops_for(x.dtype)("heads", x, w, eps, cos, sin, y, r, between)
        ctx.save_for_backward(x if len(w) else x[:0], w, r, cos, sin)
        ctx.shape = B, T, C
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w, r, cos, sin = ctx.saved_tensors
        B, T, C = ctx.shape
        dx, shares = dy.new_empty(B * T, C), for_each_thread(len(w))
        between = for_each_thread(dy.shape[-1])
        run, dy = loops_for(dy.dtype), dy.contiguous()
        run("heads_back", dx, x, w, r, dy, cos, sin, shares, between)
        return dx.view(B, T, C), shares.sum(0), None, None, None, None


class Attend(Function):
    """softmax(q kᵀ / √D) v, causal: (B, H, T, D), (B, K, T, D) twice → (B, H, T, D)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, n_dropped: int) -> Tensor:
        (B, H, T, D), K = q.shape, k.shape[1]
        ctx.shape, ctx.dropout = (B, H, T, D), (dropout_seed(), n_dropped)
        ctx.scale = D**-0.5
        q, k, v = q.view(B * K, -1, D), k.view(B * K, T, D), v.view(B * K, T, D)
        p = torch.bmm(q, k.mT)  # (B · K, H / K · T, T)
        kept = torch.empty_like(p) if n_dropped else p[:0]
        run, between = loops_for(p.dtype), for_each_thread(T)
        run("attend", p.view(-1, T), T, ctx.scale, *ctx.dropout, kept.view(-1, T), between)
        ctx.save_for_backward(q, k, v, p, kept)
        return torch.bmm(kept if n_dropped else p, v).view(B, H, T, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        q, k, v, p, kept = ctx.saved_tensors
        B, H, T, D = ctx.shape
        dy = dy.reshape(len(q), -1, D)
        ds = torch.bmm(dy, v.mT)
        dv = torch.bmm((kept if len(kept) else p).mT, dy)
        run, between = loops_for(p.dtype), for_each_thread(T)
        run("attend_back", p.view(-1, T), T, ctx.scale, *ctx.dropout, ds.view(-1, T), between)
        dq, dk = torch.bmm(ds, k), torch.bmm(ds.mT, q)
        return dq.view(B, H, T, D), dk.view(B, -1, T, D), dv.view(B, -1, T, D), None


class Gated(Function):
    """silu(g) · x."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        loops_for(x.dtype)("swiglu", g.view(-1), x.view(-1), y.view(-1))
        ctx.save_for_backward(g, x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        g, x = ctx.saved_tensors
        dg, dx = torch.empty_like(g), torch.empty_like(x)
        flat = [t.reshape(-1) for t in (g, x, dy, dg, dx)]
        loops_for(x.dtype)("swiglu_back", *flat)
        return dg, dx


class Gelu(Function):
    """GELU in the form with tanh."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        loops_for(x.dtype)("gelu", x.view(-1), y.view(-1))
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        loops_for(x.dtype)("gelu_back", x.view(-1), dy.reshape(-1), dx.view(-1))
        return dx


class Dropped(Function):
    """Dropout of (rows, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, n_dropped: int) -> Tensor:
        ctx.dropout = dropout_seed(), n_dropped
        return Dropped.scaled(x, *ctx.dropout)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        return Dropped.scaled(dy.contiguous(), *ctx.dropout), None

    @staticmethod
    def scaled(x: Tensor, seed: int, n_dropped: int) -> Tensor:
        y = torch.empty_like(x)
        loops_for(x.dtype)("scale_kept", x, seed, n_dropped, y, for_each_thread(x.shape[-1]))
        return y


def surprises(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """As `Surprises` says; in place."""
    nats = torch.empty(len(labels))
    loops_for(logits.dtype)("surprise", logits, labels, nats)
    return nats, logits


# ----------------------------------------------------------------- in place of


def product_dtype(x: Tensor) -> torch.dtype:
    """What the products after `x` are computed in."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return x.dtype


class FusedRMSNorm(gpt.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or not is_loaded(product_dtype(x)):
            return super().forward(x)
        rows = x.reshape(-1, x.shape[-1])
        y: Tensor = Norm.apply(rows, self.weight, self.eps, product_dtype(x))
        return y.view(x.shape)


class FusedAttention(gpt.MultiHeadAttention):
    def forward(
        self, x: Tensor, angles: gpt.Angles | None = None, cache: Cache | None = None
    ) -> Tensor:
        if cache is not None or not is_loaded(product_dtype(x)):
            return super().forward(x, angles, cache)
        B, T, _ = x.shape
        cos, sin = (part[0] for part in angles) if angles is not None else (NO_ANGLES, NO_ANGLES)
        q = self._to_heads(self.W_q(x), self.q_norm, cos, sin)  # (B, H, T, D)
        k = self._to_heads(self.W_k(x), self.k_norm, cos, sin)  # (B, K, T, D)
        v = self._to_heads(self.W_v(x), None, NO_ANGLES, NO_ANGLES)
        y: Tensor = Attend.apply(q, k, v, n_dropped(self.dropout))
        x = self.W_o(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)
        return x

    def _to_heads(self, x: Tensor, norm: nn.Module | None, cos: Tensor, sin: Tensor) -> Tensor:
        if norm is None and not len(cos):
            B, T, _ = x.shape
            return x.view(B, T, -1, self.head_size).transpose(1, 2).contiguous()
        w, eps = getattr(norm, "weight", NOTHING), getattr(norm, "eps", 0.0)
        y: Tensor = ToHeads.apply(x, w, eps, cos, sin, self.head_size)
        return y


class FusedSwiGLU(gpt.SwiGLU):
    def forward(self, x: Tensor) -> Tensor:
        if not is_loaded(product_dtype(x)):
            return super().forward(x)
        x = self.linear2(Gated.apply(self.gate(x), self.linear1(x)))
        return x


class FusedGELU(nn.GELU):
    def forward(self, x: Tensor) -> Tensor:
        if not is_loaded(x.dtype):
            return super().forward(x)
        y: Tensor = Gelu.apply(x)
        return y


class FusedDropout(Dropout):
    def forward(self, x: Tensor) -> Tensor:
        if not n_dropped(self) or not is_loaded(x.dtype):
            return super().forward(x)
        y: Tensor = Dropped.apply(x.reshape(-1, x.shape[-1]), n_dropped(self))
        return y.view(x.shape)


class FusedHead(Head):
    def nats(self, features: Tensor, labels: Tensor) -> Tensor:
        if not is_loaded(product_dtype(features)):
            return super().nats(features, labels)
        x = features.to(product_dtype(features))
        return nats_of(x, self.weight, labels, surprises, LOGITS_AT_ONCE)


STAND_INS: dict[type[nn.Module], type[nn.Module]] = {
    gpt.RMSNorm: FusedRMSNorm,
    gpt.MultiHeadAttention: FusedAttention,
    gpt.FlashAttention: FusedAttention,
    gpt.SwiGLU: FusedSwiGLU,
    nn.GELU: FusedGELU,
    Dropout: FusedDropout,
    Head: FusedHead,
}


def parts_are_known(module: nn.Module) -> bool:
    """Whether those inside of a module, the norms of its heads above all, are what the stand-in
    for it computes. (PyTorch's LayerNorm is as fast as one of these.)"""
    known = (gpt.RMSNorm, nn.GELU, nn.Linear, Dropout)
    in_tanh_form = getattr(module, "approximate", "tanh") == "tanh"
    return in_tanh_form and all(type(part) in known for part in module.children())
