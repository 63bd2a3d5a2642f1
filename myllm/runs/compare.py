"""Room: runs side by side → the settings that differ, what of their figures compares. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from myllm.config import RunConfig, flat_values
from myllm.runs.summary import Summary

PLACES = {"paths", "data_dir"}  # where a text lies says nothing of what it is


def differing_settings(configs: Sequence[RunConfig]) -> dict[str, list[Any]]:
    """The settings that are not the same in all of them: their values, by name."""
    values = [flat_values(config) for config in configs]
    rows = {name: [each[name] for each in values] for name in values[0] if name not in PLACES}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def what_compares(summaries: Sequence[Summary], configs: Sequence[RunConfig]) -> str:
    """Which figures of these runs may be held against each other, in one sentence.

    A loss is of a held-out text, in tokens of a tokenizer; where either differs, it is a number of
    something else.
    """

    def differ(name: str) -> bool:
        return len({str(summary.facts.get(name)) for summary in summaries}) > 1

    if any("tokenizer" not in summary.facts for summary in summaries):
        return "not all of them have a checkpoint yet: nothing can be compared"
    if any("text" not in summary.facts for summary in summaries):
        return (
            "not all of them were trained on a text here: only what you measure yourself can be "
            "compared"
        )
    measure = "measure all on one text that none has seen: myllm evaluate TEXT --run RUN"
    if differ("text"):
        return (
            "their texts are not the same, so neither losses nor bits per byte can be compared: "
            f"{measure}"
        )
    if len({config.text.val_split for config in configs}) > 1:
        return (
            "other parts of the text were held out (val_split), so neither losses nor bits per "
            f"byte can be compared: {measure}"
        )
    if differ("tokenizer"):
        return "their tokenizers are not the same: compare bits per byte, not losses per token"
    return (
        "text, tokenizer and held-out part are the same: losses and bits per byte can be compared"
    )
