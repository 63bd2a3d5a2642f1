"""Room: some work → how long it takes on a device. Knows nothing of what it is."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from myllm.system.device import peak_memory_bytes, synchronize


@dataclass(frozen=True)
class Timing:
    """What a benchmark measured.

    Attributes:
        seconds: median time of one iteration.
        tokens_per_second: tokens of one iteration over that time.
        flops_per_second: floating-point operations over that time, by the usual estimate.
        peak_memory_bytes: the most memory held so far.
    """

    seconds: float
    tokens_per_second: float
    flops_per_second: float
    peak_memory_bytes: int


def median_seconds(
    work: Callable[[], object], device: torch.device, n_iterations: int, budget_s: float = math.inf
) -> float:
    """The median time of some work, after a tenth as many times, at least two, that warm up.

    Args:
        work: what to do.
        device: where; it is waited for.
        n_iterations: how often.
        budget_s: after so many seconds it is not begun again, but for a first time.
    """
    deadline = time.perf_counter() + budget_s
    for i in range(max(2, n_iterations // 10)):
        if not i or time.perf_counter() < deadline:
            work()
    times: list[float] = []
    for _ in range(n_iterations):
        synchronize(device)
        start = time.perf_counter()
        if times and start > deadline:
            break
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def seconds_in_turns(
    works: Mapping[str, Callable[[], object]], device: torch.device, n_iterations: int
) -> dict[str, float]:
    """The median time of each of several works, which take turns: what comes and goes on the
    machine meets each alike. Two rounds warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for i in range(n_iterations + 2):
        for name, work in works.items():
            synchronize(device)
            start = time.perf_counter()
            work()
            synchronize(device)
            if i >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def timing_of(seconds: float, n_tokens: int, flops: float, device: torch.device) -> Timing:
    """Of some work on so many tokens, of so many operations each."""
    return Timing(
        seconds, n_tokens / seconds, flops * n_tokens / seconds, peak_memory_bytes(device)
    )
