"""Room: a run, and what was exported of it → how far another program's numbers are from ours."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from myllm.cache import KVCache
from myllm.errors import MyLLMError
from myllm.machine import return_freed_memory
from myllm.registry import Registry
from myllm.run_folder import RunFolder
from myllm.weights import load_model

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


@dataclass(frozen=True)
class Reader:
    """A program that has read an export.

    Attributes:
        name: the program's.
        encode: text → ids.
        feed: ids that follow those fed before → logits (T, V).
    """

    name: str
    encode: Callable[[str], list[int]]
    feed: Callable[[list[int]], Tensor]


def with_myllm(run: RunFolder) -> Reader:
    """The run itself, in float32."""
    model, tokenizer, _ = load_model(run)
    model, cache = model.float(), KVCache(model.config)

    def feed(ids: list[int]) -> Tensor:
        return model(torch.tensor([ids]), cache)[0]

    return Reader("myllm", tokenizer.encode, feed)


def with_transformers(folder: Path) -> Reader:
    """Reads a Hugging Face folder, in float32.

    Raises:
        ExportError: it cannot be read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever the reader raises: the export is at fault
        raise ExportError(f"transformers cannot read {folder}: {error}") from None
    past: Any = None

    def feed(ids: list[int]) -> Tensor:
        nonlocal past
        out = model(torch.tensor([ids]), past_key_values=past, use_cache=True)
        past = out.past_key_values
        return out.logits[0]

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    return Reader("transformers", encode, feed)


def with_llama_cpp(path: Path, n_tokens: int = 2 * N_TOKENS) -> Reader:
    """Reads a GGUF file, with room for so many tokens.

    Raises:
        ExportError: it cannot be read.
    """
    import llama_cpp

    llama_cpp.llama_log_set(_silence(), None)
    try:
        model = llama_cpp.Llama(
            str(path), n_ctx=n_tokens, logits_all=True, verbose=False, n_threads=1, n_gpu_layers=0,
            type_k=0, type_v=0,
        )  # fmt: skip
    except ValueError as error:
        raise ExportError(f"llama.cpp cannot read {path}: {error}") from None

    def feed(ids: list[int]) -> Tensor:
        start = model.n_tokens
        model.eval(ids)
        return torch.from_numpy(model.scores[start : start + len(ids)].copy())

    def encode(text: str) -> list[int]:
        return model.tokenize(text.encode(), add_bos=False, special=False)

    return Reader("llama.cpp", encode, feed)


@cache
def _silence() -> Any:
    """What llama.cpp shall call with its messages, kept for as long as it may: it warns of any
    context below 256, also when it was told not to be verbose."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)


def with_onnxruntime(folder: Path) -> Reader:
    """Reads an ONNX folder.

    Raises:
        ExportError: it cannot be read.
    """
    import onnxruntime
    from tokenizers import Tokenizer as Engine

    try:
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        tokenizer = Engine.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # whatever the reader raises: the export is at fault
        raise ExportError(f"onnxruntime cannot read {folder}: {error}") from None
    tokenizer.encode_special_tokens = True
    past = {
        entry.name: np.zeros((1, entry.shape[1], 0, entry.shape[3]), np.float32)
        for entry in session.get_inputs()[1:]
    }

    def feed(ids: list[int]) -> Tensor:
        logits, *present = session.run(None, {"input_ids": np.array([ids]), **past})
        past.update(zip(past, present))
        return torch.from_numpy(logits[0])

    return Reader("onnxruntime", lambda text: tokenizer.encode(text).ids, feed)


# format → the package that reads it, its reader
READERS: Registry[tuple[str, Callable[[Path], Reader]]] = Registry("to", {
    "hf": ("transformers", with_transformers),
    "gguf": ("llama_cpp", with_llama_cpp),
    "onnx": ("onnxruntime", with_onnxruntime),
})  # fmt: skip


@torch.inference_mode()
def compare(run: RunFolder, path: Path, format: str) -> Comparison | None:
    """Logits of a text, and what both sides write on greedily; None without the reader.

    One model after the other, so that memory holds one at a time.

    Raises:
        ExportError: the export cannot be read, or its tokenizer gives other ids.
    """
    package, open_with = READERS[format]
    if importlib.util.find_spec(package) is None:
        return None
    tokenizer, context = run.tokenizer, run.config.model.context_length
    # unknown characters are left out: llama.cpp makes one of several in a row
    text = "".join(
        ch for ch in TEXT if not tokenizer.count_unknown(np.array(tokenizer.encode(ch)))
    )
    ids = tokenizer.encode(text)
    tokens = (ids * context)[: max(1, min(N_TOKENS, context // 2))]
    expected, ours = _write(with_myllm(run).feed, tokens, context)
    return_freed_memory()
    reader = open_with(path)
    if reader.encode(text) != ids:
        raise ExportError(f"the exported tokenizer gives other ids in {reader.name}")
    found, theirs = _write(reader.feed, tokens, context)
    difference, scale = (expected - found).abs().max().item(), expected.abs().max().item()
    return Comparison(reader.name, difference, scale, ours, theirs)


def _write(
    feed: Callable[[list[int]], Tensor], tokens: list[int], context: int
) -> tuple[Tensor, list[int]]:
    """The logits of `tokens` (T, V), and the ids that follow greedily."""
    first = logits = feed(tokens)
    written: list[int] = []
    for _ in range(min(N_TOKENS, context - len(tokens))):
        written.append(int(logits[-1].argmax()))
        logits = feed(written[-1:])
    return first, written
