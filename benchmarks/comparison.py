"""What the comparing benchmarks share: children that are timed, tables, JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
# the flags that nanoGPT's README gives for a CPU
NANOGPT_CPU = (
    "--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 "
    "--lr_decay_iters=2000 --dropout=0.0"
).split()


@dataclass(frozen=True)
class Result:
    """What one run of one side gave."""

    seconds: float
    loss: float
    steps: int


Side = Callable[[int], Result]
"""Runs one side with a seed."""


def arguments(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The arguments that all comparisons have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path, help="a text file: tiny Shakespeare, to compare")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT to compare with")
    parser.add_argument("--rounds", type=int, default=rounds, help="runs of each side")
    parser.add_argument("--json", type=Path, help="the file to write the results to")
    return parser


def myllm_run(text: Path, flags: Sequence[str]) -> Side:
    """`myllm train`, from a cold start: nothing prepared, nothing compiled."""

    def run(seed: int) -> Result:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "myllm", "train", str(text), "--tokenizer", "char"]
            command += ["--val-split", "end", "--seed", str(seed), "--run", "it", *flags]
            command += ["--runs-dir", folder, "--data-dir", f"{folder}/data"]
            seconds = _timed(command, {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled"})[0]
            lines = (Path(folder) / "it" / "metrics.jsonl").read_text(encoding="utf-8")
            last = json.loads(lines.splitlines()[-1])
            return Result(seconds, last["val_loss"], last["step"])

    return run


def nanogpt_run(checkout: Path, text: Path, flags: Sequence[str]) -> Side:
    """nanoGPT's train.py, its text prepared beforehand; its seed is fixed in its source."""
    work = tempfile.TemporaryDirectory()

    def run(seed: int) -> Result:
        command = [sys.executable, str(HERE / "nanogpt.py"), str(checkout), str(text), work.name]
        cache = tempfile.TemporaryDirectory()
        _, output = _timed([*command, *flags], {"TORCHINDUCTOR_CACHE_DIR": cache.name})
        return Result(**json.loads(output.splitlines()[-1]))

    return run


def _timed(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    start = time.perf_counter()
    output, _ = output_of(command, environment)
    return time.perf_counter() - start, output


def output_of(
    command: Sequence[str], environment: Mapping[str, str] = {}, cwd: Path | None = None
) -> tuple[str, str]:
    """What a program prints, and what it reports; ends with the latter where it fails."""
    environment = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout, done.stderr


def alternate(sides: dict[str, Side], rounds: int) -> dict[str, list[Result]]:
    """Runs the sides in turn, round after round, and tells of each run."""
    results: dict[str, list[Result]] = {name: [] for name in sides}
    for seed in range(1, rounds + 1):
        for name, run in sides.items():
            result = run(seed)
            results[name].append(result)
            loss = f", loss {result.loss:.4f}" if result.loss else ""
            print(
                f"round {seed}, {name}: {result.seconds:.3g} s{loss}", file=sys.stderr, flush=True
            )
    return results


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median, with the least and the greatest where there are several."""
    middle = f"{statistics.median(values):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def report(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table, and below it what it was measured on."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    console = Console(width=max(100, Console().width))
    console.print(table)
    console.print(f"{date.today()}, {machine()}", highlight=False)


def machine() -> str:
    """The machine and the versions, in words."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((x.split(": ")[1] for x in lines if x.startswith("model name")), cpu)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    return f"{device}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


def write_json(path: Path | None, results: dict[str, list[Result]]) -> None:
    """Writes all runs, with the machine."""
    if path is not None:
        runs = {name: [asdict(result) for result in found] for name, found in results.items()}
        document = {"date": str(date.today()), "machine": machine(), "results": runs}
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
