"""Room: what all kernels can do; these leave the model as it is written: the reference."""

from __future__ import annotations

import torch

from myllm.model.gpt import GPTModel


class Kernels:
    """Those of `--kernels plain`; others put something in the place of parts of a model.

    Attributes:
        needs: a library that may be missing.
        works_on: types of devices.
        dtypes: of products.
        worth_flops: floating-point operations, by type of device, below which a run takes longer
            with them, as they must be made ready. A device that is not named never gains.
        drops_alike: types of devices on which dropout draws the same as with plain ones.
        checked_whole: whether they are compared to plain ones without dropout where it draws
            something else; if that takes long, only the loss is compared, and roughly.
    """

    needs = "torch"
    works_on: tuple[str, ...] = ("cpu", "cuda", "mps")
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
    worth_flops: dict[str, float] = {}
    drops_alike: tuple[str, ...] = ("cpu", "cuda", "mps")
    checked_whole = True

    def make(self, dtype: torch.dtype) -> None:
        """Makes what a machine needs once, whatever the model, which may take seconds.

        Args:
            dtype: of products.

        Raises:
            Exception: of any kind.
        """

    def attach(self, model: GPTModel, dtype: torch.dtype) -> None:
        """The model is computed with these from now on.

        Args:
            model: to compute with these.
            dtype: of products.

        Raises:
            Exception: of any kind, here or in the first step; the model is then to be detached.
        """

    def detach(self, model: GPTModel) -> None:
        """The model is computed as it is written from now on."""
