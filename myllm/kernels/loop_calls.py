"""Room: tensors → one of `loops` over them, as machine code, on the threads that PyTorch uses.

PyTorch's own threads wait for work in OpenMP, and are used by the address of what they are to do:
those of another library would wait beside them for the same cores.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from myllm.kernels.object_code import machine_code
from myllm.system.places import cache_folder

LEAST = 1 << 15  # numbers, for which one thread takes less time than two need to be woken
LIBRARIES = "lib/libgomp*", "lib/libomp*", "lib/libiomp*", "../torch.libs/libgomp*"
Address = ctypes.c_void_p


class OpenMP(NamedTuple):
    """GCC's and LLVM's both have these functions.

    Attributes:
        fork: runs a function of an address on so many threads.
        thread, threads: addresses of what tells a thread its number and that of all.
    """

    fork: ctypes._NamedFuncPointer
    thread: int
    threads: int


class Loops:
    """The loops for products of one kind."""

    def __init__(self, dtype: torch.dtype) -> None:
        folder, group = cache_folder("kernels"), str(dtype).removeprefix("torch.")
        if folder is None:
            raise OSError("no folder to keep compiled code in")
        self._find = functools.cache(machine_code("myllm.kernels.loops", group, folder))

    def __call__(self, name: str, first: Tensor, *more: Tensor | float | int) -> None:
        """Runs one over the rows of its first argument. What a loop expects, `loops` tells."""
        n, openmp = torch.get_num_threads() if first.numel() >= LEAST else 1, _openmp()
        shared = openmp is not None and n > 1
        table = [openmp.thread, openmp.threads] if openmp is not None and shared else [0, 0]
        for argument in (first, *more):
            if isinstance(argument, Tensor):
                assert argument.is_contiguous()
                table += [argument.data_ptr(), *argument.shape]
            elif isinstance(argument, float):
                table.append(int(np.float32(argument).view(np.int32)))
            else:
                table.append(argument)
        numbers = (ctypes.c_int64 * len(table))(*table)
        code = self._find(name)
        if openmp is not None and shared:
            openmp.fork(code, ctypes.addressof(numbers), n, 0)
        else:
            C_FUNCTION(code)(ctypes.addressof(numbers))


C_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_int64)
_loading = threading.Lock()
_loaded: dict[torch.dtype, Loops] = {}
_failed: dict[torch.dtype, Exception] = {}


def load(dtype: torch.dtype) -> None:
    """Has the loops for products of a kind ready; where their code must be made, for seconds.

    Raises:
        Exception: whatever the compiler or the disk complain of.
    """
    with _loading:
        if dtype in _failed:
            raise _failed[dtype]
        if dtype not in _loaded:
            try:
                _loaded[dtype] = Loops(dtype)
            except Exception as error:
                _failed[dtype] = error  # whoever asks again is told why, not that it failed
                raise


def is_loaded(dtype: torch.dtype) -> bool:
    """Whether there are loops for products of that kind."""
    return dtype in _loaded


def loops_for(dtype: torch.dtype) -> Loops:
    """Those that are loaded."""
    return _loaded[dtype]


@functools.cache
def _openmp() -> OpenMP | None:
    """The one that PyTorch has loaded; without it, a loop has one thread."""
    home = Path(torch.__file__).parent
    paths = [path for pattern in LIBRARIES for path in glob.glob(str(home / pattern))]
    for path in [*paths, None]:
        try:
            library = ctypes.CDLL(path)
            addresses = [
                ctypes.cast(f, Address).value
                for f in (library.omp_get_thread_num, library.omp_get_num_threads)
            ]
            fork = library.GOMP_parallel
        except (OSError, AttributeError):
            continue
        fork.argtypes, fork.restype = [Address, Address, ctypes.c_uint, ctypes.c_uint], None
        return OpenMP(fork, *(address or 0 for address in addresses))
    return None
