"""Whether what a run says of itself is true: verdicts on texts of 2 kB to 100 MB, false alarms.

python benchmarks/verdicts.py --texts novel.txt notes.md

Small models are really trained: one each on 2 kB, 20 kB, 200 kB, 2 MB and 100 MB of the source
code that lies beside this interpreter, and `--healthy` more, in turn on each of `--texts` (without
any, on that code and the Python manual), of other shapes, tokenizers, lengths and seeds. The same
source gives each of them a text that neither the run nor its verdict has seen. What is said is
true if

- learned by heart: the last model is worse on the unseen text than the best one;
- stopped early: going on to the end does not make the loss more than one percent better;
- still improving: as many steps again make it better; hardly anything learned: they make it much
  better;
- levelled off: they make it better by three percent at most;
- too little text: the loss on the unseen text is another one by three percent or more.

A healthy run is one whose last model is not worse on the unseen text. For it, anything but still
improving or levelled off is a false alarm: being told that it learns by heart, stopping early, or
any other warning while it trains, while its unseen text is evaluated, and when it is resumed.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import random
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import myllm
from myllm.data.corpora import python_docs
from myllm.runs.verdict import Facts, points_of, warning

if TYPE_CHECKING:
    from myllm.run import Run

SIZES = {"2 kB": 2_000, "20 kB": 20_000, "200 kB": 200_000, "2 MB": 2 * 10**6, "100 MB": 10**8}
SMALL: dict[str, Any] = {
    "d_model": 32,
    "n_layers": 1,
    "n_heads": 2,
    "context_length": 32,
    "batch_size": 8,
    "threads": 1,
}
FIXED: dict[str, Any] = {"quiet": True, "compile": False, "device": "cpu", "dtype": "float32"}
SHAPES: tuple[dict[str, Any], ...] = (  # of healthy runs: small for their text
    {"d_model": 32, "n_layers": 1, "max_steps": 300},
    {"d_model": 48, "n_layers": 2, "max_steps": 300, "preset": "gpt2", "learning_rate": 2e-3},
    {"d_model": 32, "n_layers": 2, "max_steps": 300, "tokenizer": "char", "dropout": 0.1},
    {"d_model": 64, "n_layers": 1, "max_steps": 200, "context_length": 64, "batch_size": 8},
    {"d_model": 32, "n_layers": 1, "max_steps": 400, "tokenizer": "char", "eval_interval": 20},
)
GOOD = ("still improving", "levelled off")
SCHEDULE = ("max_steps changes", "patience changes", "from step")  # what was asked for is no alarm
MOST_BYTES = 100_000  # of a text of a healthy run
UNSEEN = (20_000, 200_000)  # bytes of text that nothing has seen: at least, at most


@dataclass(frozen=True)
class Case:
    """A text, its unseen rest, and how it is trained on."""

    name: str
    text: bytes
    unseen: bytes
    settings: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What a run said, and what was measured."""

    case: Case
    kind: str
    steps: str
    losses: tuple[float, float]
    unseen: tuple[float, float]
    longer: float
    truth: str
    is_true: bool
    alarms: list[str]


