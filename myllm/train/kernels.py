"""Room: a model → the same model, faster: compiled, or on another device; checked that it computes
the same. Knows nothing of data or the loop.

Each block is compiled by itself. All have the same code, so it is compiled once, in seconds,
however deep the model is; as one piece the model would take minutes and run no faster.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from myllm.data.dataset import Batch
from myllm.errors import ConfigError
from myllm.model.gpt import GPTModel
from myllm.system.places import cache_folder
from myllm.system.torch_adapter import compiler_is_loaded, undo_compile
from myllm.train.loss import mean_loss

log = logging.getLogger(__name__)

# What a run must cost before compiling it repays, in floating-point operations. On two CPU cores
# compiling takes 10 to 20 s, saves a fifth, and this is 80 s; on a GPU it is the work of a minute.
WORTH_FLOPS = {"cpu": 2e13, "cuda": 1e16}
TOLERANCE = 0.02  # largest relative difference of loss and gradient, with bfloat16 products


def compiling_pays(device: torch.device, flops: float) -> bool:
    """Whether a training run of so many operations is faster with compiling it first.

    It follows from the run's configuration alone, not from a measurement, so that the same run is
    done in the same way every time (law 3).
    """
    return flops >= WORTH_FLOPS.get(device.type, float("inf"))


def compile_blocks(
    model: GPTModel, batch: Batch, precision: AbstractContextManager[object]
) -> bool:
    """Compiles the blocks in place, which keeps the weights' names.

    A batch is computed both ways; where they differ, or the compiler fails (it needs a C++
    compiler on CPUs), the model stays as it is and the log says why.

    Args:
        model: in training mode.
        batch: of the shape that training will have, on the model's device.
        precision: the mixed precision that training will have; re-enterable.

    Returns:
        Whether the model is compiled.
    """
    log.info("compiling the model, which takes some seconds (--no-compile leaves it out)")
    _keep_compiled_code()
    # on CPUs, dropout draws as it does uncompiled
    options = {"fallback_random": batch.tokens.device.type == "cpu"}
    try:
        plain = _loss_and_norm(model, batch, precision)
        for block in model.blocks:
            block.compile(dynamic=False, options=options)
        compiled = _loss_and_norm(model, batch, precision)
        if not _close(plain, compiled):
            raise ArithmeticError(f"loss {compiled[0]:.4f} instead of {plain[0]:.4f}")
        return True
    except Exception as error:  # the compiler's own errors have no common base
        for block in model.blocks:
            undo_compile(block)
        reason = (str(error).strip().splitlines() or [""])[0]
        log.warning("not compiled: %s (%s)", type(error).__name__, reason[:100])
        return False


@contextmanager
def uncompiled() -> Iterator[None]:
    """Runs compiled models as they are written: for shapes not worth compiling for."""
    if not compiler_is_loaded():
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def checked_device(
    model: GPTModel, batch: Batch, device: torch.device, chosen: bool
) -> torch.device:
    """The device to train on: MPS only where it computes what the CPU computes.

    Some PyTorch versions have wrong kernels for it; training on them learns nothing, silently.

    Args:
        model: on the CPU.
        batch: what to compare on, on the CPU.
        device: the one to check.
        chosen: the user named it: refuse it instead of falling back to the CPU.

    Raises:
        ConfigError: it computes something else, and the user chose it.
    """
    if device.type != "mps":
        return device
    expected = _loss_and_norm(model, batch, nullcontext())
    there = copy.deepcopy(model).to(device)
    found = _loss_and_norm(there, batch.to(device), nullcontext())
    if _close(expected, found):
        return device
    complaint = f"it computes a loss of {found[0]:.4f}, the CPU {expected[0]:.4f}"
    if chosen:
        raise ConfigError(f"device {device}: {complaint}; take --device cpu or another PyTorch")
    log.warning("training on the CPU, not on %s: %s", device, complaint)
    return torch.device("cpu")


def _loss_and_norm(
    model: GPTModel, batch: Batch, precision: AbstractContextManager[object]
) -> tuple[float, float]:
    """The loss of a batch and the norm of its gradient, without dropout's influence."""
    torch.manual_seed(0)
    with precision:
        loss = mean_loss(model, batch)
    torch.autograd.backward(loss)
    norm = torch.nn.utils.get_total_norm(
        [p.grad for p in model.parameters() if p.grad is not None]
    )
    model.zero_grad(set_to_none=True)
    return loss.item(), norm.item()


def _close(expected: tuple[float, float], found: tuple[float, float]) -> bool:
    return all(abs(e - f) <= TOLERANCE * abs(e) for e, f in zip(expected, found))


def _keep_compiled_code() -> None:
    """For later runs, where there is a place for it."""
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        if (cache := cache_folder("compiled")) is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
