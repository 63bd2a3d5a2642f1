"""Room: what functions are made of that Numba translates: memory, threads, SIMD, exp.

Knows nothing of what they compute. Memory is an address: whoever calls owns it, and its bounds.
"""

from __future__ import annotations

import inspect
import platform
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils as untyped
from numba.extending import intrinsic

cgutils: Any = untyped
pointer: Any = types.CPointer
OPTIONS: Any = dict(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
f4, i4 = np.float32, np.int32
INT, FLOAT, NONE = types.int64, types.float32, types.void
FLOATS, INTS = pointer(FLOAT), pointer(INT)


def translatable(result: Any, *parameters: Any, reorders: bool = False) -> Callable[[Any], Any]:
    """Marks a function for Numba, which translates it for these types, and once.

    Args:
        reorders: sums may be taken in another order, as SIMD does; else a product may be fused
            with a sum, and no more, which gives the same bits for each row and thread.
    """
    flags = {"contract", "reassoc", "nsz"} if reorders else {"contract"}
    njit: Any = numba.njit
    wrap: Callable[[Any], Any] = njit(result(*parameters), fastmath=flags, **OPTIONS)
    return wrap


def instructions(result: Any, *parameters: Any) -> Callable[[Callable[..., Any]], Any]:
    """Makes a function of one that writes LLVM's instructions: `emit(builder, *arguments)`."""

    def wrap(emit: Callable[..., Any]) -> Any:
        def typed(context: Any, *given: Any) -> Any:
            return result(*parameters), lambda _, builder, signature, args: emit(builder, *args)

        names = list(inspect.signature(emit).parameters.values())
        typed.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
        return intrinsic(typed)

    return wrap


@instructions(FLOATS, INT)
def floats(builder: Any, address: Any) -> Any:
    """float32 numbers at an address."""
    return builder.inttoptr(address, ir.FloatType().as_pointer())


@instructions(INTS, INT)
def integers(builder: Any, address: Any) -> Any:
    """int64 numbers at an address."""
    return builder.inttoptr(address, ir.IntType(64).as_pointer())


@instructions(FLOAT, types.int32)
def float_of_bits(builder: Any, bits: Any) -> Any:
    """The float32 that has these bits."""
    return builder.bitcast(bits, ir.FloatType())


@instructions(FLOAT, FLOAT)
def root(builder: Any, x: Any) -> Any:
    """√x, without the library's care for its errors."""
    return builder.call(builder.module.declare_intrinsic("llvm.sqrt", [ir.FloatType()]), [x])


# ------------------------------------------------------------------- threads


def _at(builder: Any, numbers: Any, index: Any) -> Any:
    return builder.gep(numbers, [index])


@instructions(INT, INTS, INT)
def count(builder: Any, numbers: Any, index: Any) -> Any:
    """Adds 1 to a number that threads share, as one step; the number before."""
    one = ir.Constant(ir.IntType(64), 1)
    return builder.atomic_rmw("add", _at(builder, numbers, index), one, "seq_cst")


@instructions(INT, INTS, INT)
def seen(builder: Any, numbers: Any, index: Any) -> Any:
    """A number that threads share, as it is now."""
    return builder.load_atomic(_at(builder, numbers, index), "seq_cst", 8)


@instructions(INT, INTS, INT, INT)
def publish(builder: Any, numbers: Any, index: Any, value: Any) -> Any:
    """Writes a number that threads share: who sees it sees all that was written before."""
    builder.store_atomic(value, _at(builder, numbers, index), "seq_cst", 8)
    return value


@instructions(INT)
def pause(builder: Any) -> Any:
    """Waits for a moment, and leaves the core to its other thread."""
    nothing = ir.FunctionType(ir.VoidType(), [])
    if platform.machine() in ("x86_64", "AMD64"):
        b = cgutils.get_or_insert_function(builder.module, nothing, "llvm.x86.sse2.pause")
        builder.call(b, [])
    return ir.Constant(ir.IntType(64), 0)


def _prefetch(builder: Any, pointer: Any) -> None:
    byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
    call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    how = [ir.Constant(i32, number) for number in (0, 3, 1)]  # to read, near, data
    builder.call(call, [builder.bitcast(pointer, byte), *how])


@instructions(INT, FLOATS, INT)
def prefetch(builder: Any, numbers: Any, index: Any) -> Any:
    """Has the memory there brought nearer, for a read that follows; any address will do."""
    _prefetch(builder, builder.gep(numbers, [index]))
    return ir.Constant(ir.IntType(64), 0)


# ------------------------------------------------------------------- SIMD


def _fused(b: Any, vector: Any) -> Any:
    """x, y, z → x y + z of vectors."""
    kind = ir.FunctionType(vector, [vector] * 3)
    return cgutils.get_or_insert_function(b.module, kind, f"llvm.fmuladd.v{vector.count}f32")


def _spread(b: Any, number: Any, vector: Any) -> Any:
    """A vector of one number."""
    none, i32 = ir.Constant(vector, ir.Undefined), ir.IntType(32)
    first = b.insert_element(none, number, ir.Constant(i32, 0))
    same = ir.Constant(ir.VectorType(i32, vector.count), [0] * vector.count)
    return b.shuffle_vector(first, none, same)


def _added(b: Any, values: list[Any]) -> Any:
    """The sum of two, four or eight values, or the only one, by pairs."""
    while len(values) > 1:
        values = [b.fadd(x, y) for x, y in zip(values[::2], values[1::2])]
    return values[0]


def sum_of_rows(rows: int, lanes: int, parts: int = 1) -> Any:
    """A function y[r, j] += Σ_k x[r, k] w[k, j] for `rows` rows and `lanes` columns j.

    Called with (y, its step from row to row, x, its step, w, its step from k to k, number of k,
    what is read later, how much of it is to be brought nearer at each k).
    The sum runs from k = 0 on, whatever the rows: a row's result does not depend on others.

    Args:
        parts: sums that each number is made of, of every so manieth k: an addition takes as long
            as eight vectors take to be read, so that there should be eight at least.
    """

    @instructions(INT, FLOATS, INT, FLOATS, INT, FLOATS, INT, INT, FLOATS, INT)
    def emit(
        b: Any, y: Any, y_step: Any, x: Any, x_step: Any, w: Any, w_step: Any, n: Any,
        later: Any, later_step: Any,
    ) -> Any:  # fmt: skip
        vector, i64 = ir.VectorType(ir.FloatType(), lanes), ir.IntType(64)
        fused = _fused(b, vector)

        def place(base: Any, step: Any, row: int) -> Any:
            return b.gep(base, [b.mul(step, ir.Constant(i64, row))])

        def add(k: Any, part: int) -> None:
            weights = b.load(b.bitcast(b.gep(w, [b.mul(k, w_step)]), vector.as_pointer()), align=4)
            if rows > 2:
                _prefetch(b, b.gep(later, [b.mul(k, later_step)]))
            for row, held in enumerate(sums[part]):
                factor = _spread(b, b.load(b.gep(place(x, x_step, row), [k])), vector)
                b.store(b.call(fused, [factor, weights, b.load(held)]), held)

        out = [b.bitcast(place(y, y_step, row), vector.as_pointer()) for row in range(rows)]
        sums = [[cgutils.alloca_once_value(b, b.load(o, align=4)) for o in out]]
        zero = ir.Constant(vector, [0.0] * lanes)
        sums += [[cgutils.alloca_once_value(b, zero) for o in out] for _ in range(1, parts)]
        whole = b.sdiv(n, ir.Constant(i64, parts))
        with cgutils.for_range(b, whole) as loop:
            first = b.mul(loop.index, ir.Constant(i64, parts))
            for part in range(parts):
                add(b.add(first, ir.Constant(i64, part)), part)
        if parts > 1:
            with cgutils.for_range(b, n, b.mul(whole, ir.Constant(i64, parts))) as loop:
                add(loop.index, 0)
        for row, o in enumerate(out):
            b.store(_added(b, [b.load(part[row]) for part in sums]), o, align=4)
        return ir.Constant(i64, 0)

    return emit


EIGHT = ir.VectorType(ir.FloatType(), 8)


@instructions(FLOAT, FLOATS, FLOATS, INT)
def dot_of_eights(b: Any, x: Any, y: Any, n: Any) -> Any:
    """Σ x y over n times eight numbers."""
    fused = _fused(b, EIGHT)
    kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), EIGHT])
    added = cgutils.get_or_insert_function(b.module, kind, "llvm.vector.reduce.fadd.v8f32")
    x, y = b.bitcast(x, EIGHT.as_pointer()), b.bitcast(y, EIGHT.as_pointer())
    held = cgutils.alloca_once_value(b, ir.Constant(EIGHT, [0.0] * 8))
    with cgutils.for_range(b, n) as loop:
        parts = [b.load(b.gep(p, [loop.index]), align=4) for p in (x, y)]
        b.store(b.call(fused, [*parts, b.load(held)]), held)
    zero = ir.Constant(ir.FloatType(), 0.0)
    return b.call(added, [zero, b.load(held)], fastmath=("reassoc",))


