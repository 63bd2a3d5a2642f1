"""Room: a shape → a training step of another program's model of that shape, to compare with.

The other program is the user's own: installed, or a folder that the user names.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from myllm.config import GPTConfig, TrainConfig
from myllm.errors import ConfigError, InputError
from myllm.system.device import autocast, choose_dtype

TRANSFORMERS = "transformers"
BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.1  # of AdamW in both programs' recipes for GPT


def rival(
    name: str, shape: GPTConfig, train: TrainConfig, device: torch.device
) -> tuple[nn.Module, Callable[[], None]]:
    """Another program's GPT-2 of a shape, and a function that does a whole training step of it.

    Args:
        name: transformers, or a folder of nanoGPT.
        shape: layers, widths, heads, context, vocabulary, dropout.
        train: batch and precision, which are the same for both.
        device: where to compute.

    Raises:
        InputError: the other program is not there.
        ConfigError: it has no model of that shape.
    """
    if shape.d_model % shape.n_heads:
        raise ConfigError(
            f"d_model {shape.d_model} is not a multiple of n_heads {shape.n_heads}, which other "
            "programs' GPT-2 needs: give other values, or no --against"
        )
    model = _of_transformers(shape) if name == TRANSFORMERS else _of_nanogpt(Path(name), shape)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), train.learning_rate, BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
    size = (train.batch_size, shape.context_length)
    tokens = torch.randint(shape.vocab_size, size, device=device)  # (B, T)
    precision = autocast(device, choose_dtype(device, train.dtype))

    def step() -> None:
        with precision:
            loss: Tensor = (
                model(tokens, labels=tokens).loss if name == TRANSFORMERS
                else model(tokens, tokens)[1]
            )  # fmt: skip
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return model, step


def _of_transformers(shape: GPTConfig) -> nn.Module:
    if importlib.util.find_spec(TRANSFORMERS) is None:
        raise InputError("transformers is not installed: pip install transformers")
    from transformers import GPT2Config, GPT2LMHeadModel

    rate = shape.dropout
    config = GPT2Config(
        vocab_size=shape.vocab_size, n_positions=shape.context_length, n_embd=shape.d_model,
        n_layer=shape.n_layers, n_head=shape.n_heads, n_inner=shape.d_ff, resid_pdrop=rate,
        embd_pdrop=rate, attn_pdrop=rate, use_cache=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # or it warns that it takes this one
    return model


def _of_nanogpt(folder: Path, shape: GPTConfig) -> nn.Module:
    made = _module(folder)
    values: dict[str, Any] = dict(
        block_size=shape.context_length, vocab_size=shape.vocab_size, n_layer=shape.n_layers,
        n_head=shape.n_heads, n_embd=shape.d_model, dropout=shape.dropout, bias=False,
    )  # fmt: skip
    with contextlib.redirect_stdout(None), _of_the_user(folder):  # it tells its parameters
        model: nn.Module = made.GPT(made.GPTConfig(**values)).train()
    return model


def _module(folder: Path) -> ModuleType:
    """nanoGPT's model.py, which the user asks to run."""
    path = folder / "model.py"
    if not path.is_file():
        raise InputError(
            f"--against {folder}: no model.py is there; give transformers, or the folder of a "
            "nanoGPT checkout"
        )
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the module that they are in
    with _of_the_user(folder):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _of_the_user(folder: Path) -> Iterator[None]:
    """What fails within is a fault of the program in the folder."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{folder / 'model.py'} is not nanoGPT's, or broken: {reason}") from error
