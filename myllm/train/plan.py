"""Room: a session → lines that tell what is going to be trained, on what, and where to.

Knows nothing of screens.
"""

from __future__ import annotations

import math

import torch

from myllm.runs.verdict import Facts
from myllm.system.units import short_bytes, short_times
from myllm.train.memory import estimate_checkpoint_bytes
from myllm.train.outcome import facts_of
from myllm.train.session import Session

INDENT = 8  # columns before what a line tells
LITTLE = 0.1  # of the text: a run that sees less has hardly begun


def plan_lines(session: Session) -> list[str]:
    """What is going to be trained: a line each, its topic in the first `INDENT` columns."""
    trainer, token_file, facts = session.trainer, session.token_file, facts_of(session)
    shape, config = trainer.model.config, trainer.config
    names = f"{token_file.n_documents:,} documents" if token_file.n_documents > 1 else "1 document"
    dtype = str(trainer.dtype).removeprefix("torch.")
    threads = f", {_counted(torch.get_num_threads(), 'thread')}"
    disk = (max(config.keep, 2) + 2) * estimate_checkpoint_bytes(trainer.model, config)
    lines = [
        f"text    {token_file.n_characters:,} characters, {token_file.n_tokens:,} tokens "
        f"({token_file.tokenizer.kind}, vocabulary {token_file.tokenizer.vocab_size:,}), {names}; "
        f"{facts.n_val_tokens:,} tokens are held out to measure the model",
        f"model   {trainer.model.count_parameters():,} parameters: "
        f"{_counted(shape.n_layers, 'layer')}, {shape.d_model} wide, "
        f"{_counted(shape.n_heads, 'head')}, context {shape.context_length}",
        f"device  {trainer.device}, {dtype}{threads if trainer.device.type == 'cpu' else ''}",
        _steps_line(session, facts),
        f"saved   in {session.run.path} (takes up to {short_bytes(disk)})",
    ]
    if trainer.step < config.max_steps and facts.times_seen(config.max_steps) < LITTLE:
        once = math.ceil(facts.n_train_tokens / facts.tokens_per_step)
        lines.append(
            f"warning this run sees only {facts.share_seen(config.max_steps)} of the text: "
            f"--max-steps {once} goes through all of it once, and --minutes plans a run for a time"
        )
    return lines


def _steps_line(session: Session, facts: Facts) -> str:
    trainer = session.trainer
    config, T = trainer.config, trainer.train_data.context_length
    of_length = f" in sequences of {T:,}" if T < trainer.model.config.context_length else ""
    begin = f"from step {trainer.step} to" if trainer.step else "to"
    if is_done := trainer.step >= config.max_steps:
        begin = "all done,"
    times = facts.times_seen(config.max_steps)
    seen = (
        f"{short_times(times)} times the text"
        if times >= 1
        else f"{facts.share_seen(config.max_steps)} of the text"
    )
    line = (
        f"steps   {begin} {config.max_steps:,}, {facts.tokens_per_step:,} tokens each"
        f"{of_length} ({seen})"
    )
    if config.patience and not is_done:
        line += (
            f"; stops early after {_counted(config.patience, 'evaluation')} without a better loss "
            "(--patience 0: never)"
        )
    return line


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
