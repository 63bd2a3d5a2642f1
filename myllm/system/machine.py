"""Room: the operating system → cores and memory that this process may use. Imports no torch.

Containers grant less than the machine has; PyTorch sees the machine.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from pathlib import Path
from typing import Any

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
THREADS = "OMP_NUM_THREADS"
# how threads wait: as every OpenMP knows it; for GCC's, which PyTorch has on Linux; for LLVM's
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# that GCC's threads turn before they sleep: none cost 10 % more alone, 10,000 twice as much beside
# a busy process (docs/benchmarks.md)
ROUNDS = "1000"
_set_here: dict[str, str] = {}  # variables of the environment


def available_cores() -> int:
    """The cores that this process may keep busy: its affinity, and its container's quota."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    quota = _words(CGROUP / "cpu.max")  # microseconds granted, of how many
    if len(quota) == 2 and all(word.isdecimal() for word in quota):
        cores = min(cores, math.ceil(int(quota[0]) / int(quota[1])))
    return max(1, cores)


def use_available_cores() -> None:
    """Lets PyTorch, which must not be imported yet, start no more threads than there are cores,
    and hardly keep them busy while they wait for each other.

    With more, they wait for each other at every operation. By default they turn in circles while
    they wait; where another program runs beside, that takes away the very core that they wait
    for, and they wait for longer still. What the user has set takes precedence.
    """
    cores = available_cores()
    if cores < (os.cpu_count() or 1) and THREADS not in os.environ:
        os.environ[THREADS] = _set_here[THREADS] = str(cores)
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ["GOMP_SPINCOUNT"] = ROUNDS


def user_chose_threads() -> bool:
    """Whether the environment says how many threads there shall be, and we have not said it."""
    return os.environ.get(THREADS) != _set_here.get(THREADS)


def available_memory_bytes() -> int | None:
    """What the operating system would still give, or None where that is not known."""
    free = [int(words[1]) * 1024 for words in _lines(MEMINFO) if words[0] == "MemAvailable:"]
    limit, used = _words(CGROUP / "memory.max"), _words(CGROUP / "memory.current")
    if limit and used and limit[0].isdecimal():
        free.append(int(limit[0]) - int(used[0]))
    return min(free, default=None)


def _words(path: Path) -> list[str]:
    return next(iter(_lines(path)), [])


def _lines(path: Path) -> list[list[str]]:
    try:
        return [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line]
    except OSError:
        return []


def keep_freed_memory() -> None:
    """Has glibc keep freed blocks for what is asked for next, of up to 32 MiB, its limit.

    Else the large ones go back to the system in every step, which then clears each page anew: a
    tenth to a fifth of a small model's step.
    """
    set_option = _of_glibc("mallopt")
    if set_option is not None:
        trim_above, mmap_above = -1, -3  # as malloc.h numbers them
        set_option(trim_above, 2**31 - 1)
        set_option(mmap_above, 32 << 20)


def return_freed_memory() -> None:
    """Gives memory that was freed back to the system, where glibc would keep it for later.

    It keeps blocks of up to 32 MiB, of which the weights of a large model are made.
    """
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    """A function of the C library, or None where that is another one."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
