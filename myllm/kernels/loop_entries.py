"""Room: a loop over rows → a function of one address, which any thread may call (Numba).

At the address is a table of 64-bit numbers: the addresses of OpenMP's `omp_get_thread_num` and
`omp_get_num_threads` (0: there is one thread), then the arguments. An array is its address and its
sizes, a float the bits of a float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from myllm.kernels.numbers import RULES, body

I32, I64, F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_loops: list[tuple[Callable[..., None], list[str]]] = []


def loop(kinds: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Marks a loop, and what its arguments are after `lo`, `hi` and `t`.

    Args:
        kinds: a letter each: P, numbers as products are computed in; F, float32; I, int64. After
            it the number of dimensions of an array.
    """

    def wrap(function: Callable[..., None]) -> Callable[..., None]:
        translated: Callable[..., None] = body(function)
        _loops.append((translated, kinds.split()))
        return translated

    return wrap


def entries(product: str) -> dict[str, Any]:
    """The functions of a table, by the names of their loops.

    Args:
        product: the type of numbers that products are computed in; int16 is a bfloat16.
    """
    numbers = {"P": getattr(types, product), "F": types.float32, "I": types.int64}
    found = {}
    for function, kinds in _loops:
        each = [
            types.Array(numbers[kind[0]], int(kind[1:]), "C") if kind[1:] else numbers[kind]
            for kind in kinds
        ]
        found[function.__name__] = _entry(function, _arguments_of(each))
    return found


def _entry(function: Callable[..., None], arguments: Any) -> Any:
    @njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **RULES)
    def entry(table: int) -> None:
        t, n = _from_openmp(table, 0), _from_openmp(table, 1)
        given = arguments(table)
        rows = len(given[0])
        function(t * rows // n, (t + 1) * rows // n, t, *given)

    return entry


def _at(builder: Any, table: Any, place: int, kind: Any = I64) -> Any:
    """The number at a place of the table."""
    start = builder.inttoptr(builder.add(table, ir.Constant(I64, 8 * place)), kind.as_pointer())
    return builder.load(start)


@intrinsic
def _from_openmp(context: Any, table: Any, place: Any) -> Any:
    """What the function answers whose address is there; without one, the place itself: thread 0
    of 1."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        address = _at(builder, args[0], place.literal_value)
        answer = cgutils.alloca_once_value(builder, ir.Constant(I32, place.literal_value))
        with builder.if_then(builder.icmp_unsigned("!=", address, ir.Constant(I64, 0))):
            kind = ir.FunctionType(I32, []).as_pointer()
            builder.store(builder.call(builder.inttoptr(address, kind), []), answer)
        return builder.zext(builder.load(answer), I64)

    if isinstance(place, types.IntegerLiteral):
        return types.int64(table, place), emit
    return None


def _arguments_of(kinds: list[Any]) -> Any:
    """A function of the table: its arguments, as a tuple."""
    together = types.Tuple(kinds)

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        place, found = 2, []
        for kind in kinds:
            if isinstance(kind, types.Array):
                found.append(_array(context, builder, kind, args[0], place))
                place += 1 + kind.ndim
            else:
                found.append(_at(builder, args[0], place, context.get_value_type(kind)))
                place += 1
        return context.make_tuple(builder, together, found)

    @intrinsic
    def arguments(context: Any, table: Any) -> Any:
        return together(types.int64), emit

    return arguments


def _array(context: Any, builder: Any, kind: Any, table: Any, place: int) -> Any:
    element = context.get_data_type(kind.dtype)
    size = context.get_abi_sizeof(element)
    data = builder.inttoptr(_at(builder, table, place), element.as_pointer())
    shape = [_at(builder, table, place + 1 + axis) for axis in range(kind.ndim)]
    strides = [ir.Constant(I64, size)]
    for n in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], n))
    array = make_array(kind)(context, builder)
    populate_array(array, data, shape, strides, ir.Constant(I64, size), None)
    return array._getvalue()
