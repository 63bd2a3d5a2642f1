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
# RMSNorm: y = x r w, r = 1 / √(mean(x²) + ε); dx = r (g - x̂ mean(g x̂)), g = dy w, x̂ = x r


@body
def _norm_row(x, w, eps, y):
    squares = ZERO
    for j in range(len(x)):
        squares += read(x[j]) * read(x[j])
    r = ONE / np.sqrt(squares / np.float32(len(x)) + eps)
    for j in range(len(x)):
        y[j] = as_kind_of(y[j], read(x[j]) * r * w[j])
    return r


@body
def _norm_row_back(x, w, r, dy, dx, dw):
    along = ZERO
    for j in range(len(x)):
        unit = read(x[j]) * r
        along += read(dy[j]) * w[j] * unit
        dw[j] += read(dy[j]) * unit
    along = along / np.float32(len(x))
    for j in range(len(x)):
        dx[j] = as_kind_of(dx[j], r * (read(dy[j]) * w[j] - read(x[j]) * r * along))


@body
def _norm(x, w, eps, y, r, lo, hi, t):
    """x, y (rows, C); w (C,); r (rows,)."""
    for i in range(lo, hi):
        r[i] = _norm_row(x[i], w, eps, y[i])


@shared
def _norm_shared(n, x, w, eps, y, r):
    for t in prange(n):
        lo, hi = t * len(x) // n, (t + 1) * len(x) // n
        _norm(x, w, eps, y, r, lo, hi, t)


norm = Loop(_norm, _norm_shared)


@body
def _norm_back(x, w, r, dy, dx, dw, lo, hi, t):
    """dw (threads, C): each thread's share of the sum, zero at first."""
    for i in range(lo, hi):
        _norm_row_back(x[i], w, r[i], dy[i], dx[i], dw[t])


@shared
def _norm_back_shared(n, x, w, r, dy, dx, dw):
    for t in prange(n):
        lo, hi = t * len(x) // n, (t + 1) * len(x) // n
        _norm_back(x, w, r, dy, dx, dw, lo, hi, t)


norm_back = Loop(_norm_back, _norm_back_shared)


# ----------------------------------------------------------------- heads
# (B · T, H · D) → (B, H, T, D): each head's features normalised, then turned by their position:
# y = x cos + (-right, left) sin


@body
def turn(x, other, cos, sin, sign, y):
    """One half of a row: y = x cos ± the other half · sin."""
    for j in range(len(x)):
        y[j] = as_kind_of(y[j], read(x[j]) * cos[j] + sign * read(other[j]) * sin[j])


@body
def _heads(x, w, eps, cos, sin, y, r, lo, hi, t):
    """w (D,) or empty: no norm; cos, sin (T, D) or empty: no turn; r (B · T, H)."""
    _, H, T, D = y.shape
    half, row = D // 2, np.empty(D, np.float32)
    for i in range(lo, hi):
        at = i % T
        for h in range(H):
            part, out = x[i, h * D : (h + 1) * D], y[i // T, h, at]
            if len(w):
                r[i, h] = _norm_row(part, w, eps, row)
            else:
                for j in range(D):
                    row[j] = read(part[j])
            if len(cos):
                c, d, left, right = cos[at], sin[at], row[:half], row[half:]
                turn(left, right, c[:half], d[:half], -ONE, out[:half])
                turn(right, left, c[half:], d[half:], ONE, out[half:])
            else:
                for j in range(D):
                    out[j] = as_kind_of(out[j], row[j])


@shared
def _heads_shared(n, x, w, eps, cos, sin, y, r):
    for t in prange(n):
        lo, hi = t * len(x) // n, (t + 1) * len(x) // n
        _heads(x, w, eps, cos, sin, y, r, lo, hi, t)


heads = Loop(_heads, _heads_shared)


@body
def _heads_back(dx, x, w, r, dy, cos, sin, dw, lo, hi, t):
    """x of no rows where there is no norm; dw (threads, D): zero at first."""
    _, H, T, D = dy.shape
    half, row = D // 2, np.empty(D, np.float32)
    for i in range(lo, hi):
        at = i % T
        for h in range(H):
            g, out = dy[i // T, h, at], dx[i, h * D : (h + 1) * D]
            if len(cos):
                c, d, left, right = cos[at], sin[at], g[:half], g[half:]
                turn(left, right, c[:half], d[half:], ONE, row[:half])
                turn(right, left, c[half:], d[:half], -ONE, row[half:])
            else:
                for j in range(D):
                    row[j] = read(g[j])
            if len(w):
                _norm_row_back(x[i, h * D : (h + 1) * D], w, r[i, h], row, out, dw[t])
            else:
                for j in range(D):
                    out[j] = as_kind_of(out[j], row[j])


@shared
def _heads_back_shared(n, dx, x, w, r, dy, cos, sin, dw):
    for t in prange(n):
        lo, hi = t * len(dx) // n, (t + 1) * len(dx) // n
        _heads_back(dx, x, w, r, dy, cos, sin, dw, lo, hi, t)


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
# Loops begin at 0: an index that may be negative counts from the end, which vectors cannot.
# SwiGLU: y = g σ(g) x, dx = dy g σ(g), dg = dy x σ(g) (1 + g (1 - σ(g)))
# GELU: y = x σ(2u), u = √(2/π) (x + 0.044715 x³), which is the form with tanh;
# dx = dy (σ + x σ (1 - σ) 2u')

SLOPE, CUBE = np.float32(2 * np.sqrt(2 / np.pi)), np.float32(0.044715)


@body
def _swiglu(g, x, y, lo, hi, t):
    """All of one dimension."""
    g, x, y = g[lo:hi], x[lo:hi], y[lo:hi]
    for j in range(len(x)):
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
    g, x, dy, dg, dx = g[lo:hi], x[lo:hi], dy[lo:hi], dg[lo:hi], dx[lo:hi]
    for j in range(len(x)):
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
    x, y = x[lo:hi], y[lo:hi]
    for j in range(len(x)):
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
    x, dy, dx = x[lo:hi], dy[lo:hi], dx[lo:hi]
    for j in range(len(x)):
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
