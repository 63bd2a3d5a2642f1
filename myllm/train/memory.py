"""Room: a configuration → the memory that training it takes. Knows nothing of data or the loop."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from myllm.config import GPTConfig, TrainConfig
from myllm.data.dataset import Batch
from myllm.errors import OutOfMemoryError
from myllm.model.gpt import GPTModel
from myllm.system.device import autocast, choose_dtype, free_memory_bytes, shapes_only
from myllm.system.torch_adapter import tensors_without_content
from myllm.train.loss import language_loss
from myllm.train.optim import parameter_groups
from myllm.train.sequences import sequence_length

FLOAT_BYTES = 4
CPU_SLACK, CPU_LIBRARIES = 1.32, 40 << 20  # fitted: gaps between blocks, what the kernels keep
MUON_BYTES = 14  # an update holds copies of a matrix: look-ahead, stacked, and some in bfloat16


def estimate_training_memory(
    model_config: GPTConfig, config: TrainConfig, device: torch.device, saving: bool = False
) -> int:
    """The bytes that a training step holds at its peak, beyond what the program takes anyway.

    A forward pass is done with tensors that have shapes and no content, and what autograd would
    keep of it is added up; so every variant of the model is known, at no cost. On top come
    weights and optimizer, and whichever is larger: the kept tensors at the end of the forward
    pass, or the gradients and the optimizer's work at the end of the backward pass. On CPUs an
    allowance is made for what their allocator cannot use again (docs/benchmarks.md has the
    figures). Compiled, a step takes less.

    Args:
        model_config: the shape.
        config: batch, precision, optimizer, activation checkpointing.
        device: decides the precision where the configuration leaves it open.
        saving: while a checkpoint is being saved, of which there is a copy, too.
    """
    with shapes_only():
        model = GPTModel(model_config)
    weights = FLOAT_BYTES * model.count_parameters()
    state, update = _optimizer_bytes(model, config)
    activations, tables = _activations(model_config, config, choose_dtype(device, config.dtype))
    held = weights + tables + state + max(activations, weights + update)
    if saving and device.type == "cpu":
        held += weights + state
    return round(CPU_SLACK * held) + CPU_LIBRARIES if device.type == "cpu" else held


@lru_cache(maxsize=64)  # a plan asks again and again
def _activations(
    model_config: GPTConfig, config: TrainConfig, dtype: torch.dtype
) -> tuple[int, int]:
    """What a forward pass keeps, with the gradient of the last tensor; and the model's tables.

    All layers keep the same: two of them tell of any number, in a fraction of the time.
    """
    n_layers = model_config.n_layers
    if n_layers > 2:
        shallow = [replace(model_config, n_layers=n) for n in (1, 2)]
        (one, _), (two, tables) = (_activations(c, config, dtype) for c in shallow)
        return two + (n_layers - 2) * (two - one), tables
    kept: set[torch.UntypedStorage] = set()  # views share one; each is one Python object

    def keep(tensor: Tensor) -> Tensor:
        kept.add(tensor.untyped_storage())
        return tensor

    with tensors_without_content():
        model = GPTModel(model_config)
        model.activation_checkpointing = config.activation_checkpointing
        shape = (config.batch_size, sequence_length(model_config, config))
        tokens = torch.zeros(shape, dtype=torch.long)
        own = {t.untyped_storage() for t in (*model.parameters(), *model.buffers())}
        batch = Batch(tokens, tokens, torch.ones_like(tokens, dtype=torch.bool))
        watched = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with watched, autocast(torch.device("cpu"), dtype):
            language_loss(model, batch)
    sizes = [storage.nbytes() for storage in kept - own]
    return sum(sizes) + 2 * max(sizes), sum(buffer.nbytes for buffer in model.buffers())


def lacking_memory(
    model_config: GPTConfig, config: TrainConfig, device: torch.device
) -> tuple[int, int] | None:
    """The bytes that a run needs and those that are free, if these are too few.

    None, too, where what is free is not known.
    """
    free = free_memory_bytes(device)
    if free is None:
        return None
    L, C, V = model_config.n_layers, model_config.d_model, model_config.vocab_size
    n_tokens = config.batch_size * sequence_length(model_config, config)
    rough = 16 * (12 * L * C + V) * C + 100 * L * n_tokens * max(C, model_config.ff_size / 3)
    if model_config.attention == "manual":  # keeps its scores
        rough += 16 * L * n_tokens * sequence_length(model_config, config) * model_config.n_heads
    if rough < free / 3:
        return None  # far from it: spare the second that a close look takes
    needed = estimate_training_memory(model_config, config, device, saving=True)
    return (needed, free) if needed > free else None


def check_memory(
    model_config: GPTConfig, config: TrainConfig, device: torch.device, shape_is_free: bool = True
) -> None:
    """Refuses a run that the machine's memory cannot hold, before the system ends it.

    On CPUs only: other devices report by themselves that their memory is full.

    Args:
        model_config: the shape.
        config: how it is to be trained.
        device: where.
        shape_is_free: whether another shape could be taken; that of a trained model cannot.

    Raises:
        OutOfMemoryError: with what is needed, what there is, and what to make smaller.
    """
    lacking = lacking_memory(model_config, config, device) if device.type == "cpu" else None
    if lacking is None:
        return
    needed, free = (f"{n_bytes / 2**30:.1f} GiB" for n_bytes in lacking)
    raise OutOfMemoryError(
        f"training would take about {needed} of memory, {free} are free: "
        f"{_remedy(model_config, config, device, shape_is_free)}"
    )


def fitting_batch(
    model_config: GPTConfig, config: TrainConfig, device: torch.device
) -> TrainConfig:
    """With micro-batches that fit the memory, and more of them for a step: it learns the same.

    Unchanged where a single sequence does not fit either.
    """
    tried = config
    while lacking_memory(model_config, tried, device) is not None:
        if tried.batch_size == 1:
            return config
        size = tried.batch_size // 2
        while config.batch_size % size:
            size -= 1
        tried = replace(
            tried,
            batch_size=size,
            accumulation_steps=config.accumulation_steps * config.batch_size // size,
        )
    return tried


def _remedy(
    model_config: GPTConfig, config: TrainConfig, device: torch.device, shape_is_free: bool
) -> str:
    """What would help: of each kind only what is enough, or a part of what is."""
    least = replace(
        config, batch_size=1, sequence_length=1, activation_checkpointing=True
    )  # what no batch can be smaller than
    smaller = "take a smaller --d-model, --n-layers or --vocab-size"
    if lacking_memory(model_config, least, device):
        return smaller if shape_is_free else "the model itself is too large for this machine"
    fitting = fitting_batch(model_config, config, device)
    parts = []
    if fitting is not config:
        parts.append(
            f"take --batch-size {fitting.batch_size} --accumulation-steps "
            f"{fitting.accumulation_steps}, which learns the same"
        )
    if not config.activation_checkpointing:
        parts.append("add --activation-checkpointing")
    T = sequence_length(model_config, config)
    parts.append(f"take a --context-length below {T}")
    if shape_is_free:
        parts.append(smaller)
    return ", or ".join(parts)


def estimate_checkpoint_bytes(model: GPTModel, config: TrainConfig) -> int:
    """The disk space of a checkpoint: weights, and what the optimizer keeps."""
    return FLOAT_BYTES * model.count_parameters() + _optimizer_bytes(model, config)[0]


def _optimizer_bytes(model: GPTModel, config: TrainConfig) -> tuple[int, int]:
    """What the optimizer keeps, and what it needs besides while it works."""
    state, update = 0, 0
    for group in parameter_groups(model, config):
        count = sum(p.numel() for p in group["params"])
        if group["orthogonal"]:
            by_shape: dict[torch.Size, int] = {}
            for p in group["params"]:
                by_shape[p.shape] = by_shape.get(p.shape, 0) + p.numel()
            state += FLOAT_BYTES * count
            update = max(update, MUON_BYTES * max(by_shape.values()))
        else:
            state += 2 * FLOAT_BYTES * count
            update = max(update, FLOAT_BYTES * count)
    return state, update
