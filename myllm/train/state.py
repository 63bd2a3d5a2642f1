"""Room: where a training run stands (`TrainState`), to and from JSON. Knows nothing of models."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class LossWatch:
    """Running mean and variance of the loss, which tell a spike; kept in checkpoints."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    SHARE, MIN_COUNT, Z_SCORE = 0.05, 40, 6.0  # of a new loss; losses before a verdict; limit

    def add(self, loss: float) -> float | None:
        """Takes in a loss; returns its z-score if it is a spike."""
        deviation = math.sqrt(self.variance)
        high = self.mean + self.Z_SCORE * deviation
        spike = self.count >= self.MIN_COUNT and loss > high
        score = (loss - self.mean) / max(deviation, 1e-9)
        if spike:
            loss = high  # one outlier does not make the next ones normal
        share = max(self.SHARE, 1 / (self.count + 1))
        difference = loss - self.mean
        self.mean += share * difference
        self.variance = (1 - share) * (self.variance + share * difference**2)
        self.count += 1
        return score if spike else None


@dataclass
class TrainState:
    """What a checkpoint keeps, so that a resumed run continues as if it had never stopped.

    In checkpoints its name is "progress".
    """

    step: int = 0
    elapsed_s: float = 0.0
    best_loss: float = math.inf
    best_bits_per_byte: float = math.inf
    best_step: int = 0
    evaluations_since_best: int = 0
    nats: float = 0.0  # of the steps since the last evaluation
    n_targets: int = 0  # counted in those steps
    watch: LossWatch = field(default_factory=LossWatch)
    skipped: list[int] = field(default_factory=list)  # batches that rollbacks leave out
    rate_scale: float = 1.0  # what rollbacks made of the learning rate

    def count_evaluation(self, loss: float, bits_per_byte: float, is_best: bool) -> None:
        """Takes in what an evaluation measured at this step."""
        if not is_best:
            self.evaluations_since_best += 1
            return
        self.best_loss, self.best_bits_per_byte = loss, bits_per_byte
        self.best_step, self.evaluations_since_best = self.step, 0

    def take_train_loss(self) -> float:
        """Nats per target of the steps since this was asked for last."""
        loss = self.nats / self.n_targets
        self.nats, self.n_targets = 0.0, 0
        return loss

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads; JSON has no infinity, so what is infinite is None."""
        values = asdict(self)
        return {n: None if v in (math.inf, -math.inf) else v for n, v in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any], targets_per_step: int) -> TrainState:
        """The state of a checkpoint.

        Args:
            values: what `to_json` gave, or what versions before 0.2 gave, which kept the sum of
                the steps' mean losses.
            targets_per_step: what turns such means into sums.

        Raises:
            KeyError, TypeError: it is of another version of this program.
        """
        known = {name: value for name, value in values.items() if value is not None}
        if "loss_sum" in known:
            known["nats"] = known.pop("loss_sum") * targets_per_step
            known["n_targets"] = known.pop("loss_count") * targets_per_step
        return cls(**{**known, "watch": LossWatch(**values["watch"])})
