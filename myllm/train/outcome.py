"""Room: a session → what a person needs to judge its run by: facts, verdict, comparison.

Knows nothing of screens.
"""

from __future__ import annotations

from dataclasses import dataclass

from myllm.data.held_out import xz_bits_per_byte
from myllm.runs.verdict import Facts, Verdict, points_of, verdict
from myllm.train.session import Session


@dataclass(frozen=True)
class Outcome:
    """What a training run came to.

    Attributes:
        verdict: what its losses say.
        beginning: a line of the text held out, which samples begin with.
        xz_bits_per_byte: what a compressor takes for a byte of that text.
    """

    verdict: Verdict
    beginning: str
    xz_bits_per_byte: float


def facts_of(session: Session) -> Facts:
    """What a verdict on the run depends on besides its losses."""
    trainer, token_file = session.trainer, session.token_file
    data = trainer.train_data
    return Facts(
        n_train_tokens=token_file.n_train_tokens,
        n_val_tokens=token_file.n_val_tokens,
        tokens_per_step=data.batch_size * data.context_length,
        max_steps=trainer.config.max_steps,
        unigram_loss=trainer.provenance.facts["unigram_loss"],
    )


def outcome_of(session: Session) -> Outcome:
    """What came of a run that has ended."""
    return Outcome(
        verdict(points_of(session.run.metrics()), facts_of(session)),
        str(session.trainer.provenance.facts["beginning"]),
        xz_bits_per_byte(session.token_file),
    )
