"""Room: a run, and what was exported of it → how far another program's numbers are from ours."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from myllm.formats.readers import MAX_READ_TOKENS, ExportError, Opener, Reader, with_myllm
from myllm.runs.folder import RunFolder
from myllm.system.machine import return_freed_memory

N_TOKENS = MAX_READ_TOKENS // 2  # compared, and as many are written
TEXT = " Once upon a time there was the 1st day; naïve 你好.\n"
MIN_LOG_PROBABILITY = -80.0  # below, a float32 probability has lost its digits


@dataclass(frozen=True)
class Comparison:
    """What both sides gave.

    Attributes:
        reader: the other program.
        difference: the largest of any normalised logit (log-probability).
        scale: the largest normalised logit, to judge it by.
        ours: the ids that we write greedily.
        theirs: those that the other program writes.
    """

    reader: str
    difference: float
    scale: float
    ours: list[int]
    theirs: list[int]

    @property
    def equal(self) -> bool:
        """Whether it is the same model: logits to 1e-4 of their scale, the same text."""
        return self.difference <= 1e-4 * max(1.0, self.scale) and self.ours == self.theirs


@torch.inference_mode()
def compare(run: RunFolder, path: Path, open_with: Opener) -> Comparison:
    """Normalised logits of a text, and what both sides write greedily after it.

    One model after the other, so that memory holds one at a time.

    Args:
        run: the run.
        path: what was exported of it.
        open_with: the reader.

    Raises:
        ExportError: the export cannot be read, or its tokenizer gives other ids.
    """
    tokenizer, context = run.tokenizer, run.config.model.context_length
    # unknown characters are left out: llama.cpp makes one of several in a row
    text = "".join(
        ch for ch in TEXT if not tokenizer.count_unknown(np.array(tokenizer.encode(ch)))
    )
    ids = tokenizer.encode(text)
    tokens = (ids * context)[: max(1, min(N_TOKENS, context // 2))]
    n_written = min(N_TOKENS, context - len(tokens))
    _, expected, ours = _read(with_myllm(run), text, ids, tokens, n_written)
    return_freed_memory()
    name, found, theirs = _read(open_with(path), text, ids, tokens, n_written)
    told = ~found.isnan()  # (T, V)
    if expected.shape != found.shape or not told.any(dim=-1).all():
        raise ExportError(f"{name} gives no logits like ours: {tuple(found.shape)}")
    expected = expected.clamp(min=MIN_LOG_PROBABILITY)
    difference = (expected - found.clamp(min=MIN_LOG_PROBABILITY))[told].abs().max().item()
    return Comparison(name, difference, expected.abs().max().item(), ours, theirs)


def _read(
    opened: AbstractContextManager[Reader],
    text: str,
    ids: list[int],
    tokens: list[int],
    n_written: int,
) -> tuple[str, Tensor, list[int]]:
    """A reader's name, its normalised logits of `tokens` (T, V), the ids that it writes next.

    Raises:
        ExportError: `text` has other `ids` there.
    """
    with opened as reader:
        if reader.encode(text) != ids:
            raise ExportError(f"the exported tokenizer gives other ids in {reader.name}")
        first = reader.feed(tokens)  # (T, V)
        written = [_likeliest(first)] if n_written else []
        while len(written) < n_written:
            written.append(_likeliest(reader.feed(written[-1:])))
        return reader.name, first, written


def _likeliest(logits: Tensor) -> int:
    """The likeliest token after the last of (T, V)."""
    return int(logits[-1].nan_to_num(-torch.inf).argmax())
