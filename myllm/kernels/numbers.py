"""Room: how compiled code computes with single numbers (numba). Knows nothing of models.

All is computed in float32; an int16 is a bfloat16, bit by bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

# What the compiler may assume. NaN and infinity must stay: they are looked for after each step.
RULES: dict[str, Any] = {
    "fastmath": {"reassoc", "contract", "nsz", "arcp"}, "error_model": "numpy",
    "_nrt": False,  # no memory is asked for
}  # fmt: skip
I32, F32 = ir.IntType(32), ir.FloatType()
ONE, ZERO = np.float32(1), np.float32(0)

body = njit(**RULES)


@intrinsic
def read(context, x):
    """A number of either kind as float32."""
    if isinstance(x, types.Float):
        return types.float32(x), lambda _context, _builder, _signature, args: args[0]

    def widened(_context, builder, _signature, args):
        bits = builder.shl(builder.zext(args[0], I32), I32(16))
        return builder.bitcast(bits, F32)

    return types.float32(x), widened


@intrinsic
def as_kind_of(context, y, x):
    """A float32 as the kind of number that `y` is, to the nearest, of two as near to the even."""
    if isinstance(y, types.Float):
        return types.float32(y, x), lambda _context, _builder, _signature, args: args[1]

    def rounded(_context, builder, _signature, args):
        bits = builder.bitcast(args[1], I32)
        odd = builder.and_(builder.lshr(bits, I32(16)), I32(1))
        up = builder.add(bits, builder.add(odd, I32(0x7FFF)))
        is_nan = builder.fcmp_unordered("uno", args[1], args[1])
        top = builder.select(is_nan, I32(0x7FC0), builder.lshr(up, I32(16)))
        return builder.trunc(top, ir.IntType(16))

    return types.int16(y, x), rounded


@intrinsic
def power_of_two(context, n):
    """2ⁿ for a whole number from -126 to 127."""

    def of_bits(_context, builder, _signature, args):
        return builder.bitcast(builder.shl(builder.add(args[0], I32(127)), I32(23)), F32)

    return types.float32(types.int32), of_bits


@njit(**RULES, inline="always")
def exp(x):
    """eˣ to 2e-7; the library's works on one number at a time, this one on vectors.

    eˣ = 2ⁿ · eʳ with n = round(x / ln 2), and a polynomial for |r| ≤ ln 2 / 2 (Cephes' `expf`).
    """
    near = min(max(x, np.float32(-87)), np.float32(88))
    n = np.floor(near * np.float32(1.44269504) + np.float32(0.5))
    r = near - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    y = (p * r * r + r + ONE) * power_of_two(np.int32(n))
    return y if x == x else x  # NaN stays


@njit(**RULES, inline="always")
def sigmoid(x):
    """1 / (1 + e⁻ˣ)."""
    return ONE / (ONE + exp(-x))


@njit(**RULES, inline="always")
def random_bits(word, seed):
    """32 random bits for place `word`: products and shifts mix its number with the seed (as in
    Chris Wellons' "Prospecting for hash functions", 2018)."""
    x = np.uint32(np.uint32(word) * np.uint32(2654435761))
    x = np.uint32((x ^ (x >> np.uint32(15))) ^ np.uint32(seed))
    x = np.uint32(x * np.uint32(2146121005))
    x = np.uint32(x ^ (x >> np.uint32(15)))
    x = np.uint32(x * np.uint32(2221713035))
    return np.uint32(x ^ (x >> np.uint32(16)))


@body
def fill_factors(first_word, seed, dropped, y):
    """What dropout multiplies a row of features with: y_j is 0, or 256 / (256 - dropped).

    Decisions are a function of seed and place, so that nothing has to be kept for the backward
    pass; a word is enough for four.
    """
    n_words = (len(y) + 3) // 4
    kept = np.float32(256) / np.float32(256 - dropped)
    for k in range(4):  # the k-th byte of each word decides about the k-th quarter of the row
        quarter = y[k * n_words : (k + 1) * n_words]
        for w in range(len(quarter)):
            byte = np.int32(random_bits(first_word + w, seed) >> np.uint32(8 * k)) & np.int32(255)
            quarter[w] = kept if byte >= dropped else ZERO
