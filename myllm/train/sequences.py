"""Room: a model's context and a text → how long the sequences are that are trained on.

Two things: how far a model can look back is part of its shape, while the sequences of a batch are
as long as memory, time and text allow. Knows nothing of the loop.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from myllm.config import GPTConfig, RunConfig, TrainConfig
from myllm.data.token_file import TokenFile, fitting_context
from myllm.errors import ConfigError
from myllm.presets import FINE_TUNING_SEQUENCE

log = logging.getLogger(__name__)


def sequence_length(model: GPTConfig, train: TrainConfig) -> int:
    """T, the tokens of a training sequence."""
    return train.sequence_length or model.context_length


def evaluated_length(config: RunConfig) -> int:
    """T for measuring a run: as it was trained; modest where it was trained elsewhere."""
    length = sequence_length(config.model, config.train)
    return length if config.text.paths else min(length, FINE_TUNING_SEQUENCE)


def check_sequences(config: RunConfig) -> None:
    """Raises `ConfigError` for sequences that are longer than the model looks back."""
    length, context = config.train.sequence_length, config.model.context_length
    if length is not None and length > context:
        raise ConfigError(
            f"sequence_length {length}: the model looks back over {context} tokens: take shorter "
            "sequences or a larger --context-length"
        )


def as_sequences(values: Mapping[str, Any], begun: str, model: GPTConfig) -> dict[str, Any]:
    """Settings of a run that begins with a trained model: `context_length` is that of sequences.

    The model never shrinks; it grows where they are longer.

    Args:
        values: a layer of settings.
        begun: the name of the run that the model is of.
        model: its shape.

    Raises:
        ConfigError: it cannot grow, as its positions are learned.

    >>> as_sequences({"context_length": 256}, "base", GPTConfig(context_length=1024))
    {'sequence_length': 256}
    """
    length = values.get("context_length")
    if type(length) is not int:
        return dict(values)
    rest = {name: value for name, value in values.items() if name != "context_length"}
    if length > model.context_length:
        if model.position == "learned":
            raise ConfigError(
                f"context_length {length}: {begun} has learned positions for "
                f"{model.context_length} tokens and cannot look back further: take at most that"
            )
        rest["context_length"] = length
    return {"sequence_length": length, **rest}


def fitted(config: RunConfig, token_file: TokenFile) -> RunConfig:
    """With sequences that the text can fill; what they are is announced.

    A new model looks back as far as they are long, unless a length of theirs was named.
    """
    model, train = config.model, config.train
    if config.from_run is None and train.sequence_length is None:
        context = fitting_context(token_file, model.context_length)
        model = dataclasses.replace(model, context_length=context)
        return dataclasses.replace(config, model=model)
    length = sequence_length(model, train)
    length = fitting_context(token_file, length, "the training sequences are")
    if length < model.context_length:
        log.info(
            "training on sequences of %d tokens (--context-length N: of N); the model keeps its "
            "context of %d" if config.from_run else
            "training on sequences of %d tokens; the model looks back over %d",
            length, model.context_length,
        )  # fmt: skip
    return dataclasses.replace(config, train=dataclasses.replace(train, sequence_length=length))
