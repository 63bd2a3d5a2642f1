"""Room: how often a text is to be gone through → the number of steps that takes."""

from __future__ import annotations

import dataclasses

from myllm.config import RunConfig, TrainConfig
from myllm.data.token_file import TokenFile
from myllm.presets import Resolved
from myllm.train.sequences import sequence_length


def step_tokens(config: RunConfig) -> int:
    """The tokens that a step learns from."""
    train = config.train
    return sequence_length(config.model, train) * train.batch_size * train.accumulation_steps


def steps_of_epochs(config: RunConfig, token_file: TokenFile) -> TrainConfig:
    """With the steps in which the part of the text that is learned from is seen `epochs` times.

    At least one step; as it is where no `epochs` are wanted.
    """
    if config.train.epochs is None:
        return config.train
    wanted = config.train.epochs * token_file.n_train_tokens
    max_steps = min(10**9, max(1, round(wanted / step_tokens(config))))
    return dataclasses.replace(config.train, max_steps=max_steps)


def with_steps_of_epochs(resolved: Resolved, config: RunConfig, token_file: TokenFile) -> Resolved:
    """The settings as they are shown, with those steps in them."""
    if resolved.config.train.epochs is None:
        return resolved
    max_steps = steps_of_epochs(config, token_file).max_steps
    train = dataclasses.replace(resolved.config.train, max_steps=max_steps)
    sources = {**resolved.sources, "max_steps": "epochs"}
    return Resolved(dataclasses.replace(resolved.config, train=train), sources)
