"""Room: arrays → arrays, each in one pass over memory. Knows nothing of PyTorch.

Numba translates it; nothing that trains imports it, as `loop_calls` has its machine code.

A loop does rows `lo` to `hi` of its first argument, in thread `t` of those that share them. `x`
are the features that come in, `y` those that go out, and `dx` is the gradient of the loss by `x`;
what else there is, its docstring tells. Kinds of arguments: see `loop`.
"""

from __future__ import annotations

import numpy as np

from myllm.kernels.loop_entries import entries, loop
from myllm.kernels.numbers import ONE, ZERO, as_kind_of, body, exp, fill_factors, read, sigmoid

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


@loop("F2 F1 F P2 F1")
def norm(lo, hi, t, x, w, eps, y, r):
    """x, y (rows, C); w (C,); r (rows,)."""
    for i in range(lo, hi):
        r[i] = _norm_row(x[i], w, eps, y[i])


@loop("F2 F1 F1 P2 F2 F2")
def norm_back(lo, hi, t, x, w, r, dy, dx, dw):
    """dw (threads, C): each thread's share of the sum, zero at first."""
    for i in range(lo, hi):
        _norm_row_back(x[i], w, r[i], dy[i], dx[i], dw[t])


# ----------------------------------------------------------------- heads
# (B · T, H · D) → (B, H, T, D): each head's features normalised, then turned by their position:
# y = x cos + (-right, left) sin


@body
def turn(x, other, cos, sin, sign, y):
    """One half of a row: y = x cos ± the other half · sin."""
    for j in range(len(x)):
        y[j] = as_kind_of(y[j], read(x[j]) * cos[j] + sign * read(other[j]) * sin[j])


@loop("P2 F1 F F2 F2 P4 F2 F2")
def heads(lo, hi, t, x, w, eps, cos, sin, y, r, between):
    """w (D,) or empty: no norm; cos, sin (T, D) or empty: no turn; r (B · T, H)."""
    _, H, T, D = y.shape
    half, row = D // 2, between[t]
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


@loop("P2 P2 F1 F2 P4 F2 F2 F2 F2")
def heads_back(lo, hi, t, dx, x, w, r, dy, cos, sin, dw, between):
    """x of no rows where there is no norm; dw (threads, D): zero at first."""
    _, H, T, D = dy.shape
    half, row = D // 2, between[t]
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


# ----------------------------------------------------------------- attention
# p = softmax(scale s) over the keys up to the query's own position; q = p · dropout's factors
# ds = scale p (g - Σ p g), g = dq · dropout's factors


@loop("P2 I F I I P2 F2")
def attend(lo, hi, t, s, T, scale, seed, dropped, q, between):
    """s (rows, T) becomes p; q (rows, T), or of no rows where nothing is dropped."""
    factors = between[t]
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


@loop("P2 I F I I P2 F2")
def attend_back(lo, hi, t, p, T, scale, seed, dropped, ds, between):
    """ds (rows, T) is dq at first."""
    factors = between[t]
    factors[:] = ONE
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


# ----------------------------------------------------------------- feed-forward
# Loops begin at 0: an index that may be negative counts from the end, which vectors cannot.
# SwiGLU: y = g σ(g) x, dx = dy g σ(g), dg = dy x σ(g) (1 + g (1 - σ(g)))
# GELU: y = x σ(2u), u = √(2/π) (x + 0.044715 x³), which is the form with tanh;
# dx = dy (σ + x σ (1 - σ) 2u')

SLOPE, CUBE = np.float32(2 * np.sqrt(2 / np.pi)), np.float32(0.044715)


@loop("P1 P1 P1")
def swiglu(lo, hi, t, g, x, y):
    """All of one dimension."""
    g, x, y = g[lo:hi], x[lo:hi], y[lo:hi]
    for j in range(len(x)):
        gate = read(g[j])
        y[j] = as_kind_of(y[j], gate * sigmoid(gate) * read(x[j]))


@loop("P1 P1 P1 P1 P1")
def swiglu_back(lo, hi, t, g, x, dy, dg, dx):
    """All of one dimension."""
    g, x, dy, dg, dx = g[lo:hi], x[lo:hi], dy[lo:hi], dg[lo:hi], dx[lo:hi]
    for j in range(len(x)):
        gate, value, slope = read(g[j]), read(x[j]), read(dy[j])
        s = sigmoid(gate)
        dx[j] = as_kind_of(dx[j], slope * gate * s)
        dg[j] = as_kind_of(dg[j], slope * value * s * (ONE + gate * (ONE - s)))


@loop("P1 P1")
def gelu(lo, hi, t, x, y):
    """Both of one dimension."""
    x, y = x[lo:hi], y[lo:hi]
    for j in range(len(x)):
        v = read(x[j])
        y[j] = as_kind_of(y[j], v * sigmoid(SLOPE * (v + CUBE * v * v * v)))


@loop("P1 P1 P1")
def gelu_back(lo, hi, t, x, dy, dx):
    """All of one dimension."""
    x, dy, dx = x[lo:hi], dy[lo:hi], dx[lo:hi]
    for j in range(len(x)):
        v = read(x[j])
        s = sigmoid(SLOPE * (v + CUBE * v * v * v))
        slope = s + v * s * (ONE - s) * SLOPE * (ONE + np.float32(3) * CUBE * v * v)
        dx[j] = as_kind_of(dx[j], read(dy[j]) * slope)


# ----------------------------------------------------------------- loss and dropout
# nats = log Σ eˣ - x_label; its gradient by x is softmax(x), less 1 at the label


@loop("P2 I1 F1")
def surprise(lo, hi, t, x, labels, nats):
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


@loop("P2 I I P2 F2")
def scale_kept(lo, hi, t, x, seed, dropped, y, between):
    """Dropout: y = x · its factors, (rows, C); the gradient goes the same way."""
    C = x.shape[1]
    factors = between[t]
    for i in range(lo, hi):
        fill_factors(i * ((C + 3) // 4), seed, dropped, factors)
        for j in range(C):
            y[i, j] = as_kind_of(y[i, j], read(x[i, j]) * factors[j])


float32, bfloat16 = entries("float32"), entries("int16")  # of what the products are computed in
