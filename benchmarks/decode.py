"""Decoding on a CPU: tokens a second by PyTorch as the model is written, and by the kernels.

python benchmarks/decode.py [--nanogpt PATH] [--threads 1 2] [--rounds 5]

For the default shape and nanoGPT's 6×384 by characters, random weights: single passes for 1, 8 and
32 rows of a half-full context; then whole greedy texts far past the context, with choosing and
spelling, beside llama.cpp (the same weights by our own export, f32) and nanoGPT's `generate`
(its own model of that shape). The sides take turns in one process; medians of the rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from comparison import report

from myllm.config import GPTConfig, RunConfig, SamplingConfig, with_values
from myllm.formats.gguf import export_gguf
from myllm.generate import TextGenerator, decode
from myllm.generate.decode import decode_one_token, prefill
from myllm.kernels.decode_cpu import decoder_of
from myllm.model import GPTModel, KVCache
from myllm.presets import default_config
from myllm.runs.checkpoint import Checkpoint
from myllm.runs.folder import RunFolder
from myllm.runs.weights import model_tensors
from myllm.tokenizer import BPETokenizer, CharTokenizer, Tokenizer

ROWS = (1, 8, 32)
N_TOKENS = 300  # of a text
CHARACTERS = "".join(map(chr, range(33, 97)))
SHAPES = {
    "default": dict(vocab_size=3136),
    "6×384": dict(vocab_size=65, d_model=384, n_layers=6, n_heads=6, context_length=256),
}


def main() -> None:
    """Reads the arguments, prints two tables for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", type=Path, help="a checkout")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    for n in options.threads:
        torch.set_num_threads(n)
        with torch.no_grad():
            passes = [row for name in SHAPES for row in passes_of(name, options.rounds)]
        columns = "shape", "rows", "plain, tokens/s", "kernel, tokens/s", "ratio"
        report(f"passes, {n} threads", columns, passes)
        texts = [texts_of(name, options.rounds, options.nanogpt) for name in SHAPES]
        columns = "shape", "plain, tokens/s", "kernel", "llama.cpp", "nanoGPT"
        report(f"whole texts of one row, {n} threads", columns, texts)


def config_of(name: str) -> GPTConfig:
    """The shape, in the `modern` preset's layout."""
    return with_values(default_config(), SHAPES[name]).model


def plainly(run: Callable[[], float]) -> Callable[[], float]:
    """As `run`, without kernels."""

    def without() -> float:
        with mock.patch.object(decode, "decoder_of", lambda model, cache: None):
            return run()

    return without


def alternating(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each side's rounds, after one that warms up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds + 1):
        for name, run in sides.items():
            value = run()
            if i:
                found[name].append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def passes_of(name: str, rounds: int) -> list[list[str]]:
    """Tokens a second of single passes, for each number of rows."""
    model, table = GPTModel(config_of(name)).eval(), []
    assert decoder_of(model, KVCache(model.config)) is not None, "there are no kernels here"
    for n in ROWS:

        def run() -> float:
            cache, half = KVCache(model.config), model.config.context_length // 2
            prefill(model, torch.ones(n, half, dtype=torch.long), cache)
            ids, times = torch.ones(n, dtype=torch.long), []
            for _ in range(half // 2):
                start = time.perf_counter()
                decode_one_token(model, ids, cache)
                times.append(time.perf_counter() - start)
            return n / statistics.median(times)

        found = alternating({"plain": plainly(run), "kernel": run}, rounds)
        ratio = found["kernel"] / found["plain"]
        shown = [f"{found[side]:,.0f}" for side in ("plain", "kernel")]
        table.append([name, str(n), *shown, f"{ratio:.1f}"])
    return table


def texts_of(name: str, rounds: int, nanogpt: Path | None) -> list[str]:
    """Tokens a second of whole greedy texts, by each program."""
    config = config_of(name)
    tokenizer = tokenizer_of(config.vocab_size)
    config = dataclasses.replace(config, vocab_size=tokenizer.vocab_size)
    model = GPTModel(config)
    generator = TextGenerator(model.eval(), tokenizer)
    sampling = SamplingConfig(N_TOKENS, temperature=0, ignore_end=True)

    def run() -> float:
        return rate(lambda: list(generator.stream("ABC", sampling)))

    sides: dict[str, Callable[[], float]] = {"plain": plainly(run), "kernel": run}
    with tempfile.TemporaryDirectory() as folder:
        if importlib.util.find_spec("xllamacpp"):
            sides["llama.cpp"] = llama_cpp(Path(folder), model, tokenizer)
        if nanogpt is not None:
            sides["nanoGPT"] = nanogpt_of(nanogpt, config)
        found = alternating(sides, rounds)
    shown = {side: f"{value:,.0f}" for side, value in found.items()}
    return [name, *(shown.get(side, "–") for side in ("plain", "kernel", "llama.cpp", "nanoGPT"))]


def rate(work: Callable[[], Any]) -> float:
    """Tokens a second of something that writes `N_TOKENS`."""
    start = time.perf_counter()
    work()
    return N_TOKENS / (time.perf_counter() - start)


def tokenizer_of(vocab_size: int) -> Tokenizer:
    """Characters for a small vocabulary, else byte pairs of this Python's own modules."""
    if vocab_size < 256:
        return CharTokenizer().train(CHARACTERS[: vocab_size - 2])
    pages = sorted(Path(dataclasses.__file__).parent.glob("*.py"))[:80]
    return BPETokenizer(vocab_size).train("".join(p.read_text(encoding="utf-8") for p in pages))


def llama_cpp(folder: Path, model: GPTModel, tokenizer: Tokenizer) -> Callable[[], float]:
    """llama.cpp's server in this process, with these weights, and as many threads. It ends where
    the context is full, and so is spared to read a part of it anew."""
    import xllamacpp

    run = RunFolder.create(folder, "run", RunConfig(model=model.config), tokenizer)
    run.checkpoints.save(
        Checkpoint(1, model_tensors(model), {}, {}, {}, run.small_files()), True, 2
    )
    export_gguf(run, folder / "model.gguf")
    params = xllamacpp.CommonParams()
    params.model.path, params.verbosity = str(folder / "model.gguf"), -1
    params.n_ctx, params.n_gpu_layers, params.cache_ram_mib = 2 * N_TOKENS, 0, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    server = xllamacpp.Server(params)
    question = {"prompt": "ABC", "n_predict": N_TOKENS, "ignore_eos": True, "temperature": 0.0}

    def ask() -> float:
        answer = server.handle_completions(question)
        return float(answer["timings"]["predicted_per_second"])  # its own, without the way here

    return ask


def nanogpt_of(checkout: Path, config: GPTConfig) -> Callable[[], float]:
    """nanoGPT's own model of this shape, and the function that its sample.py calls."""
    sys.path.insert(0, str(checkout.resolve()))
    module: Any = importlib.import_module("model")
    shape = dict(block_size=config.context_length, vocab_size=config.vocab_size, bias=False)
    shape |= dict(n_layer=config.n_layers, n_head=config.n_heads, n_embd=config.d_model)
    model = module.GPT(module.GPTConfig(**shape, dropout=0.0)).eval()

    def run() -> float:
        with torch.no_grad():
            return rate(
                lambda: model.generate(torch.ones(1, 3, dtype=torch.long), N_TOKENS, top_k=1)
            )

    return run


if __name__ == "__main__":
    main()
