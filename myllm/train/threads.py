"""Room: a configuration → the number of CPU threads it is trained with, measured where none is
named.

Beside another busy program each thread too many makes the others wait; tiny models lose more by
dividing their work than they gain. Both show in a fraction of a second of training steps.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from myllm.checks import check_range
from myllm.config import TRAIN_LIMITS, RunConfig
from myllm.model.gpt import GPTModel
from myllm.presets import CHOSEN, Resolved
from myllm.system.device import choose_device
from myllm.system.machine import available_cores, user_chose_threads
from myllm.train.benchmark import training_step
from myllm.train.pace import LEAST_TOKENS, step_work
from myllm.train.sequences import sequence_length

log = logging.getLogger(__name__)

BUDGET_S = 0.6  # of measuring, and what steps of the size below add to it
STEP_FLOPS = 4e9  # of a step that is measured; a quarter of that favours too few threads
LARGE_FLOPS = 1e10  # of one that cannot be made smaller: measuring would take long
ADVANTAGE = 1.1  # that fewer threads must have
SHORT_RUN_S = 3.0  # a run of that length gains less than measuring takes
SLOW_FLOPS, LEAST_STEP_S = 5e10, 1e-3  # a core's work in a second; what the smallest step takes


@contextmanager
def threads_put_back() -> Iterator[None]:
    """Leaves PyTorch with the number of threads that it had."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        use_threads(before)


def with_threads(config: RunConfig) -> RunConfig:
    """A new run's configuration with the number of threads that is in use from now on."""
    threads = config.train.threads
    if threads is None and choose_device(config.train.device).type == "cpu":
        is_short = _roughly_s(config) < SHORT_RUN_S
        threads = torch.get_num_threads() if is_short else fastest_threads(config)
    return _in_use(config, threads)


def with_saved_threads(resolved: Resolved, metadata: Mapping[str, Any]) -> RunConfig:
    """A resumed run's: as many as before, as its bits depend on it, unless others are named or
    the machine has fewer; `provenance` tells of a difference.

    Args:
        resolved: the run's settings.
        metadata: of its newest checkpoint, which knows the number where the settings do not.
    """
    config = resolved.config
    threads = config.train.threads or metadata.get("threads")
    if resolved.sources["threads"] not in CHOSEN and isinstance(threads, int):
        here = torch.get_num_threads()
        most = here if user_chose_threads() else max(here, available_cores())
        threads = most if user_chose_threads() else min(threads, most)
    return _in_use(config, threads)


def use_threads(threads: int | None) -> None:
    """Has PyTorch take so many from now on; None changes nothing.

    Raises:
        ConfigError: a number that no machine has.
    """
    if threads is None:
        return
    check_range("threads", threads, *TRAIN_LIMITS["threads"])
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def _in_use(config: RunConfig, threads: int | None) -> RunConfig:
    use_threads(threads)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, threads=threads))


def fastest_threads(config: RunConfig) -> int:
    """The number of threads, at most PyTorch's own, with which a training step takes least.

    A part of the step is timed with each number in turn, again and again, so that what comes and
    goes meets each: forward and backward pass, of some tokens. Not where the user has decided, or
    where even a part of a step takes long: a large model keeps all threads at work.
    """
    most = torch.get_num_threads()
    work, T = step_work(config), sequence_length(config.model, config.train)
    n_tokens = min(work.n_tokens, max(LEAST_TOKENS, int(STEP_FLOPS / work.per_token)))
    is_large = n_tokens * work.per_token > LARGE_FLOPS
    if most == 1 or user_chose_threads() or is_large:
        return most
    batch_size, length = max(1, n_tokens // T), min(T, n_tokens)
    model = GPTModel(config.model)
    step = training_step(model, batch_size, length, config.train, updates=False)
    numbers = _numbers(most)
    seconds = dict.fromkeys(numbers, 0.0)
    with threads_put_back():
        step()  # warms up
        deadline = time.perf_counter() + BUDGET_S
        n_rounds = 0
        while not n_rounds or time.perf_counter() < deadline:
            for n in numbers:
                torch.set_num_threads(n)
                start = time.perf_counter()
                step()
                seconds[n] += time.perf_counter() - start
            n_rounds += 1
    fastest = min(numbers, key=lambda n: seconds[n] * (1 if n == most else ADVANTAGE))
    told = ", ".join(f"{n}: {1e3 * seconds[n] / n_rounds:.1f} ms" for n in numbers)
    log.debug("threads, and a part of a step with them: %s", told)
    return fastest


def _numbers(most: int) -> list[int]:
    """Those to try: all of few; of many the powers of two, one less than all, and all."""
    if most <= 4:
        return list(range(1, most + 1))
    powers = [2**i for i in range(most.bit_length()) if 2**i < most - 1]
    return [*powers, most - 1, most]


def _roughly_s(config: RunConfig) -> float:
    """How long the run takes, or less."""
    step_s = max(LEAST_STEP_S, step_work(config).total / SLOW_FLOPS)
    return config.train.max_steps * step_s
