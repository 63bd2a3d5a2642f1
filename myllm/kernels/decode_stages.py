"""Room: new tokens of some texts → logits, in stages that threads share. Numba translates it.

A pass over n tokens is a list of stages, each of some chunks that are independent of each other:
whoever is free takes the next one. Letters as in `model/gpt.py`; addresses and sizes stand in
tables (`decode_table`). Weights lie in panels of 32 outputs, so that a product reads memory once
and in order. No sum depends on how many tokens or threads there are: the logits of a text are the
same, bit for bit, alone or beside others, read at once or one by one.
"""

from __future__ import annotations

import math
from typing import Any

from myllm.kernels.decode_table import LANES, LAYER, SHARED, TABLE
from myllm.kernels.numba_tools import (
    FLOAT,
    FLOATS,
    INT,
    INTS,
    NONE,
    count,
    dot_of_eights,
    eight_dots_of_eights,
    exp,
    f4,
    floats,
    integers,
    pause,
    prefetch,
    publish,
    root,
    seen,
    sigmoid,
    sum_of_rows,
    translatable,
)

READ, NORM_1, QKV, PLACE, ATTEND, OUT, NORM_2, UP, DOWN, NORM, HEAD = range(11)
TOKENS, PRODUCT_TOKENS = 8, 24  # tokens of a chunk; in a product a multiple of three
MOST_CHUNKS = 48  # of a stage: to take one costs 0.1 µs
IDLE = 20_000  # rounds that a helper waits for work before it sleeps
GELU = f4(2 * math.sqrt(2 / math.pi))

sum_1x32, sum_2x32, sum_6x16 = sum_of_rows(1, LANES), sum_of_rows(2, LANES), sum_of_rows(6, 16)
sum_1x32_by_2, sum_1x8_by_8 = sum_of_rows(1, LANES, 2), sum_of_rows(1, 8, 8)
sum_1x1 = sum_of_rows(1, 1)


@translatable(INT, INT)
def wide(n: int) -> int:
    return (n + LANES - 1) // LANES * LANES


@translatable(FLOAT, FLOATS, FLOAT, INT, reorders=True)
def mean_square(x: Any, mean: Any, n: int) -> Any:
    total = f4(0)
    for i in range(n):
        total += (x[i] - mean) * (x[i] - mean)
    return total / f4(n)


@translatable(FLOAT, FLOATS, INT, reorders=True)
def sum_of(x: Any, n: int) -> Any:
    total = f4(0)
    for i in range(n):
        total += x[i]
    return total


@translatable(NONE, INTS, FLOATS, FLOATS, INT, INT, INT)
def normalise(t: Any, x: Any, y: Any, n: int, gain: int, bias: int) -> None:
    """y = (x - mean) / √(variance + eps) · gain + bias; the mean counts as 0 in RMSNorm."""
    g, b = floats(gain), floats(bias)
    mean = sum_of(x, n) / f4(n) if t[TABLE.centred] else f4(0)
    factor = f4(1) / root(mean_square(x, mean, n) + floats(t[TABLE.eps])[0])
    for i in range(n):
        y[i] = (x[i] - mean) * factor * g[i]
    if bias:
        for i in range(n):
            y[i] += b[i]


@translatable(NONE, INT, INT, INT, INT, INT, INT, INT, INT, INT, INT, INT)
def product(
    first: int, last: int, panel: int, W: int, b: int, n_in: int, x: int, x_step: int, y: int,
    y_step: int, adds: bool,
) -> None:  # fmt: skip
    """y = W x + b, or y += W x + b, for some tokens and the outputs of one panel."""
    column = LANES * panel
    bias, w = floats(b + 4 * column), W + 4 * n_in * column
    for i in range(first, last):
        out = floats(y + 4 * (i * y_step + column))
        if not adds:
            for j in range(LANES):
                out[j] = f4(0)
        if b:
            for j in range(LANES):
                out[j] += bias[j]
    sixes = (last - first) // 6
    later = w + 4 * LANES * n_in  # the next panel: a part of it comes nearer with each six tokens
    share = LANES // 2 // max(sixes, 1)
    for i in range(first, first + 6 * sixes, 6):
        for half in range(0, LANES, 16):
            out, new = floats(y + 4 * (i * y_step + column + half)), floats(x + 4 * i * x_step)
            here = floats(w + 4 * half)
            sum_6x16(out, y_step, new, x_step, here, LANES, n_in, floats(later), share)
            later += 4 * share * n_in
    i = first + 6 * sixes
    while i < last:
        out, new = floats(y + 4 * (i * y_step + column)), floats(x + 4 * i * x_step)
        if i + 2 <= last:
            sum_2x32(out, y_step, new, x_step, floats(w), LANES, n_in, out, 0)
            i += 2
        else:
            sum_1x32(out, y_step, new, x_step, floats(w), LANES, n_in, out, 0)
            i += 1


