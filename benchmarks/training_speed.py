"""Claim 1, throughput: tokens per second at the same architecture, batch and context.

python benchmarks/training_speed.py tinyshakespeare.txt --nanogpt PATH

nanoGPT runs its own train.py, eager and compiled, and prints its own times; ours are the times of
the Trainer's steps. The architecture is nanoGPT's (preset gpt2 without biases, AdamW) in both,
each in its own precision: nanoGPT has no bfloat16 on CPUs. The first third of the steps, and with
them compiling, is left out.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from comparison import (
    HERE,
    Result,
    Side,
    alternate,
    arguments,
    output_of,
    report,
    spread,
    write_json,
)


@dataclass(frozen=True)
class Recipe:
    """A shape and a batch that nanoGPT's README trains, and how many steps to time."""

    n_layers: int
    n_heads: int
    d_model: int
    context_length: int
    batch_size: int
    dropout: float
    steps: int
    vocab_size: int = 0  # 0: the characters of the text; else random tokens are trained on


RECIPES = {
    "cpu": Recipe(4, 4, 128, 64, 12, 0.0, 300),
    "gpu": Recipe(6, 6, 384, 256, 64, 0.2, 6),
    "124m": Recipe(12, 12, 768, 1024, 16, 0.0, 60, 50304),  # as nanoGPT's bench.py
}


def main() -> None:
    """Reads the arguments, runs the sides in turn, prints the ratio."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--steps", type=int, help="steps of each run, instead of the recipe's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kernels", help="ours (the fastest here)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    recipe = RECIPES[options.recipe]
    if options.steps:
        recipe = Recipe(**{**vars(recipe), "steps": options.steps})
    if options.worker:
        print(json.dumps(_step_seconds(options.text, recipe, options.device, options.kernels)))
        return
    sides: dict[str, Side] = {"MyLLM": _ours(options)}
    if options.nanogpt:
        for name, compiled in (("nanoGPT, eager", False), ("nanoGPT, compiled", True)):
            sides[name] = _nanogpt(options, recipe, compiled)
    results = alternate(sides, options.rounds)
    tokens = recipe.batch_size * recipe.context_length
    speeds = {name: [tokens / r.seconds for r in found] for name, found in results.items()}
    ours = statistics.median(speeds["MyLLM"])
    flops = _flops_per_token(recipe)
    rows = [
        (
            name,
            spread([1e3 * r.seconds for r in found]),
            spread(speeds[name], 0),
            f"{flops * statistics.median(speeds[name]) / 1e12:.3g}",
            f"{ours / statistics.median(speeds[name]):.2f}",
        )
        for name, found in results.items()
    ]
    shape = f"{recipe.n_layers} x {recipe.d_model}, context {recipe.context_length}"
    title = f"throughput: {shape}, batch {recipe.batch_size}, dropout {recipe.dropout}"
    report(title, ("", "ms a step", "tokens/s", "TFLOP/s", "ours is faster by"), rows)
    write_json(options.json, results)


def _flops_per_token(recipe: Recipe) -> int:
    """As papers count them (arXiv 2204.02311): of a vocabulary of characters, about 65."""
    from myllm.config import GPTConfig
    from myllm.model import GPTModel
    from myllm.system.device import shapes_only

    shape = GPTConfig(
        n_layers=recipe.n_layers, n_heads=recipe.n_heads, d_model=recipe.d_model,
        context_length=recipe.context_length, vocab_size=recipe.vocab_size or 65, bias=False,
    )  # fmt: skip
    with shapes_only():
        return GPTModel(shape).estimate_flops_per_token()


def _ours(options: argparse.Namespace) -> Side:
    command = [sys.executable, str(HERE / "training_speed.py"), str(options.text), "--worker"]
    command += ["--recipe", options.recipe, "--device", options.device]
    if options.steps:
        command += ["--steps", str(options.steps)]
    if kernels := options.kernels or ("compiled" if options.device == "cuda" else None):
        command += ["--kernels", kernels]

    def run(seed: int) -> Result:
        return _result(json.loads(output_of(command)[0].splitlines()[-1]))

    return run


def _step_seconds(
    text: Path, recipe: Recipe, device: str, kernels: str | None
) -> list[tuple[float, float]]:
    """Seconds and loss of each step of our Trainer."""
    import numpy as np
    import torch

    from myllm.config import DataConfig, with_values
    from myllm.data.dataset import TextDataset
    from myllm.data.prepare import prepare
    from myllm.model import GPTModel
    from myllm.presets import default_config
    from myllm.system.device import choose_attention
    from myllm.train import Trainer
    from myllm.train.observer import Observer

    with tempfile.TemporaryDirectory() as folder:
        made = prepare(DataConfig((str(text),), tokenizer="char", data_dir=folder), 0)
        config = with_values(
            default_config("gpt2"),
            dict(
                n_layers=recipe.n_layers, n_heads=recipe.n_heads, d_model=recipe.d_model,
                context_length=recipe.context_length, batch_size=recipe.batch_size,
                dropout=recipe.dropout, bias=False, max_steps=recipe.steps, device=device,
                vocab_size=recipe.vocab_size or made.tokenizer.vocab_size,
                attention=choose_attention(torch.device(device)), kernels=kernels,
            ),
        )  # fmt: skip
        steps: list[tuple[float, float]] = []

        class Watch(Observer):
            def on_step(self, step: int, loss: float, tokens_per_second: float) -> None:
                tokens = recipe.batch_size * recipe.context_length
                steps.append((tokens / tokens_per_second, loss))

        model = GPTModel(config.model)
        tokens = made.tokens()
        if recipe.vocab_size:
            tokens = np.random.default_rng(1).integers(recipe.vocab_size, size=10**6)
        data = TextDataset(tokens, None, recipe.context_length, recipe.batch_size)
        Trainer(model, data, config=config.train, observer=Watch()).train()
    return steps


def _nanogpt(options: argparse.Namespace, recipe: Recipe, compiled: bool) -> Side:
    flags = [
        f"--device={options.device}", f"--compile={compiled}", "--eval_iters=1",
        "--eval_interval=100000", "--log_interval=1", f"--block_size={recipe.context_length}",
        f"--batch_size={recipe.batch_size}", f"--n_layer={recipe.n_layers}",
        f"--n_head={recipe.n_heads}", f"--n_embd={recipe.d_model}",
        f"--max_iters={recipe.steps}", f"--dropout={recipe.dropout}",
    ]  # fmt: skip
    work = tempfile.TemporaryDirectory()
    script = str(HERE / "nanogpt.py")
    command = [sys.executable, script, str(options.nanogpt), str(options.text), work.name, *flags]
    pattern, folder = r"^iter \d+: loss ([\d.]+), time ([\d.]+)ms", None
    if recipe.vocab_size:
        command = [sys.executable, "bench.py", *flags[:2], f"--batch_size={recipe.batch_size}"]
        command += ["--real_data=False"]
        pattern, folder = r"(time) per iteration: ([\d.]+)ms", options.nanogpt

    def run(seed: int) -> Result:
        found = re.findall(pattern, "".join(output_of(command, cwd=folder)), re.M)
        return _result([(float(ms) / 1e3, 0.0) for _, ms in found])

    return run


def _result(steps: list[tuple[float, float]]) -> Result:
    """The median step, once it has settled."""
    settled = [seconds for seconds, _ in steps[len(steps) // 3 :]]
    return Result(statistics.median(settled), steps[-1][1], len(steps))


if __name__ == "__main__":
    main()
