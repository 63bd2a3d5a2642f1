"""Room: parameters → groups, optimizers, learning rates. Knows nothing of data or the loop.

To add a schedule: one function of (progress), one line in `SCHEDULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from myllm.config import TrainConfig
from myllm.registry import Registry

BETAS = (0.9, 0.95)  # AdamW's, as usual for language models
MOMENTUM = 0.95  # Muon's


class Muon(Optimizer):
    """Momentum whose matrix is orthogonalised, for hidden matrices; AdamW for the rest.

    A hidden matrix moves along the nearest semi-orthogonal matrix to its momentum, so that all
    its directions learn equally fast. The update is scaled to the size an AdamW update has
    (arXiv 2502.16982), so that one learning rate and weight decay serve both kinds of group.
    """

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
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            update = self._update_muon if group["orthogonal"] else self._update_adam
            update(params, group["lr"])

    def _update_muon(self, params: list[Tensor], lr: float) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for p in params:
            by_shape.setdefault(p.shape, []).append(p)
        for shape, same in by_shape.items():  # equal shapes are one stacked product
            grads = [p.grad for p in same if p.grad is not None]
            momenta = [self._state_of(p, "momentum")["momentum"] for p in same]
            torch._foreach_lerp_(momenta, grads, 1 - MOMENTUM)
            ahead = torch._foreach_lerp(grads, momenta, MOMENTUM)  # Nesterov's look ahead
            directions = orthogonalize(torch.stack(list(ahead)))  # (n, rows, columns)
            scale = 0.2 * math.sqrt(max(shape))  # the root mean square of an AdamW update
            torch._foreach_add_(same, list(directions.unbind()), alpha=-lr * scale)

    def _update_adam(self, params: list[Tensor], lr: float) -> None:
        states = [self._state_of(p, "exp_avg", "exp_avg_sq") for p in params]
        for state in states:
            state["step"] = state.get("step", torch.zeros(())) + 1
        step = int(states[0]["step"])
        grads = [p.grad for p in params if p.grad is not None]
        averages = [state["exp_avg"] for state in states]
        squares = [state["exp_avg_sq"] for state in states]
        torch._foreach_lerp_(averages, grads, 1 - BETAS[0])
        torch._foreach_mul_(squares, BETAS[1])
        torch._foreach_addcmul_(squares, grads, grads, 1 - BETAS[1])
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, math.sqrt(1 - BETAS[1] ** step))
        torch._foreach_add_(roots, 1e-8)
        torch._foreach_addcdiv_(params, averages, roots, -lr / (1 - BETAS[0] ** step))

    def _state_of(self, p: Tensor, *names: str) -> dict[str, Tensor]:
        state = self.state[p]
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
    x = matrices.bfloat16()
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
    """The trained parameters by what the optimizer does with them.

    Matrices decay; vectors (biases, norms) do not. The hidden matrices, those of the blocks, are
    `orthogonal`: Muon's; embeddings and head are not, as each of their rows is a token's own.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        matrix = p.ndim >= 2
        orthogonal = config.optimizer == "muon" and p.ndim == 2 and name.startswith("blocks.")
        groups.setdefault((orthogonal, matrix), []).append(p)
    return [
        {
            "params": params,
            "lr": config.learning_rate,
            "weight_decay": config.weight_decay if matrix else 0.0,
            "orthogonal": orthogonal,
        }
        for (orthogonal, matrix), params in sorted(groups.items(), key=lambda item: item[0])
    ]


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimizer that `config.optimizer` names, over the groups of `parameter_groups`.

    Raises:
        ConfigError: unknown optimizer.
    """
    return OPTIMIZERS[config.optimizer](parameter_groups(model, config))


def _build_adamw(groups: list[dict[str, Any]]) -> Optimizer:
    return torch.optim.AdamW(groups, betas=BETAS, fused=True)


OPTIMIZERS: Registry[Callable[[list[dict[str, Any]]], Optimizer]] = Registry(
    "optimizer", {"adamw": _build_adamw, "muon": Muon}
)


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


# --- schedules: progress through the run after warm-up, 0 … 1 → share of the peak, 1 … 0


def _constant(progress: float) -> float:
    return 1.0


def _linear(progress: float) -> float:
    return 1.0 - progress


def _cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def _one_cycle(progress: float) -> float:
    """Up along a cosine for 30 % of the run, down for the rest (arXiv 1708.07120)."""
    if progress < 0.3:
        return 0.04 + 0.96 * (1 - _cosine(progress / 0.3))
    return _cosine((progress - 0.3) / 0.7)


def _wsd(progress: float) -> float:
    """Stable, then linear decay over the last half (arXiv 2405.18392 compares its lengths)."""
    return min(1.0, (1.0 - progress) / 0.5)


SCHEDULES: Registry[Callable[[float], float]] = Registry("schedule", {
    "constant": _constant,
    "cosine": _cosine,
    "linear_warmup": _linear,
    "one_cycle": _one_cycle,
    "wsd": _wsd,
})  # fmt: skip


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """The share of the peak learning rate at `step`: a pure function, 0-based.

    Raises:
        ConfigError: unknown schedule.
    """
    shape = SCHEDULES[config.schedule]
    warmup_steps = min(config.warmup_steps, config.max_steps // 5)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1) * _floored(shape(0.0), config)
    progress = (step - warmup_steps) / max(1, config.max_steps - warmup_steps)
    return _floored(shape(min(1.0, progress)), config)


def _floored(factor: float, config: TrainConfig) -> float:
    return config.min_learning_rate + (1 - config.min_learning_rate) * factor


def get_scheduler(
    optimizer: Optimizer, config: TrainConfig, start_step: int = 0, scale: float = 1.0
) -> LambdaLR:
    """A scheduler whose learning rate at each step is that of `learning_rate_factor`.

    Args:
        optimizer: its groups' `lr` are the peaks.
        config: `schedule`, `warmup_steps`, `max_steps`, `min_learning_rate`.
        start_step: the step to begin at, for a resumed run.
        scale: what every rate is multiplied with.

    Raises:
        ConfigError: unknown schedule.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return LambdaLR(
        optimizer,
        lambda step: scale * learning_rate_factor(step, config),
        last_epoch=start_step - 1,
    )