@translatable(NONE, INTS, INT)
def read(t: Any, i: int) -> None:
    """x = E[token] (+ P[position])."""
    C = t[TABLE.C]
    x = floats(t[TABLE.x] + 4 * i * wide(C))
    e = floats(t[TABLE.embedding] + 4 * C * integers(t[TABLE.tokens])[i])
    for c in range(C):
        x[c] = e[c]
    if t[TABLE.position]:
        p = floats(t[TABLE.position] + 4 * C * integers(t[TABLE.positions])[i])
        for c in range(C):
            x[c] += p[c]


@translatable(NONE, INTS, INTS, INT, INT)
def place(t: Any, m: Any, layer: int, i: int) -> None:
    """Queries and keys of a token are normalised and turned; keys and values go to the cache."""
    H, K, D, at = t[TABLE.H], t[TABLE.K], t[TABLE.D], integers(t[TABLE.positions])[i]
    qkv = t[TABLE.qkv] + 4 * i * wide((H + 2 * K) * D)
    for h in range(H + K):
        x = floats(qkv + 4 * h * D)
        if m[LAYER.q_gain]:
            if h < H:
                normalise(t, x, x, D, m[LAYER.q_gain], m[LAYER.q_bias])
            else:
                normalise(t, x, x, D, m[LAYER.k_gain], m[LAYER.k_bias])
        if t[TABLE.cos]:
            cos, sin, half = (
                floats(t[TABLE.cos] + 4 * at * D),
                floats(t[TABLE.sin] + 4 * at * D),
                D // 2,
            )
            for d in range(half):
                left, right = x[d], x[half + d]
                x[d] = left * cos[d] - right * sin[d]
                x[half + d] = right * cos[d] + left * sin[d]
    memory = integers(t[TABLE.memory])
    for g in range(K):
        slot = 4 * D * ((integers(t[TABLE.rows])[i] * K + g) * t[TABLE.slots] + at)
        key, value = floats(memory[2 * layer] + slot), floats(memory[2 * layer + 1] + slot)
        k, v = floats(qkv + 4 * D * (H + g)), floats(qkv + 4 * D * (H + K + g))
        for d in range(D):
            key[d], value[d] = k[d], v[d]


