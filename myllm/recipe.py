"""Room: how long a run may take, here → its shape, batch, learning rate, steps.

The rules by which a recipe grows, so that one number (`--minutes`) sets all the rest. Each has a
reason; their constants were fitted on tiny Shakespeare (docs/benchmarks.md has the figures).

- Tokens grow with the square root of the operations, and so do parameters (arXiv 2203.15556). A
  text seen more than four times teaches less each time (arXiv 2305.16264): from there on the
  parameters take a larger part of the growth.
- Width and depth grow together.
- The learning rate falls with the square root of the width. A Muon update of a d × d matrix has a
  spectral norm in proportion to √d; its effect on the features is the same at every width only
  if the rate takes that out again (arXiv 2310.17813).
  Runs of some hundred steps, all of them near the start, bear a higher one.
- The batch grows slowly with the operations: long runs gain from less noise, short ones from more
  steps; small models waste the machine on small batches.
- Dropout grows with the times that the text is seen, from the fourth on.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Sequence
from typing import Any

from myllm.benchmark import benchmark_training_step, measure_peak_flops
from myllm.compile import compiling_pays
from myllm.config import RunConfig, with_values
from myllm.device import choose_device, choose_dtype
from myllm.errors import ConfigError
from myllm.model import GPTModel

log = logging.getLogger(__name__)

BASE_FLOPS, BASE_TOKENS = 1e12, 850_000  # a run of some seconds on two CPU cores
FRESH_EPOCHS = 4.0  # so often a text teaches as much as a new one
MOST_EPOCHS = 20.0  # a text seen more often than that is learned by heart
WIDTHS = range(64, 2049, 32)
BATCH_TOKENS = 2200  # of the base
LEARNING_RATE = 0.055  # times 1 / √width
UTILISATION = 0.4  # of the fastest matrix product: what training reaches, roughly
COMPILE_SECONDS, COMPILED_SHARE = 20.0, 0.85  # what compiling takes, and of a step is left
SAVE_SECONDS = 1.0  # building the model once more, saving it
EVALUATION_SHARE = 0.05  # of the time
MOST_EVALUATIONS = 10


def recipe(flops: float, n_tokens: int) -> dict[str, Any]:
    """The settings of a run of about so many floating-point operations.

    Args:
        flops: 6 · parameters · tokens, roughly.
        n_tokens: how long the text is.

    Returns:
        Values for `config.with_values`.
    """
    growth = flops / BASE_FLOPS
    epochs = BASE_TOKENS * growth**0.5 / n_tokens
    if epochs > FRESH_EPOCHS:
        epochs = (FRESH_EPOCHS * epochs) ** 0.5
    epochs = min(epochs, MOST_EPOCHS)
    n_parameters = flops / (6 * epochs * n_tokens)
    width = min(WIDTHS, key=lambda d: abs(math.log(_parameters(d) / n_parameters)))
    head_size = 64 if width % 64 == 0 and width >= 192 else 32
    context = min(1024, 64 * 2 ** round(1.5 * math.log2(max(80, width) / 80)))
    short = max(1.0, growth**-0.35)
    batch_size = max(4, 4 * round(BATCH_TOKENS * growth**0.13 / context / 4))
    return {
        "d_model": width,
        "n_layers": _depth(width),
        "n_heads": width // head_size,
        "context_length": context,
        "batch_size": batch_size,
        "learning_rate": float(f"{LEARNING_RATE / math.sqrt(width) * short:.2g}"),
        "dropout": round(min(0.3, max(0.0, 0.05 * math.log2(epochs / FRESH_EPOCHS))), 2),
    }


def _depth(width: int) -> int:
    return round(2 + width / 48)


def _parameters(width: int) -> int:
    """Weights of the blocks, 12 L C²."""
    return 12 * _depth(width) * width**2


def fit_to_time(
    config: RunConfig,
    named: Collection[str],
    train_ranges: Sequence[tuple[int, int]],
    val_ranges: Sequence[tuple[int, int]],
    spent_s: float = 0.0,
) -> RunConfig:
    """The configuration whose run ends `config.train.minutes` after the program began.

    The shape follows from the machine's speed by `recipe`; then some steps of that shape are
    timed, and the steps that fit are counted. What is found stands in the configuration: from
    there on the run is as repeatable as any.

    Args:
        config: with `minutes`, the vocabulary size, and the values of `named`.
        named: settings that stay as they are.
        train_ranges: the parts of the text to learn from.
        val_ranges: those that an evaluation predicts.
        spent_s: seconds that have gone by since the program began.

    Raises:
        ConfigError: the time is too short for ten steps; or a size was named, too.
    """
    assert config.train.minutes is not None
    if "size" in named:
        raise ConfigError("both --size and --minutes choose the model's shape: give one of them")
    n_train, n_val = (
        sum(end - start for start, end in ranges) for ranges in (train_ranges, val_ranges)
    )
    began = time.monotonic()
    device = choose_device(config.train.device)
    left_s = 60 * config.train.minutes - spent_s - SAVE_SECONDS
    speed = UTILISATION * measure_peak_flops(device, choose_dtype(device, config.train.dtype))
    for _ in range(2):  # small models do not reach the speed that large ones do
        values = recipe(max(1.0, left_s) * speed, n_train)
        free = {name: value for name, value in values.items() if name not in named}
        config = with_values(config, free).validate()
        B, T = config.train.batch_size, config.model.context_length
        model = GPTModel(config.model).to(device)
        timing = benchmark_training_step(model, B, T, 3, config.train)
        speed = timing.flops_per_second
    B *= config.train.accumulation_steps
    step_s = timing.seconds * config.train.accumulation_steps
    evaluation_s = step_s / 3 * n_val / (B * T)
    n_evaluations = int(EVALUATION_SHARE * left_s / evaluation_s)
    n_evaluations = min(MOST_EVALUATIONS, max(1, n_evaluations))
    left_s -= n_evaluations * evaluation_s + time.monotonic() - began
    pays = compiling_pays(device, speed * left_s)
    if config.train.compile or (config.train.compile is None and pays):
        left_s, step_s = left_s - COMPILE_SECONDS, step_s * COMPILED_SHARE
    max_steps = int(left_s / step_s)
    if max_steps < 10:
        raise ConfigError(
            f"minutes {config.train.minutes}: a step takes {step_s:.2g} s here and preparing took "
            f"{spent_s:.0f} s, which leaves time for {max(0, max_steps)} steps: give more minutes"
        )
    if "max_steps" in named:
        return config
    longest = int(MOST_EPOCHS * n_train / (B * T))
    if longest < max_steps:
        log.info("the text is short: seen %g times the run ends earlier", MOST_EPOCHS)
        max_steps = longest
    found = {
        "max_steps": max_steps,
        "warmup_steps": max_steps // 20,
        "eval_interval": math.ceil(max_steps / n_evaluations),
    }
    return with_values(config, {name: v for name, v in found.items() if name not in named})
