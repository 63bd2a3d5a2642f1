"""Room: arrays → arrays, each in one pass over memory, by numba. Knows nothing of PyTorch.

A function that begins with `_` does rows `lo` to `hi`, so that threads share the rows; `x` are the
features that come in, `y` those that go out, and `dx` is the gradient of the loss by `x`.
"""

from __future__ import annotations

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

# ----------------------------------------------------------------- norms
# y = (x - m) r w + b, r = 1 / √(mean((x - m)²) + ε); RMSNorm: m = 0, LayerNorm: m = mean(x)
# dx = r (g - x̂ mean(g x̂) - c), g = dy w, x̂ = (x - m) r; RMSNorm: c = 0, LayerNorm: c = mean(g)


@body
def _norm_row(x: Any, w: Any, b: Any, eps: Any, centred: Any, y: Any) -> Any:
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
def _norm_row_back(
    x: Any, w: Any, m: Any, r: Any, dy: Any, centred: Any, dx: Any, dw: Any, db: Any
) -> None:
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
def _norm(
    x: Any, w: Any, b: Any, eps: Any, centred: Any, y: Any, mr: Any, lo: int, hi: int
) -> None:
    for i in range(lo, hi):
        mr[i, 0], mr[i, 1] = _norm_row(x[i], w, b, eps, centred, y[i])


