"""Room: a configuration → the memory that training it takes. Knows nothing of data or the loop."""

from __future__ import annotations

import torch
from torch import Tensor

from myllm.config import GPTConfig, TrainConfig
from myllm.data.dataset import Batch
from myllm.errors import OutOfMemoryError
from myllm.model.gpt import GPTModel
from myllm.system.device import autocast, choose_dtype
from myllm.system.machine import available_memory_bytes
from myllm.system.torch_adapter import tensors_without_content
from myllm.train.loss import language_loss
from myllm.train.optim import parameter_groups

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
    kept: set[torch.UntypedStorage] = set()  # views share one; each is one Python object

    def keep(tensor: Tensor) -> Tensor:
        kept.add(tensor.untyped_storage())
        return tensor

    precision = autocast(torch.device("cpu"), choose_dtype(device, config.dtype))
    with tensors_without_content():
        model = GPTModel(model_config)
        model.activation_checkpointing = config.activation_checkpointing
        shape = (config.batch_size, model_config.context_length)
        tokens = torch.zeros(shape, dtype=torch.long)
        own = {t.untyped_storage() for t in (*model.parameters(), *model.buffers())}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision:
            language_loss(model, Batch(tokens, tokens, torch.ones_like(tokens, dtype=torch.bool)))
    sizes = [storage.nbytes() for storage in kept - own]
    activations = sum(sizes) + 2 * max(sizes)  # and the gradient of the last
    state, update = _optimizer_bytes(model, config)
    weights = FLOAT_BYTES * model.count_parameters()
    held = weights + state + max(activations, weights + update)
    if saving and device.type == "cpu":
        held += weights + state
    return round(CPU_SLACK * held) + CPU_LIBRARIES if device.type == "cpu" else held


def check_memory(model_config: GPTConfig, config: TrainConfig, device: torch.device) -> None:
    """Refuses a run that the machine's memory cannot hold, before the system ends it.

    On CPUs only: other devices report by themselves that their memory is full.

    Raises:
        OutOfMemoryError: with what is needed, what there is, and what to make smaller.
    """
    available = available_memory_bytes()
    if device.type != "cpu" or available is None:
        return
    L, C, V = model_config.n_layers, model_config.d_model, model_config.vocab_size
    n_tokens = config.batch_size * model_config.context_length
    if 16 * (12 * L * C + V) * C + 100 * L * n_tokens * C < available / 3:
        return  # far from it: spare the second that a close look takes
    needed = estimate_training_memory(model_config, config, device, saving=True)
    if needed > available:
        raise OutOfMemoryError(
            f"training would take about {needed / 2**30:.1f} GiB of memory, "
            f"{available / 2**30:.1f} GiB are free: halve --batch-size {config.batch_size} and "
            f"double --accumulation-steps {config.accumulation_steps}, add "
            "--activation-checkpointing, or take a smaller --d-model or --n-layers"
        )


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