@instructions(INT, FLOATS, FLOATS, FLOATS, INT, INT)
def eight_dots_of_eights(b: Any, out: Any, x: Any, y: Any, y_step: Any, n: Any) -> Any:
    """out[j] = Σ x y[j] over n times eight numbers, for eight rows j of y."""
    fused, number = _fused(b, EIGHT), ir.IntType(64)
    x = b.bitcast(x, EIGHT.as_pointer())
    rows = [b.gep(y, [b.mul(y_step, ir.Constant(number, j))]) for j in range(8)]
    rows = [b.bitcast(row, EIGHT.as_pointer()) for row in rows]
    sums = [cgutils.alloca_once_value(b, ir.Constant(EIGHT, [0.0] * 8)) for _ in rows]
    with cgutils.for_range(b, n) as loop:
        factor = b.load(b.gep(x, [loop.index]), align=4)
        for row, held in zip(rows, sums):
            there = b.load(b.gep(row, [loop.index]), align=4)
            b.store(b.call(fused, [factor, there, b.load(held)]), held)
    held = [b.load(total) for total in sums]
    # Halves of two vectors are added until each has one number left, by moves that are cheap
    for low in (
        [0, 8, 1, 9, 4, 12, 5, 13],
        [0, 1, 8, 9, 4, 5, 12, 13],
        [0, 1, 2, 3, 8, 9, 10, 11],
    ):
        high = [lane for lane in range(16) if lane not in low]
        high = sorted(high, key=lambda lane: low.index(lane - (4 if low[4] == 8 else 2)))
        picks = [ir.Constant(ir.VectorType(ir.IntType(32), 8), side) for side in (low, high)]
        held = [
            b.fadd(*(b.shuffle_vector(x, y, pick) for pick in picks))
            for x, y in zip(held[::2], held[1::2])
        ]
    b.store(held[0], b.bitcast(out, EIGHT.as_pointer()), align=4)
    return ir.Constant(number, 0)


LOG2_E, LN2_HIGH, LN2_LOW = f4(1.44269504), f4(0.693359375), f4(-2.12194440e-4)


@translatable(FLOAT, FLOAT)
def exp(x: Any) -> Any:
    """e^x of x ≤ 0, to 2e-7 of it: 2^n e^r, where r = x - n ln 2 is at most 0.35.

    The library's takes one number at a time.
    """
    x = max(x, f4(-87))
    n = i4(x * LOG2_E - f4(0.5))
    r = x - f4(n) * LN2_HIGH - f4(n) * LN2_LOW
    p = f4(1 / 720)
    for c in (f4(1 / 120), f4(1 / 24), f4(1 / 6), f4(1 / 2), f4(1), f4(1)):
        p = p * r + c
    return p * float_of_bits((n + i4(127)) << i4(23))


@translatable(FLOAT, FLOAT)
def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    e = exp(-abs(x))
    return (f4(1) if x >= f4(0) else e) / (f4(1) + e)
