"""Room: a model → what each of its parameters is for. Knows nothing of its shape."""

from __future__ import annotations

from enum import StrEnum

from torch import nn


class Role(StrEnum):
    """What a parameter is for: who trains it, and how, follows from it.

    The module that owns a parameter says it in its attribute `role`. Without one, a matrix is
    hidden. Biases and norms are vectors, whatever the module, unless it is an adapter.
    """

    EMBEDDING = "embedding"
    HIDDEN = "hidden"
    HEAD = "head"
    VECTOR = "vector"
    ADAPTER = "adapter"


def parameter_roles(model: nn.Module) -> dict[str, Role]:
    """The role of each parameter by its name in `named_parameters`; a tied one's first role."""
    said: dict[nn.Parameter, Role] = {}
    for module in model.modules():
        role = getattr(module, "role", Role.HIDDEN)
        for p in module.parameters(recurse=False):
            said.setdefault(p, role if p.ndim > 1 or role is Role.ADAPTER else Role.VECTOR)
    return {name: said[p] for name, p in model.named_parameters()}
