"""The faults of `faults.py`, made to a checkout of nanoGPT, which is run unchanged."""

from __future__ import annotations

import hashlib
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from crashes import forked
from nanogpt import prepare

KILLS, FLIPS = 20, 400
# its recipe for a CPU, with short steps, and a checkpoint after each one
FLAGS = (
    "--device=cpu --compile=False --eval_iters=1 --log_interval=1 --block_size=64 --batch_size=4 "
    "--n_layer=4 --n_head=4 --n_embd=128 --dropout=0.0 --eval_interval=1 "
    "--always_save_checkpoint=True"
).split()
Line = tuple[str, int, int, float, str]


def nanogpt_faults(checkout: Path, text: str) -> Iterator[Line]:
    """Lines of the table: what was done, how often, how often something was lost."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name) / "nanogpt"
        shutil.copytree(checkout, work, ignore=shutil.ignore_patterns(".git"))
        (Path(name) / "text.txt").write_text(text, encoding="utf-8")
        log = Path(name) / "log.txt"

        def data() -> int:
            prepare(work / "data" / "shakespeare_char", Path(name) / "text.txt")
            return 0

        if forked(data, log):
            raise RuntimeError(f"nanoGPT's prepare.py failed: {log.read_text(encoding='utf-8')}")
        for trial in (_kills, _resume, _flips, _not_a_number):
            began = time.monotonic()
            fault, trials, losses, remark = trial(work, log)
            yield f"nanoGPT: {fault}", trials, losses, time.monotonic() - began, remark


def _run(work: Path, *flags: str) -> Callable[[], int]:
    """Its train.py, for a forked process."""

    def train() -> int:
        import torch

        torch.set_num_threads(1)
        os.chdir(work)
        sys.path.insert(0, str(work))
        sys.argv = ["train.py", "config/train_shakespeare_char.py", *FLAGS, *flags]
        runpy.run_path("train.py", run_name="__main__")
        return 0

    return train


def _loads(path: Path) -> Callable[[], int]:
    """0: it loads; 1: it does not; 2: it loads and holds NaN."""

    def load() -> int:
        import torch

        try:
            weights = torch.load(path, map_location="cpu", weights_only=False)["model"]
        except Exception:  # whatever its reader raises
            return 1
        return 0 if all(t.isfinite().all() for t in weights.values()) else 2

    return load


def _kills(work: Path, log: Path) -> tuple[str, int, int, str]:
    rng, lost = random.Random(1), 0
    checkpoint = work / "killed" / "ckpt.pt"
    if forked(_run(work, "--out_dir=killed", "--max_iters=1"), log):
        raise RuntimeError(f"nanoGPT failed: {log.read_text(encoding='utf-8')[-2000:]}")
    kept = checkpoint.read_bytes()
    for _ in range(KILLS):
        checkpoint.write_bytes(kept)  # from a good one, each time
        moment = rng.uniform(0.5, 2.0)
        code = forked(_run(work, "--out_dir=killed", "--max_iters=100000"), log, moment)
        assert code == -signal.SIGKILL, code
        lost += forked(_loads(checkpoint), log) != 0
    return "kill -9 at any moment", KILLS, lost, "its only checkpoint does not load any more"


def _resume(work: Path, log: Path) -> tuple[str, int, int, str]:
    forked(_run(work, "--out_dir=whole", "--max_iters=6", "--eval_interval=3"), log)
    forked(_run(work, "--out_dir=half", "--max_iters=3", "--eval_interval=3"), log)
    resumed = ("--out_dir=half", "--max_iters=6", "--eval_interval=3", "--init_from=resume")
    forked(_run(work, *resumed), log)
    digests = work / "digests.txt"

    def compare() -> int:
        import torch

        lines = []
        for name in ("whole", "half"):
            saved = torch.load(work / name / "ckpt.pt", map_location="cpu", weights_only=False)
            weights = b"".join(t.numpy().tobytes() for t in saved["model"].values())
            lines.append(f"{saved['iter_num']} {hashlib.sha256(weights).hexdigest()}")
        digests.write_text("\n".join(lines), encoding="utf-8")
        return 0

    if forked(compare, log):
        raise RuntimeError(f"nanoGPT failed: {log.read_text(encoding='utf-8')[-2000:]}")
    whole, half = digests.read_text(encoding="utf-8").splitlines()
    return "stopped and resumed", 1, int(whole != half), "ends with other weights"


def _flips(work: Path, log: Path) -> tuple[str, int, int, str]:
    path = work / "whole" / "ckpt.pt"
    counted = work / "accepted.txt"

    def flip() -> int:
        rng, content, accepted = random.Random(1), bytearray(path.read_bytes()), 0
        for _ in range(FLIPS):
            position = rng.randrange(8 * len(content))
            content[position // 8] ^= 1 << position % 8
            path.write_bytes(content)
            accepted += _loads(path)() != 1
            content[position // 8] ^= 1 << position % 8
        counted.write_text(str(accepted), encoding="utf-8")
        return 0

    forked(flip, log, limit_s=600.0)
    accepted = int(counted.read_text(encoding="utf-8"))
    return "a bit of the checkpoint flips", FLIPS, accepted, "it is loaded without a word"


def _not_a_number(work: Path, log: Path) -> tuple[str, int, int, str]:
    forked(_run(work, "--out_dir=nan", "--max_iters=2"), log)
    flags = ("--out_dir=nan", "--max_iters=6", "--learning_rate=1e30", "--warmup_iters=0")
    forked(_run(work, *flags), log)
    lost = forked(_loads(work / "nan" / "ckpt.pt"), log) == 2
    return "the loss becomes NaN", 1, int(lost), "NaN replaces its only checkpoint"
