"""Room: a model → the same model by PyTorch's compiler. Knows nothing of data or the loop.

On a CPU each block is compiled by itself: all have the same code, so it is compiled once, in
seconds, however deep the model is; as one piece it would take minutes and run no faster. On a GPU
what is between two blocks counts, too, so the layers are one piece, and the loss is another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from myllm.kernels.plain import Kernels
from myllm.kernels.surprise import Surprises, nats_of, surprises_in_pytorch
from myllm.model.gpt import GPTModel
from myllm.model.head import Head
from myllm.system.places import cache_folder
from myllm.system.torch_adapter import compiler_is_loaded, undo_compile

LOGITS_AT_ONCE_ON_GPU = 1 << 30


class CompiledKernels(Kernels):
    """Those of `torch.compile`."""

    works_on = ("cpu", "cuda")
    drops_alike = ("cpu",)
    checked_whole = False
    # On two CPU cores compiling takes 10 to 20 s, saves a fifth, and this is 80 s of work; on a
    # GPU it is the work of a minute.
    worth_flops = {"cpu": 2e13, "cuda": 1e16}

    def attach(self, model: GPTModel) -> None:
        _keep_compiled_code()
        if model.token_embedding.weight.is_cuda:
            model.features = torch.compile(  # type: ignore[method-assign]
                model.features, dynamic=False
            )
            model.lm_head.__class__ = CompiledHead
            return
        # dropout draws as it does uncompiled
        for block in model.blocks:
            block.compile(dynamic=False, options={"fallback_random": True})

    def detach(self, model: GPTModel) -> None:
        for block in model.blocks:
            undo_compile(block)
        vars(model).pop("features", None)
        model.lm_head.__class__ = Head


class CompiledHead(Head):
    """All logits at once: there is room for them on a GPU, and fewer products are larger ones."""

    def nats(self, features: Tensor, labels: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        x = features.to(dtype or features.dtype)
        return nats_of(x, self.weight, labels, _compiled_surprises(), LOGITS_AT_ONCE_ON_GPU)


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
        if (cache := cache_folder("compiled")) is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
