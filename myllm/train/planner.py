"""Room: how long a run may take, here → its shape, batch, learning rate, steps (a plan).

The rules by which a recipe grows, so that one number (`--minutes`) sets all the rest. Each has a
reason; their constants were fitted on tiny Shakespeare (docs/benchmarks.md has the figures).

- Tokens grow with the square root of the operations, and so do parameters (arXiv 2203.15556). A
  text seen more than four times teaches less each time (arXiv 2305.16264): from there on the
  parameters take a larger part of the growth.
- A text of n tokens bears so many parameters: with more, the run ends earlier. What a model can
  learn by heart is some bits a parameter (arXiv 2505.24832), and a token holds some bits, so that
  a few parameters a token are enough to know all of the text.
- Width and depth grow together.
- The learning rate falls with the square root of the width. A Muon update of a d × d matrix has a
  spectral norm in proportion to √d; its effect on the features is the same at every width only
  if the rate takes that out again (arXiv 2310.17813).
  Runs of some hundred steps, all of them near the start, bear a higher one.
- The batch grows slowly with the operations: long runs gain from less noise, short ones from more
  steps; small models waste the machine on small batches. A short text is cut into some steps.
- Dropout grows with the times that the text is seen, from the fourth on.

What is planned fits the memory, and takes seconds to find: nothing is built or timed that does not
(`pace`). Of a trained model that a run begins with the shape is what it is: batch, steps and the
length of its sequences are planned.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from myllm.config import RunConfig, TrainConfig, with_values
from myllm.data.token_file import longest_sequence, n_tokens_of
from myllm.errors import ConfigError
from myllm.kinds import KERNELS
from myllm.presets import GIVEN, Resolved
from myllm.system.device import choose_device, choose_dtype
from myllm.train.benchmark import measure_peak_flops
from myllm.train.epochs import step_tokens
from myllm.train.heads import matching_heads
from myllm.train.memory import check_memory, fitting_batch, lacking_memory
from myllm.train.pace import Pace, measure_pace, step_work
from myllm.train.sequences import sequence_length
from myllm.train.threads import fastest_threads

log = logging.getLogger(__name__)

BASE_FLOPS, BASE_TOKENS = 1e12, 850_000  # a run of some seconds on two CPU cores
FRESH_EPOCHS = 4.0  # so often a text teaches as much as a new one
MAX_EPOCHS = 20.0  # a text seen more often than that is learned by heart
SHORTEST_RUN = 100  # steps, of a text that is too short for more in so many epochs
PARAMETERS_PER_TOKEN = 16.0  # of the text
STEPS_PER_EPOCH = 8  # at least
WIDTHS = range(64, 2049, 32)
BATCH_TOKENS = 2200  # of the base
LEARNING_RATE = 0.055  # times 1 / √width
UTILISATION = 0.4  # of the fastest matrix product: what training reaches, roughly
PLANNED_SHARE = 0.95  # of the time: a machine is not always as fast as when it was measured
MEASURING_SECONDS, MEASURING_SHARE = 5.0, 0.1  # at most, and of the time
COMPILE_SECONDS, COMPILED_SHARE = 20.0, 0.85  # what compiling takes, and of a step is left
SAVE_SECONDS = 1.0  # building the model once more, saving it
EVALUATION_SHARE = 0.05  # of the time
MAX_EVALUATIONS = 10
LEAST_STEPS = 10  # with fewer nothing is learned
GOOD_STEPS = 50  # for as many a trained model takes shorter sequences
SHORT_SEQUENCE = 128

# what a plan decides, where nobody else has: of a new model, and of one that is begun with
STEPS = ("max_steps", "warmup_steps", "eval_interval", "batch_size", "accumulation_steps")
PLANNED = (
    "d_model", "n_layers", "n_heads", "context_length", "learning_rate", "dropout", "threads",
    *STEPS
)  # fmt: skip
PLANNED_BEGUN = (*STEPS, "sequence_length", "threads")


def recipe(flops: float, n_tokens: int, most_parameters: float = math.inf) -> dict[str, Any]:
    """The settings of a run of about so many floating-point operations.

    Args:
        flops: 6 · parameters · tokens, roughly.
        n_tokens: how long the text is.
        most_parameters: of the blocks, where the memory bears no more.

    Returns:
        Values for `config.with_values`.
    """
    growth = flops / BASE_FLOPS
    epochs = BASE_TOKENS * growth**0.5 / n_tokens
    if epochs > FRESH_EPOCHS:
        epochs = (FRESH_EPOCHS * epochs) ** 0.5
    epochs = min(epochs, MAX_EPOCHS)
    n_parameters = flops / (6 * epochs * n_tokens)
    n_parameters = min(n_parameters, PARAMETERS_PER_TOKEN * n_tokens, most_parameters)
    epochs = max(epochs, min(MAX_EPOCHS, flops / (6 * n_parameters * n_tokens)))
    width = min(WIDTHS, key=lambda d: abs(math.log(_parameters(d) / n_parameters)))
    context = min(1024, 64 * 2 ** round(1.5 * math.log2(max(80, width) / 80)))
    short = max(1.0, growth**-0.35)
    batch_tokens = min(BATCH_TOKENS * growth**0.13, n_tokens / STEPS_PER_EPOCH)
    return {
        "d_model": width,
        "n_layers": _depth(width),
        "n_heads": width // (64 if width % 64 == 0 and width >= 192 else 32),
        "context_length": context,
        "batch_size": max(4, 4 * round(batch_tokens / context / 4)),
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
    """The layer `plan`: with it a run ends `minutes` after the program began, or earlier.

    The shape follows from the machine's speed by `recipe`; then some of its steps are timed, to
    count those that fit. What is found stands in the run's configuration.

    Args:
        settings: with `minutes` and the vocabulary size; what was given in them stays.
        train_ranges: the parts of the text to learn from.
        val_ranges: those that an evaluation predicts.
        spent_s: seconds that have gone by since the program began.

    Raises:
        ConfigError: the time is too short for ten steps, or a size was named, too.
        OutOfMemoryError: what was given does not fit the memory.
    """
    minutes = settings.config.train.minutes
    assert minutes is not None
    if settings.chosen("size"):
        raise ConfigError("both --size and --minutes choose the model's shape: give one of them")
    n_train, n_val = n_tokens_of(train_ranges), n_tokens_of(val_ranges)
    began, left_s = time.monotonic(), PLANNED_SHARE * 60 * minutes - spent_s - SAVE_SECONDS
    if left_s <= 0:
        raise _too_short(settings, spent_s)
    shape, pace = _measured_shape(settings, left_s, train_ranges, spent_s)
    planned = with_values(settings.config, shape)
    tokens_of_step = step_tokens(planned)
    evaluation_s = pace.step_s / 3 * n_val / tokens_of_step
    n_evaluations, left_s = _evaluations(left_s, evaluation_s, planned.from_run is not None)
    left_s -= time.monotonic() - began
    max_steps = _steps_that_fit(planned.train, left_s, pace)
    if max_steps < LEAST_STEPS:
        raise _too_short(settings, spent_s, pace.step_s, max_steps, evaluation_s)
    if settings.sources["max_steps"] in GIVEN:
        return shape
    longest = max(SHORTEST_RUN, int(MAX_EPOCHS * n_train / tokens_of_step))
    if longest < max_steps:
        times, max_steps = longest * tokens_of_step / n_train, longest
        log.info("the text is short: seen %.0f times the run ends earlier", times)
    steps = {
        "max_steps": max_steps,
        "warmup_steps": max_steps // 20,
        "eval_interval": math.ceil(max_steps / n_evaluations),
    }
    return {**shape, **_free(settings, steps)}


def planned_names(settings: Resolved) -> list[str]:
    """The settings that a plan would decide."""
    names = PLANNED if settings.config.from_run is None else PLANNED_BEGUN
    return [name for name in names if settings.sources[name] not in GIVEN]


def _free(settings: Resolved, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that nobody has given."""
    return {name: v for name, v in values.items() if settings.sources[name] not in GIVEN}


