"""How long a run takes beside a busy process, and what that costs where there is none.

python benchmarks/busy.py

A short `myllm train` runs alone and beside a process that keeps one core busy, in turn, with each
way in which threads can wait for each other: `default` is what PyTorch does by itself, `ours` what
`myllm.system.machine` sets. How many threads there are is chosen by each run, as it is by default;
`--threads 1 2` adds runs that are told. The ratios are of the medians.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from comparison import Result, Side, alternate, report, spread, write_json

from myllm.system.machine import WAITING

GOMP_DEFAULT = "300000"  # rounds that GCC's OpenMP turns where nothing is set
WORDS = "the a king queen rides walks to from old new city river and then speaks sings of".split()


def main() -> None:
    """Reads the arguments, runs the sides in turn, prints the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument("--steps", type=int, default=100, help="steps of a run")
    parser.add_argument("--busy", type=int, default=1, help="busy processes")
    parser.add_argument("--spins", nargs="*", default=[], help="other values of GOMP_SPINCOUNT")
    parser.add_argument("--threads", nargs="*", default=[], help="numbers of threads to name")
    parser.add_argument("--json", type=Path, help="the file to write the results to")
    options = parser.parse_args()
    policies = {"default": {"GOMP_SPINCOUNT": GOMP_DEFAULT}, "ours": {}}
    policies |= {f"{n} spins": {"GOMP_SPINCOUNT": n} for n in options.spins}
    policies |= {f"ours, --threads {n}": {} for n in options.threads}
    sides = {
        f"{name}, {'busy' if n_busy else 'alone'}": _side(options.steps, name, policy, n_busy)
        for name, policy in policies.items()
        for n_busy in (0, options.busy)
    }
    results = alternate(sides, options.rounds)
    seconds = {name: [result.seconds for result in found] for name, found in results.items()}
    median = {name: statistics.median(found) for name, found in seconds.items()}
    rows = [
        (
            name,
            spread(seconds[f"{name}, alone"]),
            spread(seconds[f"{name}, busy"]),
            f"{median[f'{name}, busy'] / median[f'{name}, alone']:.2f}",
            f"{median[f'{name}, alone'] / median['default, alone']:.3f}",
        )
        for name in policies
    ]
    columns = ("threads wait", "alone, s", "busy, s", "busy / alone", "alone / default alone")
    report(f"{options.steps} steps, {options.busy} busy processes", columns, rows)
    write_json(options.json, results)


def _side(n_steps: int, name: str, policy: dict[str, str], n_busy: int) -> Side:
    """Runs of the default size with a seed, timed as a whole."""
    flags = name.partition(", ")[2].split()

    def run(seed: int) -> Result:
        with tempfile.TemporaryDirectory() as folder, _kept_busy(n_busy):
            text = Path(folder) / "text.txt"
            text.write_text(_text(), encoding="utf-8")
            command = [sys.executable, "-m", "myllm", "train", str(text), "--size", "cpu"]
            command += ["--max-steps", str(n_steps), "--eval-interval", str(n_steps), "--quiet"]
            command += ["--seed", str(seed), "--kernels", "plain", "--device", "cpu"]
            command += ["--runs-dir", folder, "--data-dir", f"{folder}/data", *flags]
            environment = {n: v for n, v in os.environ.items() if n not in WAITING} | policy
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=environment)
            return Result(time.perf_counter() - start, 0.0, n_steps)

    return run


@contextmanager
def _kept_busy(n_processes: int) -> Iterator[None]:
    """Other programs that never rest."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(n_processes)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _text() -> str:
    """Some 300,000 characters of words."""
    rng = random.Random(1)
    return ".\n".join(" ".join(rng.choices(WORDS, k=9)).capitalize() for _ in range(7000))


if __name__ == "__main__":
    main()
