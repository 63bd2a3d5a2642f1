"""Room: a batch → a step of the optimizer: forward, loss, backward, update.

Knows nothing of where batches come from, or of what is done between steps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from myllm.config import TrainConfig
from myllm.data.dataset import Batch
from myllm.errors import InputError, NonFiniteError, OutOfMemoryError
from myllm.model.gpt import GPTModel
from myllm.system.device import autocast, out_of_memory
from myllm.system.torch_adapter import operation_with_nan
from myllm.train.loss import LossFunction, language_loss
from myllm.train.optim import build_optimizer
from myllm.train.schedules import get_scheduler

log = logging.getLogger(__name__)


class StepResult(NamedTuple):
    """What a step measured.

    Attributes:
        loss: nats per counted target.
        n_targets: how many were counted.
        grad_norm: before it was clipped.
    """

    loss: float
    n_targets: int
    grad_norm: float


class TrainStep:
    """Model, loss, optimizer, schedule and precision, which together learn from a batch."""

    def __init__(
        self,
        model: GPTModel,
        config: TrainConfig,
        device: torch.device,
        dtype: torch.dtype,
        loss: LossFunction = language_loss,
    ) -> None:
        """
        Args:
            model: on the device.
            config: how to train. `self.config` may change: see `__call__`.
            device: where to compute.
            dtype: that of the products.
            loss: what is made small.
        """
        self.model, self.config, self.device, self.dtype = model, config, device, dtype
        self.loss = loss
        self.optimizer = build_optimizer(model, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.set_schedule(0)

    def set_schedule(self, step: int, scale: float = 1.0) -> None:
        """Makes the learning rate that of `step`, times `scale`; each step moves it on."""
        self.scheduler = get_scheduler(self.optimizer, self.config, step, scale)

    @property
    def learning_rate(self) -> float:
        """That of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def __call__(self, batch: Batch, step: int) -> StepResult:
        """One step. Where the memory is too small, the batch is cut into smaller micro-batches,
        from then on.

        Args:
            batch: on the CPU; its sequences are dealt to `accumulation_steps` micro-batches.
            step: decides, with the seed, what dropout draws (law 3).

        Raises:
            InputError: no target of the batch counts; nothing was learned.
            NonFiniteError: loss or gradient are NaN or infinite; nothing was learned.
            OutOfMemoryError: a single sequence does not fit.
        """
        while True:
            try:
                return self._step(batch, step)
            except OutOfMemoryError as error:
                size = _halved(self.config.batch_size, batch.n_sequences)
                if size is None:
                    raise
                why = str(error).partition(":")[0]
            # out here, as the error holds on to tensors
            k = batch.n_sequences // size
            self.config = replace(self.config, batch_size=size, accumulation_steps=k)
            self.model.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            log.warning(
                "%s: from here on --batch-size %d --accumulation-steps %d, which learns the same",
                why, size, k,
            )  # fmt: skip

    def _step(self, batch: Batch, step: int) -> StepResult:
        self.model.train()
        # dropout is a function of seed and step: no generator state has to be kept
        torch.manual_seed((self.config.seed << 32) + step)
        with _memory_watched(batch.tokens.shape[1]), self._anomaly_watched(step):
            loss, n_targets = self._accumulate_gradients(batch, step)
            self.scaler.unscale_(self.optimizer)
            limit = self.config.grad_clip or math.inf
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
            # the only wait for the device: it must not be idle while the next work is prepared
            measured = torch.stack((loss, norm)).tolist()
        result = StepResult(measured[0], n_targets, measured[1])
        self._check_finite(step, result)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.model.zero_grad(set_to_none=True)
        return result

    def _accumulate_gradients(self, batch: Batch, step: int) -> tuple[Tensor, int]:
        """Leaves the gradient of the mean over all counted targets (law 5), times the scale.

        Each micro-batch is divided by the number of targets of the whole batch, as sums would
        overflow in float16. The masks tell that number beforehand, unless the loss counts
        something else: then its ratio to what was counted corrects the gradient at the end.

        Returns:
            The mean loss, a float32 scalar, and the number of targets that it is of.
        """
        in_mask = int(batch.mask.sum())
        expected = max(1, in_mask)
        nats = torch.zeros((), device=self.device)
        counted = torch.zeros((), dtype=torch.long, device=self.device)
        for micro_batch in batch.split(self.config.accumulation_steps):
            with autocast(self.device, self.dtype):
                part, count = self.loss(self.model, micro_batch.to(self.device))
            torch.autograd.backward(self.scaler.scale(part / expected))
            nats += part.detach()
            counted += count
        # what the mask tells need not be asked of the device
        n_targets = in_mask if self.loss is language_loss else int(counted)
        if not n_targets:
            self.model.zero_grad(set_to_none=True)
            raise InputError(
                f"step {step}: none of the batch's {batch.mask.numel()} targets counts, so there "
                "is nothing to learn: leave such texts out, or take a longer --context-length"
            )
        if n_targets != expected:
            for p in self.model.parameters():
                if p.grad is not None:
                    p.grad.mul_(expected / n_targets)
        return nats / n_targets, n_targets

    def _check_finite(self, step: int, result: StepResult) -> None:
        """Raises `NonFiniteError`; with a scaler, an infinite gradient only lowers its scale."""
        scaling = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        loss, grad_norm = result.loss, result.grad_norm
        if math.isfinite(loss) and (math.isfinite(grad_norm) or scaling):
            return
        rate = self.learning_rate
        raise NonFiniteError(
            f"step {step}: loss {loss}, gradient norm {grad_norm}; the update was not made; "
            f"{_nonfinite_report(self.model)}; try --learning-rate {rate / 3:.2g} (now "
            f"{rate:.2g}), --dtype float32, a smaller --grad-clip, --on-nonfinite rollback, or "
            "--detect-anomaly to find the operation"
        )

    def _anomaly_watched(self, step: int) -> AbstractContextManager[object]:
        return _anomalies_named(step) if self.config.detect_anomaly else nullcontext()


@contextmanager
def _memory_watched(context_length: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        remedy = (
            f"one sequence does not fit: halve --context-length {context_length}, add "
            "--activation-checkpointing, or take a smaller model"
        )
        known = out_of_memory(error, remedy)
        if known is None:
            raise
        raise known from None


@contextmanager
def _anomalies_named(step: int) -> Iterator[None]:
    """Names the operation whose gradient became NaN."""
    try:
        with torch.autograd.detect_anomaly(check_nan=True):
            yield
    except RuntimeError as error:
        operation = operation_with_nan(error)
        if operation is None:
            raise
        raise NonFiniteError(f"step {step}: {operation}") from None


def _halved(size: int, total: int) -> int | None:
    """The largest part of `total` that is at most half of `size`; None if `size` is 1."""
    return next((part for part in range(size // 2, 0, -1) if total % part == 0), None)


def _nonfinite_report(model: nn.Module) -> str:
    """Names the first parameters whose gradient is not finite, and the largest finite ones."""
    norms = {
        name: float(p.grad.float().norm())
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
    good = sorted((n for n in norms if n not in bad), key=lambda n: norms[n], reverse=True)[:3]
    parts = []
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        parts.append(f"not finite: {', '.join(bad[:3])}{more}")
    if good:
        parts.append("largest finite: " + ", ".join(f"{n} ({norms[n]:.3g})" for n in good))
    return "gradients " + "; ".join(parts) if parts else "no gradient was computed"
