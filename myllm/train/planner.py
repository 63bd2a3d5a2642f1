"""Room: how long a run may take, here → its shape, batch, learning rate, steps (a plan).

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
from collections.abc import Mapping, Sequence
from typing import Any

from myllm.config import TrainConfig, with_values
from myllm.errors import ConfigError
from myllm.model.gpt import GPTModel
from myllm.presets import GIVEN, Resolved
from myllm.system.device import choose_device, choose_dtype
from myllm.train.benchmark import benchmark_training_step, measure_peak_flops
from myllm.train.compile import compiling_pays

log = logging.getLogger(__name__)

BASE_FLOPS, BASE_TOKENS = 1e12, 850_000  # a run of some seconds on two CPU cores
FRESH_EPOCHS = 4.0  # so often a text teaches as much as a new one
MAX_EPOCHS = 20.0  # a text seen more often than that is learned by heart
WIDTHS = range(64, 2049, 32)
BATCH_TOKENS = 2200  # of the base
LEARNING_RATE = 0.055  # times 1 / √width
UTILISATION = 0.4  # of the fastest matrix product: what training reaches, roughly
COMPILE_SECONDS, COMPILED_SHARE = 20.0, 0.85  # what compiling takes, and of a step is left
SAVE_SECONDS = 1.0  # building the model once more, saving it
EVALUATION_SHARE = 0.05  # of the time
MAX_EVALUATIONS = 10


# what a plan decides, where nobody else has
PLANNED = (
    "d_model", "n_layers", "n_heads", "context_length", "batch_size", "learning_rate", "dropout",
    "max_steps", "warmup_steps", "eval_interval",
)  # fmt: skip


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
    epochs = min(epochs, MAX_EPOCHS)
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


def plan_run(
    settings: Resolved,
    train_ranges: Sequence[tuple[int, int]],
    val_ranges: Sequence[tuple[int, int]],
    spent_s: float = 0.0,
) -> dict[str, Any]:
    """The values with which a run ends `minutes` after the program began: the layer `plan`.

    The shape follows from the machine's speed by `recipe`; then some of its steps are timed, to
    count those that fit. What is found stands in the run's configuration.

    Args:
        settings: with `minutes` and the vocabulary size; what was given in them stays.
        train_ranges: the parts of the text to learn from.
        val_ranges: those that an evaluation predicts.
        spent_s: seconds that have gone by since the program began.

    Raises:
        ConfigError: the time is too short for ten steps, or a size was named, too.
    """
    minutes = settings.config.train.minutes
    assert minutes is not None
    if settings.chosen("size"):
        raise ConfigError("both --size and --minutes choose the model's shape: give one of them")
    n_train, n_val = _length(train_ranges), _length(val_ranges)
    began, left_s = time.monotonic(), 60 * minutes - spent_s - SAVE_SECONDS
    shape, step_s, speed = _measured_shape(settings, left_s, n_train)
    planned = with_values(settings.config, shape)
    step_tokens = planned.model.context_length * planned.train.batch_size
    step_tokens *= planned.train.accumulation_steps
    n_evaluations, left_s = _evaluations(left_s, step_s / 3 * n_val / step_tokens)
    left_s -= time.monotonic() - began
    max_steps = _steps_that_fit(planned.train, left_s, step_s, speed)
    if max_steps < 10:
        raise ConfigError(
            f"minutes {minutes}: a step takes {step_s:.2g} s here and preparing took "
            f"{spent_s:.0f} s, which leaves time for {max(0, max_steps)} steps: give more minutes"
        )
    if settings.sources["max_steps"] in GIVEN:
        return shape
    longest = int(MAX_EPOCHS * n_train / step_tokens)
    if longest < max_steps:
        log.info("the text is short: seen %g times the run ends earlier", MAX_EPOCHS)
        max_steps = longest
    steps = {
        "max_steps": max_steps,
        "warmup_steps": max_steps // 20,
        "eval_interval": math.ceil(max_steps / n_evaluations),
    }
    return {**shape, **_free(settings, steps)}


def _length(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(end - start for start, end in ranges)


def _free(settings: Resolved, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that nobody has given."""
    return {name: v for name, v in values.items() if settings.sources[name] not in GIVEN}


def _measured_shape(
    settings: Resolved, left_s: float, n_train: int
) -> tuple[dict[str, Any], float, float]:
    """The shape for a time, the seconds that its step takes, and operations a second."""
    config = settings.config
    device = choose_device(config.train.device)
    speed = UTILISATION * measure_peak_flops(device, choose_dtype(device, config.train.dtype))
    shape: dict[str, Any] = {}
    for _ in range(2):  # small models do not reach the speed that large ones do
        shape = _free(settings, recipe(max(1.0, left_s) * speed, n_train))
        config = with_values(settings.config, shape).validate()
        B, T = config.train.batch_size, config.model.context_length
        model = GPTModel(config.model).to(device)
        timing = benchmark_training_step(model, B, T, 3, config.train)
        speed = timing.flops_per_second
    return shape, timing.seconds * config.train.accumulation_steps, speed


def _evaluations(left_s: float, evaluation_s: float) -> tuple[int, float]:
    """How many evaluations to make, and the seconds that they leave."""
    fitting = int(EVALUATION_SHARE * left_s / evaluation_s)
    n_evaluations = min(MAX_EVALUATIONS, max(1, fitting))
    return n_evaluations, left_s - n_evaluations * evaluation_s


def _steps_that_fit(train: TrainConfig, left_s: float, step_s: float, speed: float) -> int:
    pays = compiling_pays(choose_device(train.device), speed * left_s)
    if train.compile or (train.compile is None and pays):
        left_s, step_s = left_s - COMPILE_SECONDS, step_s * COMPILED_SHARE
    return int(left_s / step_s)
