"""Room: features → logits. Knows nothing of the layers below."""

from __future__ import annotations

from torch import nn

from myllm.model.roles import Role


class Head(nn.Linear):
    """The linear layer that gives the logits."""

    role = Role.HEAD