def main() -> None:
    """Reads the arguments, runs the cases, prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="of healthy runs")
    parser.add_argument("--healthy", type=int, default=20, help="so many healthy runs")
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), help="of texts, as above")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        by_size = [judged(case) for case in cases_of_sizes(options.sizes)]
        healthy = [judged(case) for case in healthy_cases(options.texts, options.healthy)]
    from comparison import report  # PyTorch with it, which `myllm.train` prepares for

    columns = ("text", "steps", "train", "validation", "unseen: best, last", "longer", "verdict",
               "true", "by")  # fmt: skip
    report("verdicts by size", columns, [_row(found) for found in by_size])
    if healthy:
        rows = [(*_row(found), "; ".join(found.alarms) or "none") for found in healthy]
        report("healthy runs", (*columns, "alarms"), rows)
        n_ill = sum(found.unseen[1] > 1.01 * found.unseen[0] for found in healthy)
        n_alarmed = sum(bool(found.alarms) for found in healthy)
        print(f"{len(healthy)} runs, {n_ill} not healthy, {n_alarmed} with an alarm")
    sys.exit(not all(found.is_true for found in (*by_size, *healthy)))


def _row(found: Found) -> tuple[str, ...]:
    return (
        found.case.name, found.steps, *(f"{loss:.3f}" for loss in found.losses),
        "{:.3f}, {:.3f}".format(*found.unseen), f"{found.longer:.3f}", found.kind,
        "yes" if found.is_true else "NO", found.truth,
    )  # fmt: skip


# ------------------------------------------------------------------------------ cases


def cases_of_sizes(names: list[str]) -> Iterator[Case]:
    """The texts of source code of all sizes; the largest has the fewest steps for its length."""
    for name in names:
        size = SIZES[name]
        text, unseen = divided(source_code(size + UNSEEN[1]), size)
        yield Case(name, text, unseen, {**SMALL, "max_steps": 400})


def healthy_cases(texts: list[Path], n: int) -> Iterator[Case]:
    """Runs on each text in turn, each another way."""
    sources = {path.name: path.read_bytes() for path in texts}
    if not sources:
        sources["manual"] = python_docs(Path("data")).read_bytes()
        sources["code"] = source_code(2 * 10**6)
    for i, (name, source) in zip(range(n), itertools.cycle(sources.items())):
        size = min(MOST_BYTES, len(source) * 4 // 5)
        at = random.Random(i).randrange(len(source) - size - len(source) // 10)
        text, unseen = divided(source[at:], size)
        settings = {**SMALL, **SHAPES[i % len(SHAPES)], "seed": i + 1}
        yield Case(f"{name} ({len(text) / 1000:,.0f} kB, seed {i + 1})", text, unseen, settings)


def source_code(n_bytes: int) -> bytes:
    """Python files of this interpreter and its packages, in an order that is drawn once."""
    paths = sorted({*Path(sysconfig.get_path("stdlib")).rglob("*.py"),
                    *Path(sysconfig.get_path("purelib")).rglob("*.py")})  # fmt: skip
    random.Random(1).shuffle(paths)
    found, left = [], n_bytes
    for path in paths:
        content = path.read_bytes()
        try:
            content.decode("utf-8")
        except UnicodeDecodeError:
            continue
        found.append(content)
        left -= len(content)
        if left <= 0:
            break
    return b"\n".join(found)


def divided(source: bytes, size: int) -> tuple[bytes, bytes]:
    """A text of about that size, and what comes behind it; whole lines."""
    source = source[source.find(b"\n") + 1 :]
    end = source.rfind(b"\n", 0, size) + 1 or size
    least, most = UNSEEN
    unseen = source[end : end + min(most, max(least, size // 5))]
    return source[:end], unseen[: unseen.rfind(b"\n") + 1]


# ------------------------------------------------------------------------------ truth


def judged(case: Case) -> Found:
    """Trains, and measures whether what is said is true."""
    name = case.name.replace(" ", "-").replace(",", "").replace("(", "").replace(")", "")
    text, unseen = Path(f"{name}.txt"), Path(f"{name}.unseen.txt")
    text.write_bytes(case.text)
    unseen.write_bytes(case.unseen)
    with warnings_of() as alarms:
        run = myllm.train(text, run=name, **FIXED, **case.settings)
        best = run.evaluate(unseen).loss
        last = myllm.load(name, checkpoint="last").evaluate(unseen).loss
    assert run.state is not None and run.outcome is not None
    kind, points, facts = run.outcome.verdict.kind, points_of(run.metrics()), facts_of(run)
    said = (warning(points[:n], facts) for n in range(1, len(points) + 1))
    alarms += [next(filter(None, said), "")]
    max_steps, done = run.config.train.max_steps, run.state.step
    if is_early := done < max_steps:
        alarms.append(f"stopped early, at step {done}")
    with warnings_of() as of_longer:
        steps = max_steps if is_early else run.outcome.verdict.more_steps or 2 * max_steps
        longer = myllm.train(resume=name, max_steps=steps, patience=0, quiet=True)
    alarms += of_longer
    if kind not in GOOD:
        alarms.append(kind)
    assert longer.state is not None
    own, gone_on = run.state.best_loss, longer.state.best_loss
    truth, is_true = measured(kind, is_early, last / best - 1, 1 - gone_on / own, best / own - 1)
    print(f"{case.name}: {kind}, {truth}: {is_true}", file=sys.stderr, flush=True)
    losses = points[-1].train_loss, own
    seen = facts.times_seen(done)
    steps_told = f"{done}/{max_steps} ({seen:.2g} times the text)"
    alarms = list(filter(None, alarms))
    return Found(case, kind, steps_told, losses, (best, last), gone_on, truth,
                 is_true, alarms)  # fmt: skip


def measured(
    kind: str, is_early: bool, worse: float, gain: float, away: float
) -> tuple[str, bool]:
    """What says whether a verdict is true, and whether it does.

    Args:
        kind: of the verdict.
        is_early: whether the run stopped by itself.
        worse: the last model than the best one on the unseen text, as a share of its loss.
        gain: of more steps, as a share of the loss.
        away: the loss on the unseen text from the validation loss, likewise.
    """
    gained = f"{gain:+.1%} by more steps"
    if is_early and gain > 0.01:
        return f"stopped early, {gained}", False
    if kind == "overfitted":
        return f"last {worse:+.1%} on unseen text", worse > 0
    if kind == "still improving":
        return gained, gain > 0.0
    if kind == "learned nothing":
        return gained, gain > 0.03
    if kind == "levelled off":
        return gained, gain <= 0.03
    return f"{away:+.1%} on unseen text", kind == "too little text" and abs(away) >= 0.03


@contextmanager
def warnings_of() -> Iterator[list[str]]:
    """The warnings that are logged within the block, but those of what was asked for."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("myllm")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        found[:] = [text for text in found if not text.startswith(SCHEDULE)]


def facts_of(run: Run) -> Facts:
    """What a verdict on a run depends on besides its losses."""
    told, train = run.folder.checkpoints.metadata(), run.config.train
    n_sequences = train.batch_size * train.accumulation_steps
    return Facts(
        told["n_train_tokens"], told["n_val_tokens"],
        n_sequences * run.config.model.context_length, train.max_steps, told["unigram_loss"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
