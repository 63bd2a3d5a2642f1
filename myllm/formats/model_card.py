"""Room: a run's configuration and checkpoint → the README of the exported model.

Knows nothing of files.
"""

from __future__ import annotations

from pathlib import Path

from myllm import __version__
from myllm.config import RunConfig
from myllm.runs.checkpoint import Checkpoint


def model_card(name: str, config: RunConfig, checkpoint: Checkpoint, architecture: str) -> str:
    """What is known of a model, as the Hub shows it.

    Args:
        name: of the run.
        config: its configuration.
        checkpoint: what is exported.
        architecture: the class of `transformers` that loads it.
    """
    n = sum(t.numel() for t in checkpoint.model.values())
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "license: other  # fill in",
            "---",
            "",
            f"# {name}",
            "",
            f"A language model of {n:,} parameters ({architecture}), "
            f"{_origin(config, checkpoint)} with MyLLM {__version__}.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {what} | {value} |" for what, value in _known(config, checkpoint).items()),
            "",
            "It continues a text. What it writes need not be true. Licence and origin of the "
            "text: fill in.",
            "",
        ]
    )


def _origin(config: RunConfig, checkpoint: Checkpoint) -> str:
    if came_from := checkpoint.metadata.get("imported_from"):
        return f"imported from {came_from}"
    if config.from_run:
        return f"trained further from {Path(config.from_run).name}"
    return "trained from nothing"


def _known(config: RunConfig, checkpoint: Checkpoint) -> dict[str, str]:
    """The rows of the card's table; an imported model tells its shape only."""
    shape, train = config.model, config.train
    rows = {
        "shape": f"{shape.n_layers} layers, {shape.d_model} wide, {shape.n_heads} heads, context "
        f"{shape.context_length}",
        "vocabulary": f"{shape.vocab_size:,}",
    }
    if "imported_from" in checkpoint.metadata:
        return rows
    progress = checkpoint.state.get("progress", {})
    loss, bits = progress.get("best_loss"), progress.get("best_bits_per_byte")
    measured = loss is not None and bits is not None
    return rows | {
        "text": f"SHA-256 {checkpoint.metadata.get('text', 'not known')}",
        "steps": f"{checkpoint.step:,}",
        "validation loss": (
            f"{loss:.4f} nats per token, {bits:.4f} bits per byte" if measured else "not measured"
        ),
        "trained with": f"{train.optimizer}, {train.schedule}, learning rate "
        f"{train.learning_rate:g}",
    }
