"""Room: `myllm verify` and `myllm inspect-batch`: a run → what is in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from myllm.cli.parse import Common
from myllm.cli.verb import Verb
from myllm.config import positional
from myllm.errors import CheckpointError
from myllm.system.importing import quick_imports


@dataclass(frozen=True)
class VerifyOptions(Common):
    """Check every file of a run: checkpoints, settings, tokenizer, metrics."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "myllm verify",
        "myllm verify mine",
        "myllm verify mine --runs-dir checkpoints",
    )

    run: str | None = positional(None)  # the run's name or folder (None: the newest)


def verify(options: VerifyOptions) -> None:
    """Prints a table of what is whole and what is damaged."""
    with quick_imports():
        from myllm import api
    from myllm.system.terminal import say

    run = api.load(options.run, options.runs_dir)
    findings = run.verify()
    width = max(len(finding.name) for finding in findings)
    for found in findings:
        say(f"{found.name:{width}}  {found.n_bytes:>15,} bytes  {found.damage or 'whole'}")
    if damaged := [finding.name for finding in findings if finding.damage]:
        raise CheckpointError(
            f"run {run.name} is damaged: {', '.join(damaged)}; from its newest whole checkpoint "
            f"it is resumed with: myllm train --resume {run.folder.resume_name}"
        )


@dataclass(frozen=True)
class InspectBatchOptions(Common):
    """Show the text of the batch that a training step learned from."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "myllm inspect-batch mine 0",
        "myllm inspect-batch mine 4",
        "myllm inspect-batch mine 4 --runs-dir checkpoints",
    )

    run: str = positional("")  # the run's name or folder
    step: int = positional(0)  # the batch's number: that of the step, from 0 on


def inspect_batch(options: InspectBatchOptions) -> None:
    """Prints the sequences of a batch."""
    with quick_imports():
        from myllm import api
    from myllm.system.terminal import say
    from myllm.train.sequences import sequence_length

    run = api.load(options.run, options.runs_dir)
    T = sequence_length(run.config.model, run.config.train)
    for i, (start, text) in enumerate(run.batch(options.step)):
        say(f"--- sequence {i}: tokens {start:,} to {start + T:,}", text)


VERB = Verb(VerifyOptions, verify)
INSPECT_BATCH = Verb(InspectBatchOptions, inspect_batch)
