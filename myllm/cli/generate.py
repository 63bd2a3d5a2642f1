"""Room: `myllm generate`: a prompt → text on standard output."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from myllm.cli.parse import Trained, given
from myllm.cli.verb import Verb
from myllm.config import SamplingConfig, positional


@dataclass(frozen=True)
class GenerateOptions(Trained):
    """Write text with a trained model."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        'myllm generate "Once upon a time"',
        'myllm generate "Once upon" --run mine --temperature 0.7',
        'myllm generate --sample-seed 1 -- "- begins with -"',
    )

    prompt: str = positional("")  # the beginning of the text
    run: str | None = None  # the run's name or folder (None: the newest)
    device: str | None = None  # cpu, cuda, mps (None: the best one here)
    threads: int | None = None  # of the CPU (None: as many as there are cores for them)
    sampling: dict[str, Any] = given(SamplingConfig)


def generate(options: GenerateOptions) -> None:
    """Streams the text to standard output."""
    SamplingConfig(**options.sampling).validate()  # before the model is loaded
    from myllm import api
    from myllm.system.terminal import Screen

    run = api.load(
        options.run, options.runs_dir, options.device, options.threads, options.checkpoint
    )
    pieces = run.stream(options.prompt, **options.sampling)
    screen = Screen(sys.stdout)
    screen.write(options.prompt)
    for piece in pieces:
        screen.write(piece)
    screen.end()


VERB = Verb(GenerateOptions, generate)
