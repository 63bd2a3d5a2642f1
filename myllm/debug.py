"""Room: what went wrong, or slow, in a step → words and a table. Knows nothing of the loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile


def nonfinite_report(model: nn.Module) -> str:
    """Names the first parameters whose gradient is not finite, and the largest finite ones."""
    norms = {
        name: float(p.grad.float().norm())
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
    good = sorted((n for n in norms if n not in bad), key=lambda n: norms[n], reverse=True)[:3]
    parts = []
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        parts.append(f"not finite: {', '.join(bad[:3])}{more}")
    if good:
        parts.append("largest finite: " + ", ".join(f"{n} ({norms[n]:.3g})" for n in good))
    return "gradients " + "; ".join(parts) if parts else "no gradient was computed"


@dataclass
class LossWatch:
    """Running mean and variance of the loss, which tell a spike; kept in checkpoints."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    SHARE, LEAST, Z_SCORE = 0.05, 40, 6.0  # of a new loss; losses before the first verdict; limit

    def add(self, loss: float) -> float | None:
        """Takes in a loss; returns its z-score if it is a spike."""
        deviation = math.sqrt(self.variance)
        high = self.mean + self.Z_SCORE * deviation
        spike = self.count >= self.LEAST and loss > high
        score = (loss - self.mean) / max(deviation, 1e-9)
        if spike:
            loss = high  # one outlier does not make the next ones normal
        share = max(self.SHARE, 1 / (self.count + 1))
        difference = loss - self.mean
        self.mean += share * difference
        self.variance = (1 - share) * (self.variance + share * difference**2)
        self.count += 1
        return score if spike else None


class StepProfiler:
    """Profiles a few steps of a loop, after two that warm up; does nothing for zero steps."""

    def __init__(self, n_steps: int, trace_path: Path | None = None) -> None:
        """
        Args:
            n_steps: how many steps to record.
            trace_path: where the Chrome trace goes (chrome://tracing, ui.perfetto.dev).
        """
        self.n_steps, self.trace_path = n_steps, trace_path
        self.table: str | None = None
        self._seen = 0
        self._profile: profile | None = None

    def step(self) -> None:
        """Marks the beginning of a step."""
        self._seen += 1
        if self.n_steps and self._seen == 3:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, record_shapes=True)
            self._profile.__enter__()
        elif self._profile is not None and self._seen == 3 + self.n_steps:
            self._finish()

    def _finish(self) -> None:
        if self._profile is None:
            return
        self._profile.__exit__(None, None, None)
        key = "cuda_time_total" if torch.cuda.is_available() else "cpu_time_total"
        self.table = self._profile.key_averages().table(sort_by=key, row_limit=15)
        if self.trace_path is not None:
            self._profile.export_chrome_trace(str(self.trace_path))
        self._profile = None

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._finish()
