"""Room: when steps and evaluations ended → how long the rest of a run takes. Reads no clock."""

from __future__ import annotations

from collections import deque

RECENT_STEPS, RECENT_EVALUATIONS = 64, 5  # a machine may get slower or faster
TRIMMED = 0.1  # of the recent steps, at each end: one that was slow says nothing of the others


class TimeLeft:
    """An estimate that does not jump: of recent steps, without the first, which warms up."""

    def __init__(
        self, step: int, max_steps: int, evaluation_steps: int, now: float, in_steps: float = 0.0
    ) -> None:
        """
        Args:
            step: where the run begins.
            max_steps: where it ends.
            evaluation_steps: between two evaluations.
            now: seconds, by any clock.
            in_steps: how many steps an evaluation takes as long as, until one has been timed.
        """
        self._step, self._max_steps, self._evaluation_steps = step, max_steps, evaluation_steps
        self._in_steps, self._last, self._warm = in_steps, now, False
        self._evaluated = step
        self._steps: deque[float] = deque(maxlen=RECENT_STEPS)
        self._evaluations: deque[float] = deque(maxlen=RECENT_EVALUATIONS)

    def step_ended(self, step: int, now: float) -> None:
        """A step has just been done."""
        if self._warm:
            self._steps.append(now - self._last)
        self._step, self._last, self._warm = step, now, True

    def evaluation_ended(self, now: float) -> None:
        """So has all that an evaluation brings with it: saving, a sample."""
        self._evaluations.append(now - self._last)
        self._last, self._evaluated = now, self._step

    def seconds(self) -> float | None:
        """Until the end of the run; None as long as nobody can tell.

        >>> left = TimeLeft(0, 100, 10, now=0.0)
        >>> for step in range(1, 11):
        ...     left.step_ended(step, 5.0 + step)
        >>> left.seconds()
        90.0
        """
        left = self._max_steps - self._step
        if not self._steps:
            return None if left or self._evaluations_left() else 0.0
        ordered = sorted(self._steps)
        cut = int(TRIMMED * len(ordered))
        kept = ordered[cut : len(ordered) - cut]
        step_s = sum(kept) / len(kept)
        known = self._evaluations
        evaluation_s = sum(known) / len(known) if known else self._in_steps * step_s
        return left * step_s + self._evaluations_left() * evaluation_s

    def _evaluations_left(self) -> int:
        """One at each multiple of the interval, and one at the end; with that of the present step,
        which may be going on."""
        interval, last, done = self._evaluation_steps, self._max_steps, self._evaluated
        return last // interval - done // interval + (done < last and last % interval > 0)
