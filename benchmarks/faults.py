"""Faults made on purpose, in thousands: what is lost?

python benchmarks/faults.py TEXT                      # 1,000 kills and all the rest, some minutes
python benchmarks/faults.py TEXT --nanogpt PATH       # … and what nanoGPT loses by the same
python benchmarks/faults.py TEXT --only kills --kills 25

A loss is: a process that does not start again, a run that goes back behind a step that was saved,
a run whose weights, optimizer state or metrics differ in one bit from those of a run that was
never killed, a crash after which neither the old nor the new checkpoint loads, damage that is not
found. The exit code is 1 if anything was lost. POSIX only. docs/reliability.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from crashes import KillTrial, PowerLoss, forked, train
from damage import flips, missing_and_foreign, truncations
from rich.console import Console
from rich.table import Table

from myllm.runs.checkpoint import MANIFEST
from myllm.runs.folder import RunFolder

EXCERPT = 20_000  # characters of the text: many short steps and saves, not a good model


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    fault: str
    trials: int
    losses: int
    seconds: float
    remark: str = ""


def main() -> None:
    """Reads the arguments, makes the faults, prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path, help="a text file to train on")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1, help="of the moments to kill at")
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT to do the same to")
    parser.add_argument("--only", choices=FAULTS, action="append", help="only these")
    parser.add_argument("--json", type=Path, help="the file to write the results to")
    options = parser.parse_args()
    excerpt = options.text.read_text(encoding="utf-8")[:EXCERPT]
    results: list[Result] = []
    for name in options.only or FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder) / "text.txt"
            text.write_text(excerpt, encoding="utf-8")
            results += FAULTS[name](options, text, Path(folder))
    if options.nanogpt:
        from nanogpt_faults import nanogpt_faults

        results += [Result(*line) for line in nanogpt_faults(options.nanogpt.resolve(), excerpt)]
    table = Table("fault", "trials", "losses", "s", "")
    for r in results:
        table.add_row(r.fault, f"{r.trials:,}", f"{r.losses:,}", f"{r.seconds:.0f}", r.remark)
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    ours = [r for r in results if not r.fault.startswith("nanoGPT")]
    print(f"{sum(r.trials for r in ours):,} faults, {sum(r.losses for r in ours)} losses")
    if options.json:
        content = json.dumps([asdict(r) for r in results], indent=1)
        options.json.write_text(content, encoding="utf-8")
    if any(r.losses for r in ours):
        raise SystemExit(1)


def kills(options: argparse.Namespace, text: Path, folder: Path) -> list[Result]:
    """kill -9, at the failpoints of a save and at any moment."""
    began = time.monotonic()
    trial = KillTrial(folder, text, max_steps=max(30, 8 * options.kills), seed=options.seed)
    trial.until(options.kills)
    for loss in trial.losses:
        print(f"loss: {loss}")
    print(f"{sum(trial.kills.values())} kills, {len(trial.losses)} losses")
    remark = f"{trial.finished} run(s) ended, all with the same SHA-256"
    lines = [
        Result(f"kill -9: {name}", count, 0, 0.0) for name, count in sorted(trial.kills.items())
    ]
    total = sum(trial.kills.values())
    seconds = time.monotonic() - began
    return [*lines, Result("kill -9: all", total, len(trial.losses), seconds, remark)]


def power_loss(options: argparse.Namespace, text: Path, folder: Path) -> list[Result]:
    """The power fails after each operation of a save by a real run."""
    began = time.monotonic()
    log = folder / "log.txt"
    forked(lambda: _recorded_saves(text, folder), log)
    lines = (folder / "states.json").read_text(encoding="utf-8")
    trials, losses = json.loads(lines)
    return [Result("power loss: prefixes of a save", trials, losses, time.monotonic() - began)]


