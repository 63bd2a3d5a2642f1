"""Room: a model → the same with stand-ins of `fused` in the place of its modules."""

from __future__ import annotations

import torch
from torch import nn

from myllm.kernels.fused import STAND_INS, parts_are_known
from myllm.kernels.loop_calls import load
from myllm.kernels.plain import Kernels
from myllm.model.gpt import GPTModel


class NumbaKernels(Kernels):
    """Puts stand-ins in the place of modules of exactly the classes that they know: a variant of
    one's own is computed as it is written."""

    needs = "numba"
    works_on = ("cpu",)
    drops_alike = ()
    dtypes = (torch.float32, torch.bfloat16)
    worth_flops = {"cpu": 4e12}  # a minute or more: compiling, once, takes ten seconds

    def __init__(self) -> None:
        self._replaced: list[tuple[nn.Module, type[nn.Module]]] = []

    def make(self, dtype: torch.dtype) -> None:
        load(dtype)

    def attach(self, model: GPTModel, dtype: torch.dtype) -> None:
        load(dtype)

        for module in model.modules():
            if type(module) in STAND_INS and parts_are_known(module):
                self._replaced.append((module, type(module)))
        for module, kind in self._replaced:
            module.__class__ = STAND_INS[kind]

    def detach(self, model: GPTModel) -> None:
        while self._replaced:
            module, kind = self._replaced.pop()
            module.__class__ = kind