def _too_short(
    settings: Resolved,
    spent_s: float,
    step_s: float | None = None,
    n_steps: float = 0,
    evaluation_s: float = 0,
) -> ConfigError:
    """The error of a time in which nothing is learned, with what would help."""
    a_step = "" if step_s is None else f"a step takes about {step_s:.2g} s here, "
    if evaluation_s:
        a_step += f"an evaluation {evaluation_s:.2g} s, "
    smaller = ["d_model", "n_layers", "context_length", "sequence_length", "batch_size"]
    flags = [f"--{name.replace('_', '-')}" for name in smaller if settings.chosen(name)]
    if settings.config.from_run is not None and "--context-length" not in flags:
        flags.append("--context-length")
    return ConfigError(
        f"minutes {settings.config.train.minutes:g}: {a_step}what came before took "
        f"{spent_s:.0f} s, which leaves time for {max(0, int(n_steps))} steps: give more minutes"
        + (f", or a smaller {' or '.join(flags)}" if flags else "")
    )


def _measured_shape(
    settings: Resolved, left_s: float, ranges: Sequence[tuple[int, int]], spent_s: float
) -> tuple[dict[str, Any], Pace]:
    """The shape for a time, and the pace of its training.

    Raises:
        ConfigError: even at the machine's peak there is no time for it.
        OutOfMemoryError: there is no memory for it.
    """
    train, is_new = settings.config.train, settings.config.from_run is None
    device = choose_device(train.device)
    budget_s = min(MEASURING_SECONDS, MEASURING_SHARE * left_s)
    dtype = choose_dtype(device, train.dtype)
    peak = measure_peak_flops(device, dtype, budget_s=budget_s / 5)
    speed, threads = UTILISATION * peak, train.threads
    for _ in range(2):  # small models do not reach the speed that large ones do
        shape = (_new_shape if is_new else _batches)(settings, left_s * speed, ranges, device)
        config = with_values(settings.config, shape).validate()
        check_memory(config.model, config.train, device, shape_is_free=is_new)
        if device.type == "cpu" and threads is None:
            torch.set_num_threads(threads := fastest_threads(config))
        fastest_s = step_work(config).total / peak
        if LEAST_STEPS * fastest_s > left_s:
            raise _too_short(settings, spent_s, fastest_s, left_s / fastest_s)
        pace = measure_pace(config, device, speed, 0.4 * budget_s)
        speed = pace.flops_per_second
    return {**shape, **_free(settings, {"threads": threads})}, pace