def _recorded_saves(text: Path, folder: Path) -> int:
    """Trains three saves, saves the last once more with the changes recorded, replays them."""
    train(_short_run(text, folder, "run"))
    run = RunFolder(folder / "run")
    newest = run.checkpoints.load()
    shutil.rmtree(run.checkpoints.folder(newest.step))
    power = PowerLoss(run.path)
    with power.recording():
        RunFolder(run.path).checkpoints.save(newest, is_best=True, keep=2)
    trials = losses = 0
    for _, _, files in power.states():
        state = folder / f"state-{trials}"
        for name, content in files.items():
            (state / name).parent.mkdir(parents=True, exist_ok=True)
            (state / name).write_bytes(content)
        trials += 1
        good = RunFolder(state).checkpoints.newest_good()
        losses += good not in (run.checkpoints.steps()[-2], newest.step)
    (folder / "states.json").write_text(json.dumps([trials, losses]), encoding="utf-8")
    return 0


def bit_rot(options: argparse.Namespace, text: Path, folder: Path) -> list[Result]:
    """Bits flip, files are cut short, missing, foreign."""
    forked(lambda: train(_short_run(text, folder, "run")), folder / "log.txt")
    run = RunFolder(folder / "run")
    tokens = next((folder / "data").glob("text-*"))
    places = {"checkpoint": (run.checkpoints.folder(run.checkpoints.steps()[-1]), MANIFEST)}
    places["token file"] = (tokens, "tokens.json")
    results = []
    for what, (place, manifest) in places.items():
        for name, trials in (
            ("a bit flips", flips(place, options.flips, manifest=manifest)),
            ("cut short", truncations(place, 200, manifest=manifest)),
            ("missing, foreign", missing_and_foreign(place, manifest)),
        ):
            began = time.monotonic()
            found = list(trials)
            seconds = time.monotonic() - began
            results.append(Result(f"{what}: {name}", len(found), found.count(False), seconds))
    return results


def disk_full(options: argparse.Namespace, text: Path, folder: Path) -> list[Result]:
    """Writing fails after every so many bytes, by the system's own limit on file sizes."""
    began = time.monotonic()
    forked(lambda: train(_short_run(text, folder, "run")), folder / "log.txt")
    run = folder / "run"
    before = _contents(run)
    largest = max(len(content) for content in before.values())
    trials = losses = 0
    codes: dict[int, int] = {}
    for limit in range(0, largest + 1, max(1, largest // 60)):

        def limited(limit: int = limit) -> int:
            from myllm.system.atomic import write_file  # noqa: F401  # imported before the limit

            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            return train(["--resume", str(run), "--max-steps", "12", "--quiet"])

        # what it prints is limited, too, so it goes nowhere
        code = forked(limited, Path(os.devnull))
        codes[code] = codes.get(code, 0) + 1
        trials += 1
        now = _contents(run)
        kept = all(now.get(name) == content for name, content in before.items())
        losses += code not in (0, 4) or not kept
        if code == 0:
            break
    remark = ", ".join(f"exit {code}: {n} times" for code, n in sorted(codes.items()))
    seconds = time.monotonic() - began
    return [Result("disk full after every 1/60 of a file", trials, losses, seconds, remark)]


def _short_run(text: Path, folder: Path, name: str) -> list[str]:
    from crashes import TINY

    where = [
        "--runs-dir",
        str(folder),
        "--run",
        name,
        "--data-dir",
        str(folder / "data"),
        "--quiet",
    ]
    return [str(text), *TINY, *where, "--max-steps", "9", "--eval-interval", "3"]


def _contents(run: Path) -> dict[str, bytes]:
    """The files of the checkpoints that a run has."""
    return {str(p): p.read_bytes() for p in sorted(run.glob("step-*/*"))}


FAULTS: dict[str, Callable[[argparse.Namespace, Path, Path], list[Result]]] = {
    "kills": kills,
    "power-loss": power_loss,
    "bit-rot": bit_rot,
    "disk-full": disk_full,
}

if __name__ == "__main__":
    main()
