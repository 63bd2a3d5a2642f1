"""Room: `myllm evaluate`: texts → a line each of how well a model predicts them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from myllm.cli.named import loaded
from myllm.cli.parse import Computing, given
from myllm.cli.verb import Verb
from myllm.config import positional
from myllm.errors import ConfigError
from myllm.reading import Reading

if TYPE_CHECKING:
    from myllm.train.evaluate import Evaluation


@dataclass(frozen=True)
class EvaluateOptions(Computing):
    """Measure how well a trained model predicts texts: loss, perplexity, bits per byte."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "myllm evaluate",
        "myllm evaluate novel2.txt",
        "myllm evaluate novel.txt novel2.txt --run mine",
    )

    paths: tuple[str, ...] = positional(())  # texts (none: the run's validation split)
    reading: dict[str, Any] = given(Reading)


def evaluate(options: EvaluateOptions) -> None:
    """Prints a line per text, and one of several together."""
    from myllm.system.terminal import say

    if not options.paths and options.reading:
        flag = next(iter(options.reading)).replace("_", "-")
        raise ConfigError(f"--{flag} says how a text is read, and none is named")
    run = loaded(options)
    parts: list[Evaluation] = []
    for path in options.paths or (None,):
        parts.append(run.evaluate(path, **options.reading))
        say(_line(path or "validation split", parts[-1], run.name))
    if len(parts) > 1:
        say(_line(f"all {len(parts)} texts", type(parts[0]).together(parts), run.name))


def _line(name: str, found: Evaluation, run_name: str) -> str:
    return (
        f"{name}: loss {found.loss:.4f} nats per token, perplexity {found.perplexity:.2f}, "
        f"{found.bits_per_byte:.4f} bits per byte ({found.n_tokens:,} tokens, run {run_name})"
    )


VERB = Verb(EvaluateOptions, evaluate)
