"""Runs a checkout of nanoGPT as it is, and measures what it trained as we measure ours.

python benchmarks/nanogpt.py PATH TEXT OUT FLAG…

PATH is a checkout of github.com/karpathy/nanoGPT, TEXT a text file, OUT a folder to work in, and
the FLAGs those of nanoGPT's train.py. Its own prepare.py and train.py are run, unchanged, in this
process; the loss of the model they leave is then measured over the whole validation set. The last
line printed is JSON: seconds of train.py (its evaluations and checkpoints are part of it), steps,
and the loss.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch


def main() -> None:
    """Prepares the text, trains, measures, prints the result."""
    checkout, text, out = (Path(arg).resolve() for arg in sys.argv[1:4])
    flags = sys.argv[4:]
    work = out / "nanogpt"
    if not work.exists():
        shutil.copytree(checkout, work, ignore=shutil.ignore_patterns(".git"))
        prepare(work / "data" / "shakespeare_char", text)
    os.chdir(work)  # nanoGPT's scripts open files relative to it
    sys.path.insert(0, str(work))
    sys.argv = ["train.py", "config/train_shakespeare_char.py", *flags]
    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        after = runpy.run_path("train.py", run_name="__main__")
    seconds = time.perf_counter() - start
    model, block_size = after["raw_model"], after["block_size"]
    ids = torch.from_numpy(np.fromfile(work / "data/shakespeare_char/val.bin", np.uint16))
    loss = _whole_validation_loss(model, ids.long().to(after["device"]), block_size)
    print(json.dumps({"seconds": seconds, "steps": after["iter_num"] - 1, "loss": loss}))


def prepare(folder: Path, text: Path) -> None:
    """Puts a text into a checkout, as its own script prepares it."""
    shutil.copy(text, folder / "input.txt")
    sys.modules.setdefault("requests", types.ModuleType("requests"))  # only for downloading
    with contextlib.redirect_stdout(sys.stderr):
        runpy.run_path(str(folder / "prepare.py"))


@torch.no_grad()
def _whole_validation_loss(model: Any, ids: torch.Tensor, block_size: int) -> float:
    """Mean nats per token over all sequences side by side, as `myllm.train.evaluate` does."""
    model.eval()
    nats, count = 0.0, 0
    for start in range(0, len(ids) - 1, block_size):
        sequence = ids[start : start + block_size + 1]
        _, loss = model(sequence[None, :-1], sequence[None, 1:])
        nats += loss.item() * (len(sequence) - 1)
        count += len(sequence) - 1
    return nats / count


if __name__ == "__main__":
    main()
