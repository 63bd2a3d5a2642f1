"""Room: a training step → what its time goes into, as shares. Knows nothing of text."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from myllm.system.device import synchronize
from myllm.system.timing import seconds_in_turns
from myllm.train.profiler import quiet_profiler

PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}
# A GPU's kernels by name, as a replayed graph has no operators: cuBLAS's (nvjet on Hopper),
# CUTLASS's, and the compiler's own, whose other kernels have fused operators in their names.
PRODUCT_KERNELS = re.compile("gemm|gemv|nvjet|splitk|triton_tem_fused.*mm", re.IGNORECASE)
REST = "Python and waiting"


def step_shares(
    step: Callable[[], None],
    without_update: Callable[[], None],
    batch: Callable[[], object],
    device: torch.device,
    n_iterations: int,
) -> dict[str, float]:
    """Shares of a training step's time, which sum to 1, the largest first.

    Forward and backward pass are profiled: products of matrices, all other operators, and what is
    left, in which nothing was computed. A fused attention counts as an operator.

    Args:
        step: a whole one.
        without_update: the same one but for the optimizer.
        batch: makes what a step learns from.
        device: where they compute.
        n_iterations: how often each is timed.
    """
    works = {"whole": step, "passes": without_update, "data": batch}
    timed = seconds_in_turns(works, device, n_iterations)
    whole_s, passes_s = timed["whole"], min(timed["whole"], timed["passes"])
    products, others = _profiled(without_update, device, n_iterations)
    seconds = {
        "products": products * passes_s,
        "other operators": others * passes_s,
        REST: (1 - products - others) * passes_s,
        "optimizer": whole_s - passes_s,
        "data": timed["data"],
    }
    total = sum(seconds.values())
    largest = sorted(seconds, key=lambda name: -seconds[name])
    return {name: seconds[name] / total for name in largest}


def is_product(name: str) -> bool:
    """Whether an operator, or a kernel of a GPU, is a product of matrices."""
    return name in PRODUCTS or PRODUCT_KERNELS.search(name) is not None


def _profiled(
    work: Callable[[], None], device: torch.device, n_iterations: int
) -> tuple[float, float]:
    """The shares of products and of all other operators, measured with the profiler's own cost."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    synchronize(device)
    quiet_profiler()
    with profile(activities=activities) as found:
        with record_function("everything"):
            for _ in range(n_iterations):
                work()
            synchronize(device)
    products = others = whole = 0.0
    for event in found.key_averages():
        if event.key == "everything":
            whole += event.cpu_time_total
            continue
        if on_gpu and event.device_type.name == "CPU":
            continue  # an operator, whose kernels are counted themselves
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if is_product(event.key):
            products += own
        else:
            others += own
    most = max(whole, products + others)  # streams of a GPU overlap
    return products / most, others / most
