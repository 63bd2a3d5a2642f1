"""Room: an export → what the program that it is for makes of it: text → ids → log-probabilities.

Knows nothing of how exports are written. Programs are imported when they are asked.
"""

from __future__ import annotations

import http.client
import inspect
import json
import math
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from myllm.errors import MyLLMError
from myllm.model.cache import KVCache
from myllm.runs.folder import RunFolder
from myllm.runs.weights import load_model

MAX_READ_TOKENS = 128  # that a reader must be able to hold
MAX_PROBABILITIES = 4096  # asked of llama.cpp for a position: it sends each as text


class ExportError(MyLLMError):
    """An export that another program reads differently: it must not be used."""

    exit_code = 1


@dataclass(frozen=True)
class Reader:
    """A program that has read an export.

    Attributes:
        name: the program's.
        encode: text → ids.
        feed: ids that follow those fed before → log-probabilities of what comes after each
            (T, V), NaN where the program does not give one.
        error: of its numbers, relative to the largest log-probability.
    """

    name: str
    encode: Callable[[str], list[int]]
    feed: Callable[[list[int]], Tensor]
    error: float = 1e-4


Opener = Callable[[Path], AbstractContextManager[Reader]]


@contextmanager
def with_myllm(run: RunFolder) -> Iterator[Reader]:
    """The run itself, in float32."""
    model, tokenizer, _ = load_model(run)
    model, cache = model.float(), KVCache(model.config)

    def feed(ids: list[int]) -> Tensor:
        return torch.log_softmax(model(torch.tensor([ids]), cache)[0], dim=-1)  # (T, V)

    yield Reader("myllm", tokenizer.encode, feed)


@contextmanager
def with_transformers(folder: Path) -> Iterator[Reader]:
    """Reads a Hugging Face folder, in float32.

    Raises:
        ExportError: it cannot be read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, utils

    messages: Any = utils.logging
    messages.disable_progress_bar()
    loader: Any = AutoModelForCausalLM
    try:
        model = loader.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever the reader raises: the export is at fault
        raise ExportError(f"transformers cannot read {folder}: {error}") from None
    cache = DynamicCache(config=model.config)
    # the newer name; the older one gives a warning where both are known
    known = inspect.signature(model.forward).parameters
    held = {"cache" if "cache" in known else "past_key_values": cache}

    def feed(ids: list[int]) -> Tensor:
        logits = model(torch.tensor([ids]), use_cache=True, **held).logits
        return torch.log_softmax(logits[0], dim=-1)  # (T, V)

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    yield Reader("transformers", encode, feed)


@contextmanager
def with_onnxruntime(folder: Path) -> Iterator[Reader]:
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
        return torch.log_softmax(torch.from_numpy(logits[0]), dim=-1)  # (T, V)

    yield Reader("onnxruntime", lambda text: list(tokenizer.encode(text).ids), feed)


# --- llama.cpp: its server, in this process. Its threads end, and its memory is given back, when
# the last reference to it goes.


@contextmanager
def with_llama_cpp(path: Path, n_tokens: int = MAX_READ_TOKENS) -> Iterator[Reader]:
    """Reads a GGUF file, with room for so many tokens; attention is computed in float32.

    Raises:
        ExportError: it cannot be read, or llama.cpp cannot compute with it.
    """
    key = secrets.token_hex()  # no other program of this machine may use the server
    try:
        server: Any = _llama_server(path, n_tokens, key)
    except RuntimeError:  # its text is the same for all reasons
        raise ExportError(f"llama.cpp cannot read {path}") from None
    fed: list[int] = []

    def ask(place: str, **question: Any) -> Any:
        return _ask(server.listening_address, key, place, question)

    def encode(text: str) -> list[int]:
        answer = ask("/tokenize", content=text, add_special=False, parse_special=False)
        return [int(id) for id in answer["tokens"]]

    def feed(ids: list[int]) -> Tensor:
        rows = torch.full((len(ids), vocab_size), math.nan)  # (T, V)
        for row, id in zip(rows, ids):  # those before are in its cache
            fed.append(id)
            found = _probabilities(server.handle_completions({**choice, "prompt": fed}), path)
            row[[entry["id"] for entry in found]] = torch.tensor(
                [entry["logprob"] for entry in found]
            )
        return rows

    try:
        vocab_size = ask("/v1/models")["data"][0]["meta"]["n_vocab"]
        choice = {
            "n_predict": 1,
            "n_probs": MAX_PROBABILITIES,
            # It tells probabilities only with a token whose text is whole, and is made to choose
            # one. They are not changed by that: they are those before any choice.
            "logit_bias": [[encode("a")[-1], 1e4]],
        }
        yield Reader("llama.cpp", encode, feed, error=1e-3)  # its GELU is a table in float16
    finally:
        server = None


def _llama_server(path: Path, n_tokens: int, key: str) -> Any:
    """One that says nothing and uses one thread: two that wait for each other on busy cores are
    a hundred times slower."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.api_keys = [key]
    params.n_ctx = n_tokens
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = params.n_threads_http = 1
    params.n_gpu_layers = params.cache_ram_mib = 0
    params.fit_params = params.warmup = params.ui = False
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.verbosity = -1
    return xllamacpp.Server(params)


def _ask(address: str, key: str, place: str, question: dict[str, Any]) -> Any:
    """For what its handlers in Python do not offer. A proxy that is set does not matter here."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    try:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        method = "POST" if question else "GET"
        connection.request(method, place, json.dumps(question) if question else None, headers)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def _probabilities(answer: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """The likeliest tokens: their `id` and `logprob`."""
    try:
        return list(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"])
    except (KeyError, TypeError, IndexError):
        what = answer.get("error", {}).get("message", "it gave no probabilities")
        raise ExportError(f"llama.cpp cannot compute with {path}: {what}") from None
