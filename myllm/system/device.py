"""Room: a device's name → the device, its precision, its memory. Knows nothing of models."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from myllm.config import DTYPE_NAMES
from myllm.errors import ConfigError, OutOfMemoryError
from myllm.registry import check_choice
from myllm.system.machine import available_memory_bytes
from myllm.system.torch_adapter import memory_ran_out


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name, or the best one of this machine: CUDA, then MPS, then CPU.

    Raises:
        ConfigError: unknown name, or a device that this machine does not have.
    """
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": 0}
    if torch.backends.mps.is_available():
        available["mps"] = 1
    if name is None:
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    match = re.fullmatch(r"([a-z]+)(?::(\d+))?", name)
    kind = match[1] if match else name
    check_choice("device", kind, available)
    if int((match and match[2]) or 0) >= available[kind]:
        here = ", ".join(kind for kind, count in available.items() if count)
        raise ConfigError(f"device {name}: this machine has {here} only")
    return torch.device(name)


def choose_dtype(device: torch.device, name: str | None = None) -> torch.dtype:
    """The dtype of that name, or the fastest one that trains safely on the device.

    bfloat16 where the hardware multiplies it (CUDA from Ampere on, CPUs with AVX512-BF16 or AMX),
    float16 on older CUDA cards, float32 elsewhere.
    """
    if name is not None:
        check_choice("dtype", name, DTYPE_NAMES)
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    fast = device.type == "cpu" and cpu_multiplies_bfloat16()
    return torch.bfloat16 if fast else torch.float32


@cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for that, without which it takes twenty times as long as in
    float32."""
    if sys.platform != "linux":
        return False
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


class _Unfilled(TorchFunctionMode):
    """Leaves out the drawing of weights."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else next(iter((kwargs or {}).values()))
        return func(*args, **(kwargs or {}))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules built within have parameters of their shapes that take no memory.

    They are not filled: filling them would import PyTorch's compiler, which takes 2 s.
    """
    with torch.device("meta"), _Unfilled():
        yield


def choose_attention(device: torch.device) -> str:
    """The kind of attention that is faster on the device (docs/benchmarks.md has the figures)."""
    return "manual" if device.type == "cpu" else "flash"


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Mixed precision: products in `dtype`, weights and sums in float32. Re-enterable."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)


def use_fast_products(device: torch.device) -> None:
    """Lets CUDA multiply what is left in float32 with TensorFloat-32: eight times as fast."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def host_copies(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as they are now, in memory of the CPU: training may continue and change them."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}


def free_memory_bytes(device: torch.device) -> int | None:
    """What is free of the memory that the device computes in, or None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory_bytes() if device.type == "cpu" else None


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: of the device, or on the CPU of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if sys.platform == "win32":
        return 0  # not to be had without another dependency
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def out_of_memory(error: RuntimeError, remedy: str) -> OutOfMemoryError | None:
    """The error to raise in place of `error`, if that says that memory ran out."""
    asked = memory_ran_out(error)
    if asked is None:
        return None
    amount = f" (asked for {asked} more)" if asked else ""
    return OutOfMemoryError(f"out of memory{amount}: {remedy}")
