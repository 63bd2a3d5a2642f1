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
from myllm.tokenizer import Tokenizer

N_TOKENS = MAX_READ_TOKENS // 2  # compared, and as many are written
TEXT = " Once upon a time there was the 1st day; naïve 你好.\n"
MIN_IDS = 4  # of the text; a tokenizer that knows less of it is asked for its own tokens
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
        error: how exact the other program's numbers are, relative to the scale.
    """

    reader: str
    difference: float
    scale: float
    ours: list[int]
    theirs: list[int]
    error: float = 1e-4

    @property
    def equal(self) -> bool:
        """Whether it is the same model: logits as near as they are exact, the same text."""
        return self.difference <= self.error * max(1.0, self.scale) and self.ours == self.theirs


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
    text = _text(tokenizer)
    ids = tokenizer.encode(text)
    # a text of none of its tokens begins as a new one does
    tokens = ((ids or [tokenizer.eos_token_id]) * N_TOKENS)[: max(1, min(N_TOKENS, context // 2))]
    unused = tokenizer.ids_without_token(run.config.model.vocab_size)
    probe = Probe(text, ids, tokens, min(N_TOKENS, context - len(tokens)), unused)
    _, _, expected, ours = _read(with_myllm(run), probe)
    return_freed_memory()
    name, error, found, theirs = _read(open_with(path), probe)
    told = ~found.isnan()  # (T, V)
    if expected.shape != found.shape or not told.any(dim=-1).all():
        raise ExportError(f"{name} gives no logits like ours: {tuple(found.shape)}")
    expected = expected.clamp(min=MIN_LOG_PROBABILITY)
    difference = (expected - found.clamp(min=MIN_LOG_PROBABILITY))[told].abs().max().item()
    scale = expected.abs().max().item()
    return Comparison(name, difference, scale, ours, theirs, error)


@dataclass(frozen=True)
class Probe:
    """What both sides are asked.

    Attributes:
        text: to encode.
        ids: what it is to us.
        tokens: ids to read.
        n_written: how many to write after them.
        unused: ids that stand for nothing, which neither may write.
    """

    text: str
    ids: list[int]
    tokens: list[int]
    n_written: int
    unused: list[int]

    def likeliest(self, logits: Tensor) -> int:
        """The likeliest token after the last of (T, V)."""
        last = logits[-1].nan_to_num(-torch.inf)  # (V,)
        last[self.unused] = -torch.inf
        return int(last.argmax())


def _text(tokenizer: Tokenizer) -> str:
    """A text that the tokenizer knows: `TEXT` without unknown characters, of which llama.cpp
    makes one of several in a row; tokens of its own where it knows hardly any of that."""

    def known(text: str) -> str:
        return "".join(
            ch for ch in text if not tokenizer.count_unknown(np.array(tokenizer.encode(ch), int))
        )

    text = known(TEXT)
    if len(tokenizer.encode(text)) >= MIN_IDS:
        return text
    step = max(1, tokenizer.vocab_size // N_TOKENS)
    own = [tokenizer.token_bytes(id) for id in range(0, tokenizer.vocab_size, step)]
    return known(text + b"".join(own).decode("utf-8", "ignore"))


def _read(
    opened: AbstractContextManager[Reader], probe: Probe
) -> tuple[str, float, Tensor, list[int]]:
    """A reader's name and its error; its normalised logits of the tokens (T, V), and the ids that
    it writes next.

    Raises:
        ExportError: the text has other ids there.
    """
    with opened as reader:
        if reader.encode(probe.text) != probe.ids:
            raise ExportError(f"the exported tokenizer gives other ids in {reader.name}")
        first = reader.feed(probe.tokens)  # (T, V)
        written = [probe.likeliest(first)] if probe.n_written else []
        while len(written) < probe.n_written:
            written.append(probe.likeliest(reader.feed(written[-1:])))
        return reader.name, reader.error, first, written
