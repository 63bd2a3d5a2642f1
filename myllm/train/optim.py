"""Room: parameters → groups and optimizers. Knows nothing of data or the loop."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from myllm.config import TrainConfig
from myllm.kinds import OPTIMIZERS
from myllm.model.roles import Role, parameter_roles
from myllm.system.device import cpu_multiplies_bfloat16
from myllm.system.torch_adapter import add_each_, lerp_each, lerp_each_, scale_each_

BETAS = (0.9, 0.95)  # AdamW's, as usual for language models
MOMENTUM = 0.95  # Muon's


class Muon(Optimizer):
    """Momentum whose matrix is orthogonalised, for hidden matrices; AdamW for the rest.

    A hidden matrix moves along the nearest semi-orthogonal matrix to its momentum, so that all
    its directions learn equally fast. The update is scaled to the size an AdamW update has
    (arXiv 2502.16982), so that one learning rate and weight decay serve both kinds of group.

    Attributes:
        orthogonalizes: that `parameter_groups` shall tell hidden matrices apart.
    """

    orthogonalizes = True

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        """
        Args:
            groups: parameter groups with `params`, `lr`, `weight_decay` and `orthogonal` (bool).
        """
        super().__init__(groups, {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Without the base class's checks, which import PyTorch's compiler: 2 s of a start."""
        self.param_groups.append({**param_group, "params": list(param_group["params"])})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update from the gradients."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            update = self._update_muon if group["orthogonal"] else self._update_adam
            update(params, group["lr"], group["weight_decay"])

    def _update_muon(self, params: list[Tensor], lr: float, weight_decay: float) -> None:
        scale_each_(params, 1 - lr * weight_decay)
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for p in params:
            by_shape.setdefault(p.shape, []).append(p)
        for shape, same in by_shape.items():  # equal shapes are one stacked product
            grads = [p.grad for p in same if p.grad is not None]
            momenta = [self._state_of(p, "momentum")["momentum"] for p in same]
            lerp_each_(momenta, grads, 1 - MOMENTUM)
            ahead = lerp_each(grads, momenta, MOMENTUM)  # Nesterov's look ahead
            directions = orthogonalize(torch.stack(ahead))  # (n, rows, columns)
            scale = 0.2 * math.sqrt(max(shape))  # the root mean square of an AdamW update
            add_each_(same, directions.unbind(), -lr * scale)

    def _update_adam(self, params: list[Tensor], lr: float, weight_decay: float) -> None:
        states = [self._state_of(p, "exp_avg", "exp_avg_sq") for p in params]
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state.setdefault("step", torch.zeros(())) for state in states],
            foreach=True,  # fused differs in the last bit: old runs would not resume exactly
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=lr,
            weight_decay=weight_decay,
            eps=1e-8,
            maximize=False,
        )

    def _state_of(self, p: Tensor, *names: str) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        for name in names:
            if name not in state:
                state[name] = torch.zeros_like(p)
        return state


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values near 1, same vectors.

    A quintic Newton–Schulz iteration whose coefficients favour speed over exactness: the singular
    values end between about 0.7 and 1.2 (Keller Jordan, "Muon", 2024).

    Args:
        matrices: (n, rows, columns).
        steps: iterations.

    Returns:
        (n, rows, columns), in the dtype of `matrices`.
    """
    slow = matrices.device.type == "cpu" and not cpu_multiplies_bfloat16()
    x = matrices if slow else matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT  # the products below are then of the smaller side
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT  # (n, rows, rows)
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return (x.mT if tall else x).to(matrices.dtype)


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The trainable parameters by what the optimizer does with them, which their roles say.

    Vectors (biases, norms) do not decay, all others do. Hidden matrices are `orthogonal`: Muon's;
    embeddings and head are not, as each of their rows is a token's own.
    """
    roles = parameter_roles(model)
    orthogonalizes = getattr(OPTIMIZERS[config.optimizer], "orthogonalizes", False)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        hidden_matrix = roles[name] is Role.HIDDEN and p.ndim == 2
        orthogonal = orthogonalizes and hidden_matrix
        groups.setdefault((orthogonal, roles[name] is not Role.VECTOR), []).append(p)
    return [
        {
            "params": params,
            "lr": config.learning_rate,
            "weight_decay": config.weight_decay if decays else 0.0,
            "orthogonal": orthogonal,
        }
        for (orthogonal, decays), params in sorted(groups.items(), key=lambda item: item[0])
    ]


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimizer that `config.optimizer` names, over the groups of `parameter_groups`.

    Raises:
        ConfigError: unknown optimizer.
    """
    return OPTIMIZERS[config.optimizer](parameter_groups(model, config))


def build_adamw(groups: list[dict[str, Any]]) -> Optimizer:
    """Decoupled weight decay (arXiv 1711.05101), in one kernel."""
    return torch.optim.AdamW(groups, betas=BETAS, fused=True)


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: `<parameter name>:<state name>`."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"{names[p]}:{key}": value for p, state in optimizer.state.items() for key, value in
        state.items()
    }  # fmt: skip


def load_optimizer_tensors(
    model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Puts back what `optimizer_tensors` gave."""
    params = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, part = key.rpartition(":")
        p = params[name]
        on_device = value.ndim > 0 or optimizer.defaults.get("fused")
        optimizer.state[p][part] = value.to(p.device) if on_device else value
