"""Room: what all kernels can do; these leave the model as it is written: the reference."""

from __future__ import annotations

from myllm.model.gpt import GPTModel


class Kernels:
    """Those of `--kernels plain`; the others replace what they can, and nothing else.

    Attributes:
        works_on: types of devices.
        setup_s: seconds that their first step takes more than others, roughly.
        worth_flops: floating-point operations of a run below which they are not tried, by type
            of device.
    """

    works_on: tuple[str, ...] = ("cpu", "cuda", "mps")
    setup_s = 0.0

    def attach(self, model: GPTModel) -> None:
        """The model is computed with these from now on.

        Raises:
            Exception: of any kind; the model is then to be detached.
        """

    def detach(self, model: GPTModel) -> None:
        """The model is computed as it is written from now on."""
