"""What saving a checkpoint costs a training run: the same steps with a save and without.

python benchmarks/checkpoint_cost.py

Short segments of steps of the default model alternate in one process: in every second one a
checkpoint is saved at its beginning, in the background, as in a run. Evaluations are left out.
What a save adds to its segment is also given as a share of 100 steps.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from comparison import report, spread

from myllm.data.corpora import python_docs
from myllm.data.dataset import TextDataset
from myllm.data.prepare import prepare
from myllm.model import GPTModel
from myllm.presets import default_config
from myllm.runs.folder import RunFolder
from myllm.train import Trainer


def main() -> None:
    """Trains in segments, prints the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10, help="steps of a segment")
    parser.add_argument("--rounds", type=int, default=20, help="segments of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(Path(folder), options.steps * (2 * options.rounds + 1))
        _segment(trainer, options.steps // 2, False)
        plain, saving, stalls = [], [], []
        for _ in range(options.rounds):
            plain.append(_segment(trainer, options.steps, False)[0])
            seconds, stall = _segment(trainer, options.steps, True)
            saving.append(seconds)
            stalls.append(stall)
    rows = [
        ("without", spread(plain, 2), "", ""),
        ("with a save", spread(saving, 2), spread([1e3 * stall for stall in stalls]), ""),
    ]
    ratio = statistics.median(s / p for s, p in zip(saving, plain))
    rows[1] = (*rows[1][:3], f"{ratio - 1:+.1%}")
    report(f"{options.steps} steps", ("", "seconds", "loop stands still, ms", "slower by"), rows)
    print(f"of 100 steps: {(ratio - 1) * options.steps / 100:+.2%}")


def _trainer(folder: Path, n_steps: int) -> Trainer:
    config = default_config()
    text = replace(config.text, paths=(str(python_docs(folder)),), data_dir=str(folder / "data"))
    token_file = prepare(text, 0)
    shape = replace(config.model, vocab_size=token_file.tokenizer.vocab_size, attention="manual")
    config = replace(config, model=shape, train=replace(config.train, max_steps=n_steps))
    torch.manual_seed(1)
    data = TextDataset(
        token_file.tokens(), token_file.train_ranges, shape.context_length,
        config.train.batch_size,
    )  # fmt: skip
    run = RunFolder.create(folder, "run", config, token_file.tokenizer)
    return Trainer(GPTModel(shape), data, config=replace(config.train, kernels="plain"), run=run)


def _segment(trainer: Trainer, n_steps: int, with_save: bool) -> tuple[float, float]:
    """Seconds of the segment, and of them those that the loop waited for the save."""
    began = time.perf_counter()
    stall = 0.0
    if with_save:
        trainer.save()
        stall = time.perf_counter() - began
    for _ in range(n_steps):
        trainer.train_step(trainer.train_data.batch(trainer.step), trainer.step)
        trainer.state.step += 1
    return time.perf_counter() - began, stall


if __name__ == "__main__":
    main()
