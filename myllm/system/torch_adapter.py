"""Room: PyTorch's private names and error texts → ours. Knows nothing of models.

Nothing else in this package may touch them. tests/test_torch_adapter.py says which of them a new
version of PyTorch has broken.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

# --- one operation on a list of tensors: on GPUs one kernel instead of one for each


def scale_each_(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiplies each in place."""
    torch._foreach_mul_(list(tensors), factor)


def add_each_(tensors: Sequence[Tensor], others: Sequence[Tensor], alpha: float) -> None:
    """Adds `alpha` times the other of the same index to each, in place."""
    torch._foreach_add_(list(tensors), list(others), alpha=alpha)


def lerp_each_(tensors: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """Moves each a part of the way to its end, in place."""
    torch._foreach_lerp_(list(tensors), list(ends), weight)


def lerp_each(tensors: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> list[Tensor]:
    """What lies a part of the way from each to its end."""
    return list(torch._foreach_lerp(list(tensors), list(ends), weight))


# --- the compiler


def compiler_is_loaded() -> bool:
    """Whether anything can have been compiled; the import of the compiler takes 2 s."""
    return "torch._dynamo" in sys.modules


def is_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` is in force."""
    return module._compiled_call_impl is not None


def undo_compile(module: nn.Module) -> None:
    """Takes `module.compile()` back."""
    module._compiled_call_impl = None


# --- tensors that have shapes and no content


def tensors_without_content() -> AbstractContextManager[Any]:
    """Within the block, tensors take no memory; their dtypes follow autocast, as on the CPU (on
    the public device "meta" they would not)."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a second to import

    return FakeTensorMode()


# --- what errors say


def memory_ran_out(error: BaseException) -> str | None:
    """If `error` says that memory ran out: how much was asked for, or "" if it does not tell."""
    text = str(error)
    on_cpu = re.search(r"(can't allocate|not enough) memory", text)  # Linux and macOS; Windows
    if not on_cpu and not isinstance(error, torch.OutOfMemoryError):
        return None
    asked = re.search(r"allocate ([\d.]+ ?\w+)", text)
    return asked[1] if asked else ""


def operation_with_nan(error: RuntimeError) -> str | None:
    """If `error` is the anomaly detection's: its sentence, which names the operation."""
    text = str(error)
    return text.splitlines()[0] if "returned nan values" in text else None


def parameter_slots(model: nn.Module) -> list[tuple[dict[str, Tensor | None], str]]:
    """Where modules hold their parameters and buffers: `slots[name]` is the one there now, also
    after another was put in its place; to ask the modules takes ten times as long."""
    held: list[dict[str, Any]] = []
    for module in model.modules():
        held += (module._parameters, module._buffers)
    return [(slots, name) for slots in held for name in slots]


def is_changed(module: nn.Module) -> bool:
    """Whether somebody gave this very module something else to compute: a hook, or a method."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks) or any(name in vars(module) for name in ("forward", "features", "attend"))
