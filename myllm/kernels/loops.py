"""Room: arrays → arrays, each in one pass over memory, by numba. Knows nothing of PyTorch.

A function that begins with `_` does rows `lo` to `hi` in thread `t` of those that share the rows.
`x` are the features that come in, `y` those that go out, and `dx` is the gradient of the loss by
`x`; what else there is, its docstring tells. Types are numba's to find.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange

from myllm.kernels.numbers import (
    ONE,
    ZERO,
    as_kind_of,
    body,
    exp,
    fill_factors,
    read,
    shared,
    sigmoid,
)

LEAST = 1 << 15  # numbers, for which one thread takes less time than two need to be woken


class Loop:
    """A loop over the rows of its first argument, on as many threads as are worth it."""

    def __init__(self, body: Callable[..., None], shared: Callable[..., None]) -> None:
        self.body, self.shared = body, shared

    def __call__(self, n_threads: int, *args: Any) -> None:
        if n_threads == 1 or args[0].size < LEAST:
            self.body(*args, 0, len(args[0]), 0)
        else:
            self.shared(n_threads, *args)


# ----------------------------------------------------------------- norms
# y = (x - m) r w + b, r = 1 / √(mean((x - m)²) + ε); RMSNorm: m = 0, LayerNorm: m = mean(x)
# dx = r (g - x̂ mean(g x̂) - c), g = dy w, x̂ = (x - m) r; RMSNorm: c = 0, LayerNorm: c = mean(g)


@body
def _norm_row(x, w, b, eps, centred, y):
    C = np.float32(len(x))
    total, squares = ZERO, ZERO
    if centred:
        for j in range(len(x)):
            total += read(x[j])
    m = total / C
    for j in range(len(x)):
        squares += (read(x[j]) - m) * (read(x[j]) - m)
    r = ONE / np.sqrt(squares / C + eps)
    for j in range(len(x)):
        y[j] = as_kind_of(y[j], (read(x[j]) - m) * r * w[j] + b[j])
    return m, r


@body
def _norm_row_back(x, w, m, r, dy, centred, dx, dw, db):
    C = np.float32(len(x))
    along, total = ZERO, ZERO
    for j in range(len(x)):
        g, unit = read(dy[j]) * w[j], (read(x[j]) - m) * r
        along += g * unit
        total += g
        dw[j] += read(dy[j]) * unit
        db[j] += read(dy[j])
    along, total = along / C, total / C if centred else ZERO
    for j in range(len(x)):
        unit = (read(x[j]) - m) * r
        dx[j] = as_kind_of(dx[j], r * (read(dy[j]) * w[j] - unit * along - total))


@body
def _norm(x, w, b, eps, centred, y, mr, lo, hi, t):
    """x, y (rows, C); w, b (C,); mr (rows, 2) keeps m and r."""
    for i in range(lo, hi):
        mr[i, 0], mr[i, 1] = _norm_row(x[i], w, b, eps, centred, y[i])


@shared
def _norm_shared(n, x, w, b, eps, centred, y, mr):
    for t in prange(n):
        lo, hi = t * len(x) // n, (t + 1) * len(x) // n
        _norm(x, w, b, eps, centred, y, mr, lo, hi, t)


norm = Loop(_norm, _norm_shared)


@body
def _norm_back(x, w, mr, dy, centred, dx, dw, db, lo, hi, t):
    """dw, db (n, C): each thread's share of the sums, zero at first."""
    for i in range(lo, hi):
        _norm_row_back(x[i], w, mr[i, 0], mr[i, 1], dy[i], centred, dx[i], dw[t], db[t])


@shared
def _norm_back_shared(n, x, w, mr, dy, centred, dx, dw, db):
    for t in prange(n):
        lo, hi = t * len(x) // n, (t + 1) * len(x) // n
        _norm_back(x, w, mr, dy, centred, dx, dw, db, lo, hi, t)


norm_back = Loop(_norm_back, _norm_back_shared)


# ----------------------------------------------------------------- heads
# (B · T, H · D) → (B, H, T, D): each head's features normalised, then turned by their position:
# y = x cos + (-right, left) sin


