"""Room: how often a run goes through its text → whether it stops early. Knows nothing of the loop.

A text that is seen again and again is learned by heart in the end, and what comes then is not
worth its time. A run that is long for its text stops once three tenths of it have brought nothing.
Less patience could lose what a schedule's falling learning rate still gains at the end. On texts
of 20 and 40 kB, with models of 25 to 370 thousand parameters, seen 26 to 35 times and measured 10
to 40 times, the best loss was that of the whole run in each case (with three evaluations of 40, up
to 0.34 % worse), after 53 to 100 % of the steps.
"""

from __future__ import annotations

import math
from dataclasses import replace

from myllm.config import RunConfig
from myllm.train.epochs import step_tokens

# through the text: twice as often as it teaches like a new one (arXiv 2305.16264)
MANY_TIMES = 8.0
LEAST, SHARE = 3, 0.3  # evaluations without a better loss, and of all evaluations of the run


def with_patience(config: RunConfig, n_train_tokens: int) -> RunConfig:
    """With the patience that nobody has named, for a run that sees its text many times.

    The number is kept in the run's configuration: a run that continues does as it did before, and
    one of an older version, that has none, goes on to its end.

    Args:
        config: with the shape and the number of steps.
        n_train_tokens: of the text, to learn from.

    >>> with_patience(RunConfig(), 300_000).train.patience
    3
    >>> with_patience(RunConfig(), 3_000_000).train.patience is None
    True
    """
    train = config.train
    times_seen = train.max_steps * step_tokens(config) / n_train_tokens
    if train.patience is not None or times_seen <= MANY_TIMES:
        return config
    n_evaluations = train.max_steps / train.evaluation_steps
    patience = max(LEAST, math.ceil(SHARE * n_evaluations))
    return replace(config, train=replace(train, patience=patience))