@shared
def norm(n: int, x: Any, w: Any, b: Any, eps: Any, centred: Any, y: Any, mr: Any) -> None:
    """x, y (rows, C); w, b (C,); mr (rows, 2) keeps m and r."""
    for t in prange(n):
        _norm(x, w, b, eps, centred, y, mr, t * len(x) // n, (t + 1) * len(x) // n)


@body
def _norm_back(
    x: Any, w: Any, mr: Any, dy: Any, centred: Any, dx: Any, dw: Any, db: Any, lo: int, hi: int
) -> None:
    for i in range(lo, hi):
        _norm_row_back(x[i], w, mr[i, 0], mr[i, 1], dy[i], centred, dx[i], dw, db)


@shared
def norm_back(
    n: int, x: Any, w: Any, mr: Any, dy: Any, centred: Any, dx: Any, dw: Any, db: Any
) -> None:
    """dw, db (n, C): each thread's share of the sums, zero at first."""
    for t in prange(n):
        lo, hi = t * len(x) // n, (t + 1) * len(x) // n
        _norm_back(x, w, mr, dy, centred, dx, dw[t], db[t], lo, hi)


# ----------------------------------------------------------------- heads
# (B · T, H · D) → (B, H, T, D): each head's features normalised, then turned by their position:
# y = x cos + (-right, left) sin


@body
def _heads(
    x: Any, w: Any, b: Any, eps: Any, centred: Any, cos: Any, sin: Any, y: Any, mr: Any,
    lo: int, hi: int,
) -> None:  # fmt: skip
    _, H, T, D = y.shape
    half, row = D // 2, np.empty(D, np.float32)
    for i in range(lo, hi):
        t = i % T
        for h in range(H):
            part, out = x[i, h * D : (h + 1) * D], y[i // T, h, t]
            if len(w):
                mr[i, h, 0], mr[i, h, 1] = _norm_row(part, w, b, eps, centred, row)
            else:
                for j in range(D):
                    row[j] = read(part[j])
            if len(cos):
                for j in range(half):
                    k = j + half
                    out[j] = as_kind_of(out[j], row[j] * cos[t, j] - row[k] * sin[t, j])
                    out[k] = as_kind_of(out[k], row[k] * cos[t, k] + row[j] * sin[t, k])
            else:
                for j in range(D):
                    out[j] = as_kind_of(out[j], row[j])


@shared
def heads(
    n: int, x: Any, w: Any, b: Any, eps: Any, centred: Any, cos: Any, sin: Any, y: Any, mr: Any
) -> None:
    """w, b (D,) or empty: no norm; cos, sin (T, D) or empty: no turn; mr (B · T, H, 2)."""
    for t in prange(n):
        lo, hi = t * len(x) // n, (t + 1) * len(x) // n
        _heads(x, w, b, eps, centred, cos, sin, y, mr, lo, hi)


@body
def _heads_back(
    x: Any, w: Any, mr: Any, dy: Any, centred: Any, cos: Any, sin: Any, dx: Any, dw: Any, db: Any,
    lo: int, hi: int,
) -> None:  # fmt: skip
    _, H, T, D = dy.shape
    half, row = D // 2, np.empty(D, np.float32)
    for i in range(lo, hi):
        t = i % T
        for h in range(H):
            g, out = dy[i // T, h, t], dx[i, h * D : (h + 1) * D]
            if len(cos):
                for j in range(half):
                    k = j + half
                    row[j] = read(g[j]) * cos[t, j] + read(g[k]) * sin[t, k]
                    row[k] = read(g[k]) * cos[t, k] - read(g[j]) * sin[t, j]
            else:
                for j in range(D):
                    row[j] = read(g[j])
            if len(w):
                part = x[i, h * D : (h + 1) * D]
                _norm_row_back(part, w, mr[i, h, 0], mr[i, h, 1], row, centred, out, dw, db)
            else:
                for j in range(D):
                    out[j] = as_kind_of(out[j], row[j])


@shared
def heads_back(
    n: int, x: Any, w: Any, mr: Any, dy: Any, centred: Any, cos: Any, sin: Any, dx: Any, dw: Any,
    db: Any,
) -> None:  # fmt: skip
    """dw, db (n, D): each thread's share of the sums, zero at first."""
    for t in prange(n):
        lo, hi = t * len(dx) // n, (t + 1) * len(dx) // n
        _heads_back(x, w, mr, dy, centred, cos, sin, dx, dw[t], db[t], lo, hi)


# ----------------------------------------------------------------- attention
# p = softmax(scale s) over the keys up to the query's own position; q = p · dropout's factors
# ds = scale p (g - Σ p g), g = dq · dropout's factors


@body
def _attend(s: Any, T: int, scale: Any, seed: Any, dropped: Any, q: Any, lo: int, hi: int) -> None:
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
def attend(n: int, s: Any, T: int, scale: Any, seed: Any, dropped: Any, q: Any) -> None:
    """s (rows, T) becomes p; q (rows, T), or of no rows where nothing is dropped."""
    for t in prange(n):
        lo, hi = t * len(s) // n, (t + 1) * len(s) // n
        _attend(s, T, scale, seed, dropped, q, lo, hi)


@body
def _attend_back(
    p: Any, T: int, scale: Any, seed: Any, dropped: Any, ds: Any, lo: int, hi: int
) -> None:
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
def attend_back(n: int, p: Any, T: int, scale: Any, seed: Any, dropped: Any, ds: Any) -> None:
    """ds (rows, T) is dq at first."""
    for t in prange(n):
        lo, hi = t * len(p) // n, (t + 1) * len(p) // n
        _attend_back(p, T, scale, seed, dropped, ds, lo, hi)


# ----------------------------------------------------------------- feed-forward
# SwiGLU: y = g σ(g) x, dx = dy g σ(g), dg = dy x σ(g) (1 + g (1 - σ(g)))
# GELU: y = x σ(2u), u = √(2/π) (x + 0.044715 x³), which is the form with tanh;
# dx = dy (σ + x σ (1 - σ) 2u')

SLOPE, CUBE = np.float32(2 * np.sqrt(2 / np.pi)), np.float32(0.044715)


@body
def _swiglu(g: Any, x: Any, y: Any, lo: int, hi: int) -> None:
    for j in range(lo, hi):
        gate = read(g[j])
        y[j] = as_kind_of(y[j], gate * sigmoid(gate) * read(x[j]))


@shared
def swiglu(n: int, g: Any, x: Any, y: Any) -> None:
    """All of one dimension."""
    for t in prange(n):
        _swiglu(g, x, y, t * len(x) // n, (t + 1) * len(x) // n)


@body
def _swiglu_back(g: Any, x: Any, dy: Any, dg: Any, dx: Any, lo: int, hi: int) -> None:
    for j in range(lo, hi):
        gate, value, slope = read(g[j]), read(x[j]), read(dy[j])
        s = sigmoid(gate)
        dx[j] = as_kind_of(dx[j], slope * gate * s)
        dg[j] = as_kind_of(dg[j], slope * value * s * (ONE + gate * (ONE - s)))


@shared
def swiglu_back(n: int, g: Any, x: Any, dy: Any, dg: Any, dx: Any) -> None:
    """All of one dimension."""
    for t in prange(n):
        _swiglu_back(g, x, dy, dg, dx, t * len(x) // n, (t + 1) * len(x) // n)


@body
def _gelu(x: Any, y: Any, lo: int, hi: int) -> None:
    for j in range(lo, hi):
        v = read(x[j])
        y[j] = as_kind_of(y[j], v * sigmoid(SLOPE * (v + CUBE * v * v * v)))


@shared
def gelu(n: int, x: Any, y: Any) -> None:
    """Both of one dimension."""
    for t in prange(n):
        _gelu(x, y, t * len(x) // n, (t + 1) * len(x) // n)


@body
def _gelu_back(x: Any, dy: Any, dx: Any, lo: int, hi: int) -> None:
    for j in range(lo, hi):
        v = read(x[j])
        s = sigmoid(SLOPE * (v + CUBE * v * v * v))
        slope = s + v * s * (ONE - s) * SLOPE * (ONE + np.float32(3) * CUBE * v * v)
        dx[j] = as_kind_of(dx[j], read(dy[j]) * slope)


@shared
def gelu_back(n: int, x: Any, dy: Any, dx: Any) -> None:
    """All of one dimension."""
    for t in prange(n):
        _gelu_back(x, dy, dx, t * len(x) // n, (t + 1) * len(x) // n)


# ----------------------------------------------------------------- loss and dropout
# nats = log Σ eˣ - x_label; its gradient by x is softmax(x), less 1 at the label


@body
def _surprise(x: Any, labels: Any, nats: Any, lo: int, hi: int) -> None:
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
def surprise(n: int, x: Any, labels: Any, nats: Any) -> None:
    """x (rows, V): logits, which become the gradient by them; labels, nats (rows,)."""
    for t in prange(n):
        _surprise(x, labels, nats, t * len(x) // n, (t + 1) * len(x) // n)


@body
def _scale_kept(x: Any, seed: Any, dropped: Any, y: Any, lo: int, hi: int) -> None:
    C = x.shape[1]
    factors = np.empty(C, np.float32)
    for i in range(lo, hi):
        fill_factors(i * ((C + 3) // 4), seed, dropped, factors)
        for j in range(C):
            y[i, j] = as_kind_of(y[i, j], read(x[i, j]) * factors[j])


@shared
def scale_kept(n: int, x: Any, seed: Any, dropped: Any, y: Any) -> None:
    """Dropout: y = x · its factors, (rows, C); the gradient goes the same way."""
    for t in prange(n):
        _scale_kept(x, seed, dropped, y, t * len(x) // n, (t + 1) * len(x) // n)