def _new_shape(
    settings: Resolved, flops: float, ranges: Sequence[tuple[int, int]], device: torch.device
) -> dict[str, Any]:
    """Shape, batch and rates of a new model: what was given stays, the rest is made to match."""
    n_tokens, most_parameters = n_tokens_of(ranges), math.inf
    longest = settings.config.train.sequence_length or longest_sequence(ranges)
    while True:
        values = recipe(flops, n_tokens, most_parameters)
        width = values["d_model"]
        if settings.config.train.sequence_length is not None:
            values["context_length"] = longest
        values["context_length"] = min(values["context_length"], longest)
        values |= matching_heads(values, settings)
        values = _free(settings, values)
        config = with_values(settings.config, values).validate()
        smallest = with_values(config, {"batch_size": 1} if "batch_size" in values else {})
        enough = lacking_memory(config.model, smallest.train, device) is None
        if enough or width == WIDTHS[0] or "d_model" not in values:
            return values | _fitting_batch(settings, config, device)
        most_parameters = _parameters(width) / 2


def _batches(
    settings: Resolved, flops: float, ranges: Sequence[tuple[int, int]], device: torch.device
) -> dict[str, Any]:
    """Batch and sequences of a model that is trained already; for few steps shorter ones."""
    length = min(
        sequence_length(settings.config.model, settings.config.train), longest_sequence(ranges)
    )
    batch_tokens = BATCH_TOKENS * (flops / BASE_FLOPS) ** 0.13
    batch_size = max(1, round(min(batch_tokens, n_tokens_of(ranges) / STEPS_PER_EPOCH) / length))
    while True:
        sizes = {"batch_size": batch_size, "sequence_length": length}
        config = with_values(settings.config, _free(settings, sizes))
        at_least = batch_size == 1 and length <= SHORT_SEQUENCE
        if at_least or GOOD_STEPS * step_work(config).total <= flops:
            break
        if batch_size > 1:
            batch_size //= 2
        else:
            length = max(SHORT_SEQUENCE, length // 2)
    return {**_free(settings, sizes), **_fitting_batch(settings, config, device)}


def _fitting_batch(settings: Resolved, config: RunConfig, device: torch.device) -> dict[str, int]:
    """Smaller micro-batches, where the memory needs them and nobody has named their size."""
    if settings.chosen("batch_size") or settings.chosen("accumulation_steps"):
        return {}
    train = fitting_batch(config.model, config.train, device)
    if train is config.train:
        return {}
    return {"batch_size": train.batch_size, "accumulation_steps": train.accumulation_steps}


def _evaluations(left_s: float, evaluation_s: float, is_begun: bool) -> tuple[int, float]:
    """How many evaluations to make, and the seconds that they leave.

    A trained model is measured before its first step, too.
    """
    fitting = int(EVALUATION_SHARE * left_s / evaluation_s)
    n_evaluations = min(MAX_EVALUATIONS, max(1, fitting))
    return n_evaluations, left_s - (n_evaluations + is_begun) * evaluation_s


def _steps_that_fit(train: TrainConfig, left_s: float, pace: Pace) -> int:
    step_s = pace.step_s
    flops, device = pace.flops_per_second * left_s, choose_device(train.device)
    worth = KERNELS["compiled"].worth_flops.get(device.type, math.inf)
    if train.kernels == "compiled" or (train.kernels is None and flops >= worth):
        left_s, step_s = left_s - COMPILE_SECONDS, step_s * COMPILED_SHARE
    return int(left_s / step_s)
