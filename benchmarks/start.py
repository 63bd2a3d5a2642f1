"""How long it takes from the shell to the first character, and which imports take that time.

python benchmarks/start.py
python benchmarks/start.py --runs-dir checkpoints --rounds 9

Each command runs in a process of its own and writes into a pipe; in turn, after a round that is
not counted, so all files are in the system's memory. `import torch` is what no command that
computes can be faster than. The tables of imports are one further run each, with Python's
`-X importtime`, which itself takes time: trust its shares. Without --runs-dir a model of the
default shape is trained for three steps.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from comparison import output_of, report, spread

FLOOR = "import torch"
MYLLM = (sys.executable, "-m", "myllm")
LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")  # its own microseconds, its name

Imports = dict[str, tuple[int, float]]
"""For each package: how many of its modules were imported, and the seconds that this took."""


def main() -> None:
    """Measures, prints both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs-dir", type=Path, help="whose newest run is to write")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs_dir = options.runs_dir or _trained(Path(folder))
        commands = _commands(runs_dir)
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for i in range(options.rounds + 1):
            for name, command in commands.items():
                seconds = answer(command)
                if i:
                    measured[name].append(seconds)
        imports = {name: imports_of(command) for name, command in commands.items()}
    rows = []
    for name, found in measured.items():
        firsts, ends = [first for first, _ in found], [end for _, end in found]
        rows.append((name, spread(firsts, 2), spread(ends, 2), *_sums(imports[name])))
    columns = ("", "first character, s", "end, s", "modules", "of them torch's")
    report("from the shell", columns, rows)
    largest = sorted(imports["myllm generate"].items(), key=lambda item: -item[1][1])[:8]
    total = sum(seconds for _, seconds in imports["myllm generate"].values())
    report(
        "what myllm generate imports",
        ("package", "modules", "ms, traced", "share of all imports"),
        [(p, str(n), f"{1e3 * s:.0f}", f"{s / total:.1%}") for p, (n, s) in largest],
    )


def _trained(folder: Path) -> Path:
    command = [*MYLLM, "train", "--max-steps", "3", "--quiet", "--data-dir", str(folder / "data")]
    output_of([*command, "--runs-dir", str(folder / "runs")])
    return folder / "runs"


def _commands(runs_dir: Path) -> dict[str, Sequence[str]]:
    where = ("--runs-dir", str(runs_dir))
    return {
        FLOOR: (sys.executable, "-c", "import torch; print(torch.__version__)"),
        "myllm --help": (*MYLLM, "--help"),
        "myllm runs": (*MYLLM, "runs", *where),
        "myllm generate": (*MYLLM, "generate", *where, "--max-new-tokens", "20"),
    }


def _environment() -> dict[str, str]:
    """As a user's: with it set, Python would translate our files anew in every run."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def answer(command: Sequence[str]) -> tuple[float, float]:
    """Seconds until a command's first character, and until its end."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - start
        process.stdout.read()
    if not first or process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return seconds, time.perf_counter() - start


def imports_of(command: Sequence[str]) -> Imports:
    """What a Python command imports, by package."""
    traced = [command[0], "-X", "importtime", *command[1:]]
    done = subprocess.run(traced, capture_output=True, text=True, env=_environment())
    return by_package(done.stderr)


def by_package(trace: str) -> Imports:
    """What Python's `-X importtime` wrote, summed up.

    >>> by_package("import time:   2000 |   5000 |   a.b\\nimport time:   3000 |   9000 | a")
    {'a': (2, 0.005)}
    """
    n_modules: collections.Counter[str] = collections.Counter()
    microseconds: collections.Counter[str] = collections.Counter()
    for own, name in LINE.findall(trace):
        package = name.partition(".")[0]
        package = "Python's own" if package in sys.stdlib_module_names else package
        n_modules[package] += 1
        microseconds[package] += int(own)
    return {package: (n, microseconds[package] / 1e6) for package, n in n_modules.items()}


def _sums(imports: Imports) -> tuple[str, str]:
    return str(sum(n for n, _ in imports.values())), str(imports.get("torch", (0, 0.0))[0])


if __name__ == "__main__":
    main()
