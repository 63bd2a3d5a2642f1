"""Room: the steps of a loop → where their time goes: a table, a trace. Knows nothing of models."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile

log = logging.getLogger(__name__)


def quiet_profiler() -> None:
    """Kineto, which profiles, prints lines of its own unless it is told before its first use."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


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
            quiet_profiler()
            self._profile = profile(activities=activities, record_shapes=True)
            self._profile.start()
        elif self._profile is not None and self._seen == 3 + self.n_steps:
            self._finish()

    def _finish(self) -> None:
        if self._profile is None:
            return
        self._profile.stop()
        key = "cuda_time_total" if torch.cuda.is_available() else "cpu_time_total"
        self.table = self._profile.key_averages().table(sort_by=key, row_limit=15)
        if self.trace_path is not None:
            try:
                self._profile.export_chrome_trace(str(self.trace_path))
            except (OSError, RuntimeError) as error:  # no reason to end a run
                log.warning("no trace in %s: %s", self.trace_path, error)
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
