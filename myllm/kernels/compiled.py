"""Room: a model → the same model by PyTorch's compiler. Knows nothing of data or the loop.

On a CPU each block is compiled by itself: all have the same code, so it is compiled once, in
seconds, however deep the model is; as one piece it would take minutes and run no faster. On a GPU
what is between two blocks counts, too, so all layers are one piece, and the loss is another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from myllm.kernels.plain import Kernels
from myllm.kernels.surprise import Surprises, nats_of, surprises_in_pytorch
from myllm.model.gpt import GPTModel
from myllm.model.head import LOGITS_AT_ONCE, Head
from myllm.system.device import free_memory_bytes
from myllm.system.places import cache_folder
from myllm.system.torch_adapter import compiler_is_loaded, undo_compile

MOST_LOGITS = 1 << 30  # at once, on a GPU
MEMORY_PER_LOGIT = 16  # bytes that must be free for each: four times what two copies take


class CompiledKernels(Kernels):
    """Those of `torch.compile`."""

    works_on = ("cpu", "cuda")
    drops_alike = ("cpu",)
    checked_whole = False
    # On two CPU cores compiling takes 10 to 20 s, saves a fifth, and this is 80 s of work; on a
    # GPU it is the work of a minute.
    worth_flops = {"cpu": 2e13, "cuda": 1e16}

    def attach(self, model: GPTModel, dtype: torch.dtype) -> None:
        _keep_compiled_code()
        if model.token_embedding.weight.is_cuda:
            _compile_as_one(model)
            return
        # dropout draws as it does uncompiled
        for block in model.blocks:
            block.compile(dynamic=False, options={"fallback_random": True})

    def detach(self, model: GPTModel) -> None:
        for block in model.blocks:
            undo_compile(block)
        vars(model).pop("features", None)
        if type(model.lm_head) is CompiledHead:
            setattr(model.lm_head, "__class__", Head)


def _compile_as_one(model: GPTModel) -> None:
    # The kernels of a pass are recorded and replayed as one graph: starting them one by one takes
    # longer than they do where the model is small.
    compiled = torch.compile(model.features, dynamic=False, mode="reduce-overhead")

    def features(*args: Any) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # what the last pass gave is not needed now
        result: Tensor = compiled(*args)
        return result

    vars(model)["features"] = features
    if type(model.lm_head) is Head:
        free = free_memory_bytes(model.token_embedding.weight.device) or 0
        CompiledHead.at_once = max(LOGITS_AT_ONCE, min(MOST_LOGITS, free // MEMORY_PER_LOGIT))
        model.lm_head.__class__ = CompiledHead


class CompiledHead(Head):
    """Many logits at once, as there is room for them on most GPUs: fewer and larger products."""

    at_once = LOGITS_AT_ONCE

    def nats(self, features: Tensor, labels: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        x = features.to(dtype or features.dtype)
        return nats_of(x, self.weight, labels, _compiled_surprises(), self.at_once)


@cache
def _compiled_surprises() -> Surprises:
    compiled: Surprises = torch.compile(surprises_in_pytorch)
    return compiled


@contextmanager
def uncompiled() -> Iterator[None]:
    """Runs compiled models as they are written: for shapes not worth compiling for."""
    if not compiler_is_loaded():
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _keep_compiled_code() -> None:
    """For later runs, where there is a place for it."""
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        if (cache_place := cache_folder("compiled")) is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_place)
