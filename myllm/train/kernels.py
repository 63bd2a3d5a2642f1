"""Room: a model → the same model, faster: by other kernels, or on another device; checked that it
computes the same. Knows nothing of the loop.
"""

from __future__ import annotations

import copy
import logging
import math
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from myllm.config import RunConfig
from myllm.data.dataset import Batch
from myllm.errors import ConfigError
from myllm.kernels.decode_cpu import begin_to_compile
from myllm.kernels.plain import Kernels
from myllm.kinds import KERNELS
from myllm.model.dropout import Dropout
from myllm.model.gpt import GPTModel
from myllm.system.device import choose_device, choose_dtype, synchronize
from myllm.system.progress import stage
from myllm.train.loss import mean_loss
from myllm.train.pace import step_work

log = logging.getLogger(__name__)

# the largest relative difference of the loss, and of the gradient as one vector
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
LOOSELY = 0.2  # of the loss, where dropout draws something else
MPS_TOLERANCE = 0.02
REPETITIONS = 3  # of what is timed
MEASURED_SHARE = 0.01  # of the run's operations may go into measuring
USUAL_SPEED = 1e11  # operations a second of training on a CPU, about
ADVANTAGE = 1.05  # that others must have over plain ones


class Passes(NamedTuple):
    """What a model computes from a batch, there and back.

    Attributes:
        loss: nats per target.
        gradient: of all parameters, one after another.
    """

    loss: float
    gradient: Tensor


def use_kernels(
    name: str, model: GPTModel, batch: Batch, dtype: torch.dtype,
    precision: AbstractContextManager[object],
) -> Kernels:  # fmt: skip
    """Has the model computed by the kernels of that name, if they compute what plain ones do.

    A batch is computed both ways; where they differ, or fail (a compiler or library may be
    missing), the model stays as it is and the log says why.

    Args:
        name: of `KERNELS`.
        model: in training mode, computed by plain kernels so far.
        batch: of the shape that training will have, on the model's device.
        dtype: of products.
        precision: the mixed precision that training will have; re-enterable.

    Returns:
        Those that are in use.
    """
    if name == "plain":
        return Kernels()
    kernels = None
    try:
        kernels = KERNELS[name]()
        if dtype not in kernels.dtypes or batch.tokens.device.type not in kernels.works_on:
            raise ValueError(f"not for {dtype} on {batch.tokens.device.type}")
        _check(kernels, model, batch, dtype, precision)
        return kernels
    except ConfigError:
        raise
    except Exception as error:  # compilers' own errors have no common base
        if kernels is not None:
            kernels.detach(model)
        reason = (str(error).strip().splitlines() or [""])[0]
        log.warning(
            "not computed by %s kernels, but by plain ones, which are slower: %s (%s)",
            name, type(error).__name__, reason[:100],
        )  # fmt: skip
        return Kernels()


@contextmanager
def making_kernels(config: RunConfig) -> Iterator[None]:
    """While the block does something else, kernels that a run is likely to want are made, which
    takes seconds on a machine that has none; it ends when they are.

    Args:
        config: of a new run, as far as it is known before the text.
    """
    train = config.train
    device = choose_device(train.device)
    dtype = choose_dtype(device, train.dtype)
    if train.minutes is not None:
        flops = 60 * train.minutes * USUAL_SPEED
    else:
        model = replace(config.model, vocab_size=config.model.vocab_size or 1)  # not yet known
        work = step_work(replace(config, model=model))
        flops = work.n_tokens * work.per_token * train.max_steps
    names = [train.kernels] if train.kernels else _worth_it(device.type, dtype, flops)
    names = [name for name in names if name != "plain"]
    makers = [threading.Thread(target=_make, args=(name, dtype), daemon=True) for name in names]
    for maker in makers:
        maker.start()
    if makers and device.type == "cpu":  # samples are written, too; steps are not timed beside it
        makers.append(begin_to_compile())
    yield
    with stage("making kernels ready"):
        for maker in makers:
            maker.join()


def _make(name: str, dtype: torch.dtype) -> None:
    try:
        KERNELS[name]().make(dtype)
    except Exception as error:  # whoever is to use them will meet it, and tell
        log.debug("%s kernels: %s", name, error)


def _worth_it(device_type: str, dtype: torch.dtype, flops: float) -> list[str]:
    """The kernels that may gain in so many operations."""
    return [
        name for name in KERNELS
        if flops >= KERNELS[name].worth_flops.get(device_type, math.inf)
        and dtype in KERNELS[name].dtypes
    ]  # fmt: skip