@translatable(NONE, INTS, INT, INT, INT, INT)
def attend(t: Any, layer: int, i: int, g: int, who: int) -> None:
    """Σ_s softmax(q k_s / √D) v_s of a token, for the heads that share keys and values `g`."""
    H, K, D, n = t[TABLE.H], t[TABLE.K], t[TABLE.D], integers(t[TABLE.positions])[i] + 1
    start = 4 * D * (integers(t[TABLE.rows])[i] * K + g) * t[TABLE.slots]
    memory = integers(t[TABLE.memory])
    keys, values = memory[2 * layer] + start, memory[2 * layer + 1] + start
    weights = floats(t[TABLE.scores] + 4 * who * t[TABLE.context])
    for h in range(g * (H // K), (g + 1) * (H // K)):
        q = floats(t[TABLE.qkv] + 4 * (i * wide((H + 2 * K) * D) + h * D))
        out = t[TABLE.mixed] + 4 * (i * wide(H * D) + h * D)
        most, scale = f4(-math.inf), floats(t[TABLE.scale])[0]
        for s in range(0, n // 8 * 8, 8):
            eight = floats(t[TABLE.scores] + 4 * (who * t[TABLE.context] + s))
            for line in range(0, 8 * D, 16):
                prefetch(floats(values + 4 * D * s), line)
            eight_dots_of_eights(eight, q, floats(keys + 4 * D * s), D, D // 8)
        for s in range(n // 8 * 8, n):
            weights[s] = dot_of_eights(q, floats(keys + 4 * D * s), D // 8)
        for s in range(n):
            key = floats(keys + 4 * D * s)
            for d in range(D // 8 * 8, D):
                weights[s] += q[d] * key[d]
            weights[s] *= scale
            if weights[s] > most:
                most = weights[s]
        for s in range(n):
            weights[s] = exp(weights[s] - most)
        factor = f4(1) / sum_of(weights, n)
        y = floats(out)
        for d in range(D):
            y[d] = f4(0)
        d = 0
        while d < D:
            y, v = floats(out + 4 * d), floats(values + 4 * d)
            if d + LANES <= D:
                sum_1x32_by_2(y, 0, weights, 0, v, D, n, v, 0)
                d += LANES
            elif d + 8 <= D:
                sum_1x8_by_8(y, 0, weights, 0, v, D, n, v, 0)
                d += 8
            else:
                sum_1x1(y, 0, weights, 0, v, D, n, v, 0)
                d += 1
        y = floats(out)
        for d in range(D):
            y[d] *= factor


@translatable(NONE, INTS, INTS, INT, INT, INT)
def widen(t: Any, m: Any, first: int, last: int, panel: int) -> None:
    """silu(W_gate x) · W_up x, or gelu(W_up x), of some tokens and one panel."""
    C, F = t[TABLE.C], t[TABLE.F]
    x, inner, gates = t[TABLE.normed], t[TABLE.inner], t[TABLE.gate]
    product(first, last, panel, m[LAYER.W_up], m[LAYER.b_up], C, x, wide(C), inner, wide(F), False)
    if m[LAYER.W_gate]:
        product(
            first,
            last,
            panel,
            m[LAYER.W_gate],
            m[LAYER.b_gate],
            C,
            x,
            wide(C),
            gates,
            wide(F),
            False,
        )
    for i in range(first, last):
        start = 4 * (i * wide(F) + panel * LANES)
        y, gate = floats(inner + start), floats(gates + start)
        if m[LAYER.W_gate]:
            for j in range(LANES):
                y[j] = gate[j] * sigmoid(gate[j]) * y[j]
        else:
            for j in range(LANES):
                y[j] = y[j] * sigmoid(GELU * (y[j] + f4(0.044715) * y[j] * y[j] * y[j]))


@translatable(INT, INTS, INT)
def n_units(t: Any, stage: int) -> Any:
    """The smallest parts of a stage."""
    n, H, K, D = t[TABLE.n], t[TABLE.H], t[TABLE.K], t[TABLE.D]
    blocks = (n + PRODUCT_TOKENS - 1) // PRODUCT_TOKENS
    if stage == QKV:
        return wide((H + 2 * K) * D) // LANES * blocks
    if stage == OUT or stage == DOWN:
        return wide(t[TABLE.C]) // LANES * blocks
    if stage == UP:
        return wide(t[TABLE.F]) // LANES * blocks
    if stage == HEAD:
        blocks = (t[TABLE.n_last] + PRODUCT_TOKENS - 1) // PRODUCT_TOKENS
        return wide(t[TABLE.V]) // LANES * blocks
    if stage == ATTEND:
        return n * K
    if stage == NORM:
        n = t[TABLE.n_last]
    return (n + TOKENS - 1) // TOKENS


@translatable(NONE, INTS, INT, INT, INT, INT)
def do(t: Any, stage: int, layer: int, unit: int, who: int) -> None:
    """One unit of a stage."""
    C, H, K, D, F = t[TABLE.C], t[TABLE.H], t[TABLE.K], t[TABLE.D], t[TABLE.F]
    m = integers(integers(t[TABLE.layers])[layer])
    x, normed, width = t[TABLE.x], t[TABLE.normed], wide(C)
    n = t[TABLE.n_last] if stage == HEAD or stage == NORM else t[TABLE.n]
    if stage == ATTEND:
        attend(t, layer, unit // K, unit % K, who)
    elif stage == QKV or stage == OUT or stage == UP or stage == DOWN or stage == HEAD:
        blocks = (n + PRODUCT_TOKENS - 1) // PRODUCT_TOKENS
        panel, first = unit // blocks, unit % blocks * PRODUCT_TOKENS
        last = min(first + PRODUCT_TOKENS, n)
        if stage == QKV:
            product(first, last, panel, m[LAYER.W_qkv], m[LAYER.b_qkv], C, normed, width,
                    t[TABLE.qkv], wide((H + 2 * K) * D), False)  # fmt: skip
        elif stage == OUT:
            product(first, last, panel, m[LAYER.W_o], m[LAYER.b_o], H * D, t[TABLE.mixed],
                    wide(H * D), x, width, True)  # fmt: skip
        elif stage == UP:
            widen(t, m, first, last, panel)
        elif stage == DOWN:
            product(first, last, panel, m[LAYER.W_down], m[LAYER.b_down], F, t[TABLE.inner],
                    wide(F), x, width, True)  # fmt: skip
        else:
            product(first, last, panel, t[TABLE.head], 0, C, normed, width,
                    t[TABLE.logits], wide(t[TABLE.V]), False)  # fmt: skip
    else:
        for i in range(unit * TOKENS, min(unit * TOKENS + TOKENS, n)):
            here, there = floats(x + 4 * i * width), floats(normed + 4 * i * width)
            if stage == READ:
                read(t, i)
            elif stage == NORM_1:
                normalise(t, here, there, C, m[LAYER.block_gain], m[LAYER.block_bias])
            elif stage == PLACE:
                place(t, m, layer, i)
            elif stage == NORM_2:
                normalise(t, here, there, C, m[LAYER.inner_gain], m[LAYER.inner_bias])
            else:
                here = floats(x + 4 * integers(t[TABLE.last])[i] * width)
                normalise(t, here, there, C, t[TABLE.gain], t[TABLE.bias])


@translatable(NONE, INTS, INT, INT, INT, INT, INT)
def do_chunk(t: Any, stage: int, layer: int, chunk: int, n_chunks: int, who: int) -> None:
    n = n_units(t, stage)
    for unit in range(n * chunk // n_chunks, n * (chunk + 1) // n_chunks):
        do(t, stage, layer, unit, who)


@translatable(NONE, INTS, INTS, INT, INT, INT)
def finish(t: Any, shared: Any, stage: int, layer: int, helpers: int) -> None:
    """A stage, with whoever helps: nothing waits for a helper that has not begun a chunk."""
    n = min(n_units(t, stage), MOST_CHUNKS)
    if n == 1 or helpers == 0:
        do_chunk(t, stage, layer, 0, 1, 0)
        return
    shared[SHARED.stage], shared[SHARED.layer] = stage, layer
    publish(shared, SHARED.done, 0)
    publish(shared, SHARED.ticket, n << 32)
    while True:
        chunk = count(shared, SHARED.ticket) & 0xFFFFFFFF
        if chunk >= n:
            break
        do_chunk(t, stage, layer, chunk, n, 0)
        count(shared, SHARED.done)
    while seen(shared, SHARED.done) < n:
        pause()
        shared[SHARED.waited] += 1


@translatable(NONE, INTS, INT)
def helped(shared: Any, who: int) -> None:
    """Takes chunks of the stages that another thread opens, until there are none for a while."""
    idle = 0
    while idle < IDLE:
        ticket = seen(shared, SHARED.ticket)
        if ticket & 0xFFFFFFFF < ticket >> 32:
            ticket = count(shared, SHARED.ticket)
            chunk, n = ticket & 0xFFFFFFFF, ticket >> 32
            if chunk < n:
                t = integers(shared[SHARED.table])
                do_chunk(t, shared[SHARED.stage], shared[SHARED.layer], chunk, n, who)
                count(shared, SHARED.done)
                idle = 0
        pause()
        idle += 1
    publish(shared, SHARED.asleep + who, 1)


@translatable(INT, INT, INT, INT, INT)
def decode_pass(table: int, shared_address: int, who: int, helpers: int) -> int:
    """The logits of what follows the last tokens; or, for `who` above 0, help with that."""
    shared = integers(shared_address)
    if who > 0:
        helped(shared, who)
        return 0
    t = integers(table)
    shared[SHARED.table] = table
    finish(t, shared, READ, 0, helpers)
    for layer in range(t[TABLE.n_layers]):
        for stage in range(NORM_1, DOWN + 1):
            finish(t, shared, stage, layer, helpers)
    finish(t, shared, NORM, 0, helpers)
    finish(t, shared, HEAD, 0, helpers)
    return 0


FUNCTIONS = {"decode_pass": decode_pass}
