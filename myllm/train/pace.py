"""Room: a configuration → how long its training step takes here, found within a budget of time.

What would take longer than the budget is not computed: a part of it is timed, or none.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from myllm.config import RunConfig
from myllm.model.gpt import GPTModel
from myllm.system.device import shapes_only
from myllm.train.benchmark import benchmark_training_step
from myllm.train.optim import parameter_groups
from myllm.train.sequences import sequence_length

REPETITIONS = 3  # one that warms up, and two or more that are timed
LEAST_TOKENS = 32  # fewer tell nothing of many
NEWTON_SCHULZ_STEPS = 5


class Work(NamedTuple):
    """The floating-point operations of a step.

    Attributes:
        per_token: of the model, forward and backward.
        update: of the optimizer, whatever the batch.
        n_tokens: of the batch.
    """

    per_token: int
    update: int
    n_tokens: int

    @property
    def total(self) -> int:
        """Of the whole step."""
        return self.per_token * self.n_tokens + self.update


class Pace(NamedTuple):
    """How fast training is.

    Attributes:
        step_s: seconds of a step.
        flops_per_second: operations of the model over that time; the optimizer's are not counted.
    """

    step_s: float
    flops_per_second: float


def step_work(config: RunConfig, n_tokens: int = 0, length: int = 0) -> Work:
    """The operations of a step, of as many tokens as `config` says unless told otherwise."""
    with shapes_only():
        model = GPTModel(config.model)
    T = sequence_length(config.model, config.train)
    update = 0
    for group in parameter_groups(model, config.train):
        for p in group["params"] if group["orthogonal"] else ():
            small, large = sorted(p.shape)
            update += NEWTON_SCHULZ_STEPS * (4 * small**2 * large + 2 * small**3)
    n_tokens = n_tokens or T * config.train.batch_size * config.train.accumulation_steps
    return Work(model.estimate_flops_per_token(length or T), update, n_tokens)


def measure_pace(config: RunConfig, device: torch.device, speed: float, budget_s: float) -> Pace:
    """Times steps, or steps of as much of the batch as the budget has time for.

    Args:
        config: shape and batch.
        device: where to compute.
        speed: operations a second that are expected.
        budget_s: seconds that timing should take at that speed. Nothing is built or timed where
            a step of few tokens would take longer; then the speed is taken for granted.
    """
    work, T = step_work(config), sequence_length(config.model, config.train)
    affordable = int((budget_s / REPETITIONS * speed - work.update) / work.per_token)  # tokens
    batch_size = min(config.train.batch_size, affordable // T)
    length = T if batch_size else affordable
    if length < min(T, LEAST_TOKENS):
        step_s = work.total / speed
    else:
        batch_size = max(1, batch_size)
        model = GPTModel(config.model).to(device)
        timing = benchmark_training_step(
            model, batch_size, length, REPETITIONS, config.train, budget_s
        )
        step_s = timing.seconds * work.total / step_work(config, batch_size * length, length).total
    return Pace(step_s, work.per_token * work.n_tokens / step_s)