def fastest_kernels(
    model: GPTModel, batch: Batch, dtype: torch.dtype, precision: AbstractContextManager[object],
    flops: float,
) -> str:  # fmt: skip
    """The name of the kernels with which a run of so many operations ends first.

    On a CPU they are timed on a part of the batch, where the run is long enough to gain from
    it. On a GPU the length of the run decides.

    Args:
        model, batch, dtype, precision: as for `use_kernels`.
        flops: floating-point operations of the run.
    """
    device = batch.tokens.device
    worth = _worth_it(device.type, dtype, flops)
    for name in [name for name in worth if find_spec(KERNELS[name].needs) is None]:
        log.info("training may be faster here with %s: pip install %s", name, KERNELS[name].needs)
        worth.remove(name)
    if not worth or device.type != "cpu":
        return next(iter(worth), "plain")
    part = _part(model, batch, MEASURED_SHARE * flops)
    seconds = {"plain": _seconds(model, part, precision) / ADVANTAGE}
    for name in worth:
        kernels = use_kernels(name, model, part, dtype, precision)
        if type(kernels) is not Kernels:
            seconds[name] = _seconds(model, part, precision)
            kernels.detach(model)
    log.debug("kernels, and a part of a step with them: %s", seconds)
    return min(seconds, key=lambda name: seconds[name])


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
    expected = _passes(model, batch, nullcontext())
    there = copy.deepcopy(model).to(device)
    found = _passes(there, batch.to(device), nullcontext())
    found = Passes(found.loss, found.gradient.to("cpu"))
    if _difference(expected, found) <= MPS_TOLERANCE:
        return device
    complaint = f"it computes a loss of {found.loss:.4f}, the CPU {expected.loss:.4f}"
    if chosen:
        raise ConfigError(f"device {device}: {complaint}; take --device cpu or another PyTorch")
    log.warning("training on the CPU, not on %s: %s", device, complaint)
    return torch.device("cpu")


def _check(
    kernels: Kernels, model: GPTModel, batch: Batch, dtype: torch.dtype,
    precision: AbstractContextManager[object],
) -> None:  # fmt: skip
    """Attaches kernels; raises `ArithmeticError` if they do not compute what plain ones do."""
    alike = batch.tokens.device.type in kernels.drops_alike or not model.config.dropout_rate
    with nullcontext() if alike or not kernels.checked_whole else _without_dropout(model):
        plain = _passes(model, batch, precision)
        kernels.attach(model, dtype)
        found = _passes(model, batch, precision)
    difference, tolerance = _difference(plain, found), TOLERANCES[dtype]
    if not alike and not kernels.checked_whole:
        difference, tolerance = _relative(plain.loss, found.loss), LOOSELY
    if not difference <= tolerance:  # nor NaN
        raise ArithmeticError(f"loss or gradient differ by {difference:.1%}")


@contextmanager
def _without_dropout(model: GPTModel) -> Iterator[None]:
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    rates = [layer.rate for layer in layers]
    for layer in layers:
        layer.rate = 0.0
    try:
        yield
    finally:
        for layer, rate in zip(layers, rates):
            layer.rate = rate


def _passes(model: GPTModel, batch: Batch, precision: AbstractContextManager[object]) -> Passes:
    """Forward and backward, with what dropout draws from one seed."""
    torch.manual_seed(0)
    with precision:
        loss = mean_loss(model, batch)
    torch.autograd.backward(loss)
    slopes = (torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())
    gradient = torch.cat([slope.float().flatten() for slope in slopes])
    model.zero_grad(set_to_none=True)
    return Passes(loss.item(), gradient)


def _difference(expected: Passes, found: Passes) -> float:
    """Relative, of loss or gradient, whichever is larger; infinite where it is not a number."""
    by_gradient = (found.gradient - expected.gradient).norm() / expected.gradient.norm()
    difference = max(_relative(expected.loss, found.loss), by_gradient.item())
    return difference if difference == difference else math.inf


def _relative(expected: float, found: float) -> float:
    return abs(found - expected) / abs(expected)


def _part(model: GPTModel, batch: Batch, flops: float) -> Batch:
    """As many of the sequences as can be computed again and again within so many operations."""
    B, T = batch.tokens.shape
    passes = 2 * (REPETITIONS + 2)
    n = int(flops / (passes * T * model.estimate_flops_per_token(T)))
    n = min(B, max(1, n))
    return Batch(batch.tokens[:n], batch.targets[:n], batch.mask[:n])


def _seconds(model: GPTModel, batch: Batch, precision: AbstractContextManager[object]) -> float:
    """The least that forward and backward take."""
    seconds = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        _passes(model, batch, precision)
        synchronize(batch.tokens.device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
