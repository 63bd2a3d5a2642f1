"""Room: a step → its learning rate (`SCHEDULES`). Knows nothing of parameters or data.

A schedule gives, for the progress through the run after warm-up, from 0 to 1, the share of the
peak, from 1 to 0. To add one: a function of (progress), and its line in `kinds.SCHEDULES`.
"""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from myllm.config import TrainConfig
from myllm.kinds import SCHEDULES


def constant(progress: float) -> float:
    """The peak throughout."""
    return 1.0


def linear(progress: float) -> float:
    """Falls evenly."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """Falls slowly, fast, slowly (arXiv 1608.03983)."""
    return (1 + math.cos(math.pi * progress)) / 2


def one_cycle(progress: float) -> float:
    """Up along a cosine for 30 % of the run, down for the rest (arXiv 1708.07120)."""
    if progress < 0.3:
        return 0.04 + 0.96 * (1 - cosine(progress / 0.3))
    return cosine((progress - 0.3) / 0.7)


def wsd(progress: float) -> float:
    """Stable, then linear decay over the last half (arXiv 2405.18392 compares its lengths)."""
    return min(1.0, (1.0 - progress) / 0.5)


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """The share of the peak learning rate at `step`: a pure function, 0-based.

    Raises:
        ConfigError: unknown schedule.
    """
    shape = SCHEDULES[config.schedule]
    warmup_steps = min(config.warmup_steps, config.max_steps // 5)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1) * _floored(shape(0.0), config)
    progress = (step - warmup_steps) / max(1, config.max_steps - warmup_steps)
    return _floored(shape(min(1.0, progress)), config)


def _floored(factor: float, config: TrainConfig) -> float:
    return config.min_learning_rate + (1 - config.min_learning_rate) * factor


def get_scheduler(
    optimizer: Optimizer, config: TrainConfig, start_step: int = 0, scale: float = 1.0
) -> LambdaLR:
    """A scheduler whose learning rate at each step is that of `learning_rate_factor`.

    Args:
        optimizer: its groups' `lr` are the peaks.
        config: `schedule`, `warmup_steps`, `max_steps`, `min_learning_rate`.
        start_step: the step to begin at, for a resumed run.
        scale: what every rate is multiplied with.

    Raises:
        ConfigError: unknown schedule.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return LambdaLR(
        optimizer,
        lambda step: scale * learning_rate_factor(step, config),
        last_epoch=start_step - 1,
    )
