"""Room: the shape of a model → how fast it is trained and writes on this machine, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from myllm.config import GPTConfig, TrainConfig
from myllm.data.dataset import TextDataset
from myllm.generate.benchmark import benchmark_generation, benchmark_reading
from myllm.kernels.plain import Kernels
from myllm.model.gpt import GPTModel
from myllm.system.device import (
    autocast,
    choose_attention,
    choose_device,
    choose_dtype,
)
from myllm.system.machine import keep_freed_memory
from myllm.system.timing import Timing, seconds_in_turns
from myllm.train.benchmark import (
    benchmark_forward,
    benchmark_training_step,
    measure_peak_flops,
    random_batch,
    training_step,
)
from myllm.train.kernels import fastest_kernels, use_kernels
from myllm.train.rivals import rival
from myllm.train.shares import step_shares

ROWS = (1, 8, 32)  # that write at once
LONG_RUN = 1e13  # operations of a run for which kernels are chosen: minutes on a CPU
MOST_WRITTEN = 100  # tokens of each row


@dataclass(frozen=True)
class Speeds:
    """What was measured.

    Attributes:
        peak: operations a second of the fastest matrix product here.
        timings: by what was timed.
        kernels: what the training step was computed by.
        dtype: of its products.
        shares: of a training step's time; they sum to 1.
    """

    peak: float
    timings: dict[str, Timing]
    kernels: str
    dtype: str
    shares: dict[str, float]


@dataclass(frozen=True)
class Duel:
    """A training step of ours and of another program's model, in turns.

    Attributes:
        seconds: the median of each.
        parameters: of each.
        tokens: of a step.
        dtype: of the products of both.
        optimizer: of ours; the other's is PyTorch's fused AdamW.
        kernels: what ours was computed by.
    """

    seconds: dict[str, float]
    parameters: dict[str, int]
    tokens: int
    dtype: str
    optimizer: str
    kernels: str


def measure_speeds(shape: GPTConfig, train: TrainConfig, n_iterations: int) -> Speeds:
    """The user's quick view of a model of a shape.

    Raises:
        ConfigError: a value out of its limits.
    """
    device = choose_device(train.device)
    dtype = choose_dtype(device, train.dtype)
    peak = measure_peak_flops(device, dtype)
    model = _model(shape, device)
    B, T, fewer = train.batch_size, shape.context_length, max(1, n_iterations // 10)
    timings = {"forward pass": benchmark_forward(model, B, T, n_iterations, train)}
    timings["reading a prompt"] = benchmark_reading(model, 1, T, n_iterations)
    for n in ROWS:
        name = f"writing {n} text{'s' if n > 1 else ''}"
        timings[name] = benchmark_generation(model, n, min(T, MOST_WRITTEN), fewer)
    kernels = _with_kernels(model, train, device)
    timings["training step"] = benchmark_training_step(model, B, T, n_iterations, train)
    tokens = torch.randint(shape.vocab_size, (20 * B * T,)).numpy()
    data = TextDataset(tokens, None, T, B)
    shares = step_shares(
        training_step(model, B, T, train),
        training_step(model, B, T, train, updates=False),
        lambda: data.batch(0),
        device,
        max(3, n_iterations // 2),
    )
    peak = max(peak, measure_peak_flops(device, dtype))  # of a machine that others use, too
    return Speeds(peak, timings, kernels, str(dtype).removeprefix("torch."), shares)


def measure_against(name: str, shape: GPTConfig, train: TrainConfig, n_iterations: int) -> Duel:
    """A training step of ours and of `rival`, in turns.

    Raises:
        InputError: the other program is not there.
        ConfigError: a value out of its limits.
    """
    device = choose_device(train.device)
    other, other_step = rival(name, shape, train, device)
    model = _model(shape, device)
    kernels = _with_kernels(model, train, device)
    B, T = train.batch_size, shape.context_length
    theirs = "transformers" if name == "transformers" else "nanoGPT"
    models: dict[str, nn.Module] = {"MyLLM": model, theirs: other}
    steps = {"MyLLM": training_step(model, B, T, train), theirs: other_step}
    seconds = seconds_in_turns(steps, device, n_iterations)
    parameters = {name: sum(p.numel() for p in m.parameters()) for name, m in models.items()}
    dtype = str(choose_dtype(device, train.dtype)).removeprefix("torch.")
    return Duel(seconds, parameters, B * T, dtype, train.optimizer, kernels)


def _model(shape: GPTConfig, device: torch.device) -> GPTModel:
    attention = shape.attention or choose_attention(device)
    return GPTModel(replace(shape, attention=attention)).to(device)


def _with_kernels(model: GPTModel, train: TrainConfig, device: torch.device) -> str:
    """Has the model computed as a long run would have it; the name of the kernels."""
    keep_freed_memory()
    batch = random_batch(model, train.batch_size, model.config.context_length)
    dtype = choose_dtype(device, train.dtype)
    args = model.train(), batch, dtype, autocast(device, dtype)
    name = train.kernels or fastest_kernels(*args, flops=LONG_RUN)
    used = use_kernels(name, *args)
    return "plain" if type(used) is Kernels else name