@body
def _heads(x, w, b, eps, centred, cos, sin, y, mr, lo, hi, t):
    """w, b (D,) or empty: no norm; cos, sin (T, D) or empty: no turn; mr (B · T, H, 2)."""
    _, H, T, D = y.shape
    half, row = D // 2, np.empty(D, np.float32)
    for i in range(lo, hi):
        at = i % T
        for h in range(H):
            part, out = x[i, h * D : (h + 1) * D], y[i // T, h, at]
            if len(w):
                mr[i, h, 0], mr[i, h, 1] = _norm_row(part, w, b, eps, centred, row)
            else:
                for j in range(D):
                    row[j] = read(part[j])
            if len(cos):
                for j in range(half):
                    k = j + half
                    out[j] = as_kind_of(out[j], row[j] * cos[at, j] - row[k] * sin[at, j])
                    out[k] = as_kind_of(out[k], row[k] * cos[at, k] + row[j] * sin[at, k])
            else:
                for j in range(D):
                    out[j] = as_kind_of(out[j], row[j])


@shared
def _heads_shared(n, x, w, b, eps, centred, cos, sin, y, mr):
    for t in prange(n):
        lo, hi = t * len(x) // n, (t + 1) * len(x) // n
        _heads(x, w, b, eps, centred, cos, sin, y, mr, lo, hi, t)


heads = Loop(_heads, _heads_shared)


@body
def _heads_back(dx, x, w, mr, dy, centred, cos, sin, dw, db, lo, hi, t):
    """dw, db (n, D): each thread's share of the sums, zero at first."""
    _, H, T, D = dy.shape
    half, row = D // 2, np.empty(D, np.float32)
    for i in range(lo, hi):
        at = i % T
        for h in range(H):
            g, out = dy[i // T, h, at], dx[i, h * D : (h + 1) * D]
            if len(cos):
                for j in range(half):
                    k = j + half
                    row[j] = read(g[j]) * cos[at, j] + read(g[k]) * sin[at, k]
                    row[k] = read(g[k]) * cos[at, k] - read(g[j]) * sin[at, j]
            else:
                for j in range(D):
                    row[j] = read(g[j])
            if len(w):
                part = x[i, h * D : (h + 1) * D]
                _norm_row_back(part, w, mr[i, h, 0], mr[i, h, 1], row, centred, out, dw[t], db[t])
            else:
                for j in range(D):
                    out[j] = as_kind_of(out[j], row[j])


@shared
def _heads_back_shared(n, dx, x, w, mr, dy, centred, cos, sin, dw, db):
    for t in prange(n):
        lo, hi = t * len(dx) // n, (t + 1) * len(dx) // n
        _heads_back(dx, x, w, mr, dy, centred, cos, sin, dw, db, lo, hi, t)


heads_back = Loop(_heads_back, _heads_back_shared)


# ----------------------------------------------------------------- attention
# p = softmax(scale s) over the keys up to the query's own position; q = p · dropout's factors
# ds = scale p (g - Σ p g), g = dq · dropout's factors


@body
def _attend(s, T, scale, seed, dropped, q, lo, hi, t):
    """s (rows, T) becomes p; q (rows, T), or of no rows where nothing is dropped."""
    factors = np.empty(T, np.float32)
    for row in range(lo, hi):
        n, x = row % T + 1, s[row]
        top = read(x[0])
        for j in range(n):
            top = max(top, read(x[j]))
        total = ZERO
        for j in range(n):
            e = exp((read(x[j]) - top) * scale)
            total += e
            x[j] = as_kind_of(x[j], e)
        for j in range(n):
            x[j] = as_kind_of(x[j], read(x[j]) / total)
        x[n:] = 0
        if dropped:
            fill_factors(row * ((T + 3) // 4), seed, dropped, factors)
            for j in range(n):
                q[row, j] = as_kind_of(x[j], read(x[j]) * factors[j])
            q[row, n:] = 0


@shared
def _attend_shared(n, s, T, scale, seed, dropped, q):
    for t in prange(n):
        lo, hi = t * len(s) // n, (t + 1) * len(s) // n
        _attend(s, T, scale, seed, dropped, q, lo, hi, t)


attend = Loop(_attend, _attend_shared)


@body
def _attend_back(p, T, scale, seed, dropped, ds, lo, hi, t):
    """ds (rows, T) is dq at first."""
    factors = np.ones(T, np.float32)
    for row in range(lo, hi):
        n, g, weights = row % T + 1, ds[row], p[row]
        if dropped:
            fill_factors(row * ((T + 3) // 4), seed, dropped, factors)
        total = ZERO
        for j in range(n):
            total += read(weights[j]) * read(g[j]) * factors[j]
        for j in range(n):
            by_score = read(weights[j]) * (read(g[j]) * factors[j] - total) * scale
            g[j] = as_kind_of(g[j], by_score)
        g[n:] = 0


@shared
def _attend_back_shared(n, p, T, scale, seed, dropped, ds):
    for t in prange(n):
        lo, hi = t * len(p) // n, (t + 1) * len(p) // n
        _attend_back(p, T, scale, seed, dropped, ds, lo, hi, t)


attend_back = Loop(_attend_back, _attend_back_shared)


# ----------------------------------------------------------------- feed-forward
# SwiGLU: y = g σ(g) x, dx = dy g σ(g), dg = dy x σ(g) (1 + g (1 - σ(g)))
# GELU: y = x σ(2u), u = √(2/π) (x + 0.044715 x³), which is the form with tanh;
# dx = dy (σ + x σ (1 - σ) 2u')

SLOPE, CUBE = np.float32(2 * np.sqrt(2 / np.pi)), np.float32(0.044715)


@body
def _swiglu(g, x, y, lo, hi, t):
    """All of one dimension."""
    for j in range(lo, hi):
        gate = read(g[j])
        y[j] = as_kind_of(y[j], gate * sigmoid(gate) * read(x[j]))


@shared
def _swiglu_shared(n, g, x, y):
    for t in prange(n):
        lo, hi = t * len(g) // n, (t + 1) * len(g) // n
        _swiglu(g, x, y, lo, hi, t)


swiglu = Loop(_swiglu, _swiglu_shared)


@body
def _swiglu_back(g, x, dy, dg, dx, lo, hi, t):
    """All of one dimension."""
    for j in range(lo, hi):
        gate, value, slope = read(g[j]), read(x[j]), read(dy[j])
        s = sigmoid(gate)
        dx[j] = as_kind_of(dx[j], slope * gate * s)
        dg[j] = as_kind_of(dg[j], slope * value * s * (ONE + gate * (ONE - s)))


@shared
def _swiglu_back_shared(n, g, x, dy, dg, dx):
    for t in prange(n):
        lo, hi = t * len(g) // n, (t + 1) * len(g) // n
        _swiglu_back(g, x, dy, dg, dx, lo, hi, t)


swiglu_back = Loop(_swiglu_back, _swiglu_back_shared)


@body
def _gelu(x, y, lo, hi, t):
    """Both of one dimension."""
    for j in range(lo, hi):
        v = read(x[j])
        y[j] = as_kind_of(y[j], v * sigmoid(SLOPE * (v + CUBE * v * v * v)))


@shared
def _gelu_shared(n, x, y):
    for t in prange(n):
        lo, hi = t * len(x) // n, (t + 1) * len(x) // n
        _gelu(x, y, lo, hi, t)


gelu = Loop(_gelu, _gelu_shared)


@body
def _gelu_back(x, dy, dx, lo, hi, t):
    """All of one dimension."""
    for j in range(lo, hi):
        v = read(x[j])
        s = sigmoid(SLOPE * (v + CUBE * v * v * v))
        slope = s + v * s * (ONE - s) * SLOPE * (ONE + np.float32(3) * CUBE * v * v)
        dx[j] = as_kind_of(dx[j], read(dy[j]) * slope)


@shared
def _gelu_back_shared(n, x, dy, dx):
    for t in prange(n):
        lo, hi = t * len(x) // n, (t + 1) * len(x) // n
        _gelu_back(x, dy, dx, lo, hi, t)


gelu_back = Loop(_gelu_back, _gelu_back_shared)


# ----------------------------------------------------------------- loss and dropout
# nats = log Σ eˣ - x_label; its gradient by x is softmax(x), less 1 at the label


@body
def _surprise(x, labels, nats, lo, hi, t):
    """x (rows, V): logits, which become the gradient by them; labels, nats (rows,)."""
    for i in range(lo, hi):
        row, label = x[i], labels[i]
        if label < 0:  # masked
            nats[i] = ZERO
            row[:] = 0
            continue
        top = read(row[0])
        for j in range(len(row)):
            top = max(top, read(row[j]))
        chosen, total = read(row[label]), ZERO
        for j in range(len(row)):
            total += exp(read(row[j]) - top)
        nats[i] = np.log(total) - (chosen - top)
        for j in range(len(row)):
            row[j] = as_kind_of(row[j], exp(read(row[j]) - top) / total)
        row[label] = as_kind_of(row[label], exp(chosen - top) / total - ONE)


@shared
def _surprise_shared(n, x, labels, nats):
    for t in prange(n):
        lo, hi = t * len(x) // n, (t + 1) * len(x) // n
        _surprise(x, labels, nats, lo, hi, t)


surprise = Loop(_surprise, _surprise_shared)


@body
def _scale_kept(x, seed, dropped, y, lo, hi, t):
    """Dropout: y = x · its factors, (rows, C); the gradient goes the same way."""
    C = x.shape[1]
    factors = np.empty(C, np.float32)
    for i in range(lo, hi):
        fill_factors(i * ((C + 3) // 4), seed, dropped, factors)
        for j in range(C):
            y[i, j] = as_kind_of(y[i, j], read(x[i, j]) * factors[j])


@shared
def _scale_kept_shared(n, x, seed, dropped, y):
    for t in prange(n):
        lo, hi = t * len(x) // n, (t + 1) * len(x) // n
        _scale_kept(x, seed, dropped, y, lo, hi, t)


scale_kept = Loop(_scale_kept, _scale_kept_shared)
