"""Draws the losses of a run folder's metrics.jsonl as a picture.

python benchmarks/plot_loss.py checkpoints/my-run loss.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

from myllm.runs.folder import RunFolder

matplotlib.use("Agg")  # no window
import matplotlib.pyplot as plt  # noqa: E402


def main() -> None:
    """Reads the arguments, draws, saves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("picture", type=Path, help="the file to write (.png, .svg)")
    options = parser.parse_args()
    records = RunFolder(options.run).metrics()
    minutes = [record["elapsed_s"] / 60 for record in records]
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    axes.plot(minutes, [r["train_loss"] for r in records], "o-", label="training")
    axes.plot(minutes, [r["val_loss"] for r in records], "o-", label="validation")
    axes.set(xlabel="minutes", ylabel="loss (nats per token)", title=options.run.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(options.picture, dpi=120)


if __name__ == "__main__":
    main()
