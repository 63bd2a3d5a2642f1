"""Room: a batch → an update of the weights: forward, loss, backward, optimizer.

Knows nothing of where batches come from, or of what is done between updates.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from myllm.config import TrainConfig
from myllm.debug import nonfinite_report
from myllm.device import autocast, out_of_memory
from myllm.errors import NonFiniteError, OutOfMemoryError
from myllm.evaluate import language_loss
from myllm.model import GPTModel
from myllm.optim import build_optimizer, get_scheduler

log = logging.getLogger(__name__)


class Updater:
    """Model, optimizer, schedule and precision, which together make a batch an update."""

    def __init__(
        self, model: GPTModel, config: TrainConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        """
        Args:
            model: on the device.
            config: how to train. `self.config` may change: see `update`.
            device: where to compute.
            dtype: that of the products.
        """
        self.model, self.config, self.device, self.dtype = model, config, device, dtype
        self.optimizer = build_optimizer(model, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.set_schedule(0)

    def set_schedule(self, step: int, scale: float = 1.0) -> None:
        """Makes the learning rate that of `step`, times `scale`; each update moves it on."""
        self.scheduler = get_scheduler(self.optimizer, self.config, step, scale)

    @property
    def learning_rate(self) -> float:
        """That of the next update."""
        return float(self.scheduler.get_last_lr()[0])

    def update(self, tokens: Tensor, targets: Tensor, step: int) -> tuple[float, float]:
        """One optimizer step. Where the memory is too small, the batch is cut into smaller parts,
        from then on.

        Args:
            tokens: (k · B, T), on the CPU.
            targets: (k · B, T).
            step: decides, with the seed, what dropout draws (law 3).

        Returns:
            The loss, and the norm of its gradient.

        Raises:
            NonFiniteError: one of them is NaN or infinite; the update was not made.
            OutOfMemoryError: a single window does not fit.
        """
        while True:
            try:
                return self._update(tokens, targets, step)
            except OutOfMemoryError as error:
                size = _halved(self.config.batch_size, len(tokens))
                if size is None:
                    raise
                why = str(error).partition(":")[0]
            # out here, as the error holds on to tensors
            k = len(tokens) // size
            self.config = replace(self.config, batch_size=size, accumulation_steps=k)
            self.model.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            log.warning(
                "%s: from here on --batch-size %d --accumulation-steps %d, which learns the same",
                why, size, len(tokens) // size,
            )  # fmt: skip

    def _update(self, tokens: Tensor, targets: Tensor, step: int) -> tuple[float, float]:
        self.model.train()
        # dropout is a function of seed and step: no generator state has to be kept
        torch.manual_seed((self.config.seed << 32) + step)
        k = self.config.accumulation_steps
        total = torch.zeros((), device=self.device)
        with _memory_watched(tokens.shape[1]), self._anomaly_watched(step):
            for inputs, labels in zip(tokens.chunk(k), targets.chunk(k)):
                inputs, labels = (t.to(self.device, non_blocking=True) for t in (inputs, labels))
                with autocast(self.device, self.dtype):
                    loss = language_loss(self.model, inputs, labels) / k
                self.scaler.scale(loss).backward()
                total += loss.detach()
            self.scaler.unscale_(self.optimizer)
            limit = self.config.grad_clip or math.inf
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        values = total.item(), norm.item()
        self._check_finite(step, *values)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.model.zero_grad(set_to_none=True)
        return values

    def _check_finite(self, step: int, loss: float, grad_norm: float) -> None:
        """Raises `NonFiniteError`; with a scaler, an infinite gradient only lowers its scale."""
        scaling = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        if math.isfinite(loss) and (math.isfinite(grad_norm) or scaling):
            return
        rate = self.learning_rate
        raise NonFiniteError(
            f"step {step}: loss {loss}, gradient norm {grad_norm}; the update was not made; "
            f"{nonfinite_report(self.model)}; try --learning-rate {rate / 3:.2g} (now {rate:.2g}),"
            " --dtype float32, a smaller --grad-clip, --on-nonfinite rollback, or "
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
            f"one window does not fit: halve --context-length {context_length}, add "
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
        if "returned nan values" not in str(error):
            raise
        raise NonFiniteError(f"step {step}: {str(error).splitlines()[0]}") from None


def _halved(size: int, total: int) -> int | None:
    """The largest part of `total` that is at most half of `size`; None if `size` is 1."""
    return next((part for part in range(size // 2, 0, -1) if total % part == 0), None)
