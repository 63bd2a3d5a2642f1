"""Room: a run, and what was exported of it → how far another program's numbers are from ours."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from myllm.checkpoint import RunFolder, load_model
from myllm.errors import MyLLMError

N_TOKENS = 64  # compared, and written


class ExportError(MyLLMError):
    """An export that another program reads differently: it must not be used."""

    exit_code = 1


@dataclass(frozen=True)
class Comparison:
    """What both sides gave.

    Attributes:
        reader: the other program.
        difference: the largest of any logit.
        scale: the largest logit, to judge it by.
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


TEXT = " Once upon a time there was the 1st day; naïve 你好.\n"


def compare_with_transformers(run: RunFolder, folder: Path) -> Comparison | None:
    """Reads an exported folder with `transformers`, in float32; None if it is not installed.

    Raises:
        ExportError: it cannot be read, or the tokenizer gives other ids.
    """
    if importlib.util.find_spec("transformers") is None:
        return None
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever the reader raises: the export is at fault
        raise ExportError(f"transformers cannot read {folder}: {error}") from None

    @torch.inference_mode()
    def compute(tokens: list[int]) -> Tensor:
        return theirs(torch.tensor([tokens])).logits[0]

    return _compare(
        "transformers", run, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        compute,
    )  # fmt: skip


def compare_with_llama_cpp(run: RunFolder, path: Path) -> Comparison | None:
    """Reads a GGUF file with llama.cpp; None if `llama-cpp-python` is not installed.

    Raises:
        ExportError: it cannot be read, or the tokenizer gives other ids.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    from llama_cpp import Llama

    context = run.config.model.context_length
    try:
        theirs = Llama(
            str(path), n_ctx=context, n_batch=context, logits_all=True, verbose=False, n_threads=1,
            n_gpu_layers=0, type_k=0, type_v=0,
        )  # fmt: skip
    except ValueError as error:
        raise ExportError(f"llama.cpp cannot read {path}: {error}") from None

    def compute(tokens: list[int]) -> Tensor:
        theirs.reset()
        theirs.eval(tokens)
        return torch.from_numpy(theirs.scores[: len(tokens)].copy())

    def encode(text: str) -> list[int]:
        return theirs.tokenize(text.encode(), add_bos=False, special=False)

    return _compare("llama.cpp", run, encode, compute)


@torch.inference_mode()
def _compare(
    reader: str,
    run: RunFolder,
    encode: Callable[[str], list[int]],
    compute: Callable[[list[int]], Tensor],
) -> Comparison:
    """Logits of a text, and what both sides write on greedily, each from its own."""
    model, tokenizer, _ = load_model(run)
    model = model.float()
    # unknown characters are left out: llama.cpp makes one of several in a row
    text = "".join(
        ch for ch in TEXT if not tokenizer.count_unknown(np.array(tokenizer.encode(ch)))
    )
    ids = tokenizer.encode(text)
    if encode(text) != ids:
        raise ExportError(f"the exported tokenizer gives other ids in {reader}")
    context = model.config.context_length
    tokens = (ids * context)[: max(1, min(N_TOKENS, context // 2))]
    expected, found = model(torch.tensor([tokens]))[0], compute(tokens)
    written: list[list[int]] = []
    for logits in (lambda seen: model(torch.tensor([seen]))[0], compute):
        seen = list(tokens)
        for _ in range(min(N_TOKENS, context - len(tokens))):
            seen.append(int(logits(seen)[-1].argmax()))
        written.append(seen[len(tokens) :])
    difference, scale = (expected - found).abs().max().item(), expected.abs().max().item()
    return Comparison(reader, difference, scale, written[0], written[1])
