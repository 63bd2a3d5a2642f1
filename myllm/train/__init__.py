"""Room: the training wing: batches → a better model. Knows nothing of terminals or generation."""

from myllm.train.observer import Observer
from myllm.train.trainer import Trainer

__all__ = ["Observer", "Trainer"]
