"""Room: `myllm runs` and what else is done with the folders of runs: a table, one of them in full,
several side by side, their curves. No torch: these answer at once."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from myllm.cli.named import SomeRuns, named_runs
from myllm.cli.parse import Common
from myllm.cli.table import Column, fitted, screen_width
from myllm.cli.verb import Verb, generate_command, run_flags, runs_dir_flag
from myllm.config import positional
from myllm.errors import ConfigError, InputError
from myllm.system.shell import quoted
from myllm.system.units import format_duration, short_bytes, short_count, short_time

if TYPE_CHECKING:
    from myllm.cli.chart import Curve
    from myllm.runs.folder import RunFolder
    from myllm.runs.summary import Summary

TABLE = (
    Column("run", least=16),
    Column("text", rank=5, least=12),
    Column("parameters", rank=6, is_number=True),
    Column("steps", rank=1, is_number=True),
    Column("best loss", rank=4, is_number=True),
    Column("bits/byte", rank=2, is_number=True),
    Column("size", rank=7, is_number=True),
    Column("saved", rank=3, is_number=True),
)
INDENT = 13  # columns before what `runs show` tells
NONE = "-"  # in a cell: nothing is known


# ------------------------------------------------------------------------------ all of them


@dataclass(frozen=True)
class RunsOptions(Common):
    """List the runs, the newest last; `runs show`, `runs compare`, `runs plot`, `runs delete` and
    `runs prune` do more with them."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "myllm runs show novel",
        "myllm runs compare novel novel-2",
        "myllm runs plot novel novel-2",
        "myllm runs delete novel-2",
        "myllm runs prune",
    )


def list_runs(options: RunsOptions) -> None:
    """Prints a line for each run."""
    from myllm.runs.folder import all_runs
    from myllm.runs.summary import summary_of
    from myllm.system.terminal import say

    found = [summary_of(run) for run in all_runs(Path(options.runs_dir))]
    if not found:
        say(f"there is no run in {options.runs_dir} yet: make one with myllm train FILE")
        return
    found.sort(key=lambda summary: (summary.saved_s, summary.name))
    say(*fitted(TABLE, [_row(summary) for summary in found], screen_width()))
    where = runs_dir_flag(options.runs_dir)
    for summary in found:
        if summary.damage:
            say(f"{summary.name} is damaged: myllm verify {quoted(summary.name)}{where}")
    usable = [summary.name for summary in found if summary.facts]
    if usable:
        total = short_bytes(sum(summary.n_bytes for summary in found))
        say(f"{total} in {options.runs_dir}; without --run, the newest is used: {usable[-1]}")


def _row(s: Summary) -> list[str]:
    steps = NONE if s.max_steps is None else f"{s.step:,}/{s.max_steps:,}"
    return [
        f"{s.name} (damaged)" if s.damage else s.name,
        s.text or ("imported" if s.facts.get("imported_from") else NONE),
        NONE if s.n_parameters is None else short_count(s.n_parameters),
        NONE if s.text is None and not s.step else steps,
        _decimal(s.val_loss, 4),
        _decimal(s.bits_per_byte, 3),
        short_bytes(s.n_bytes),
        f"{short_time(time.time() - s.saved_s)} ago",
    ]


def _decimal(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


# ------------------------------------------------------------------------------ one, or some


@dataclass(frozen=True)
class ShowOptions(Common):
    """Show all that is known of a run: text, model, training, figures, checkpoints."""

    run: str | None = positional(None)  # the run's name or folder (None: the newest)


def show(options: ShowOptions) -> None:
    """Prints a run in full, and commands to try with it."""
    from myllm.runs.folder import find_run
    from myllm.runs.summary import summary_of
    from myllm.runs.taught import a_beginning
    from myllm.system.terminal import say

    run = find_run(Path(options.runs_dir), options.run)
    summary = summary_of(run)
    say(f"{run.name}, in {run.path}: {short_bytes(summary.n_bytes)}")
    if summary.damage:
        told = f"{summary.damage}; myllm verify {quoted(str(run.path))} says more"
        say(f"damaged      {told}", indent=INDENT)
    if summary.max_steps is not None:
        say(*_described(run, summary), indent=INDENT)
    say(*_checkpoints(run, summary))
    if summary.facts:
        flags, name = run_flags(run.name, options.runs_dir), quoted(run.name)
        where = runs_dir_flag(options.runs_dir)
        say(
            "try",
            f"  {generate_command(a_beginning(run), flags)}",
            f"  myllm evaluate {'' if summary.text else 'TEXT '}{flags}",
            f"  myllm export {name}{where} --to gguf",
            f"  myllm train FILE --from {name}{where}",
        )


def _described(run: RunFolder, s: Summary) -> list[str]:
    config, facts = run.config, s.facts
    model, train = config.model, config.train
    paths = ", ".join(config.text.paths) or f"none, imported from {facts.get('imported_from')}"
    counts = ((noun, facts.get(f"n_{noun}s")) for noun in ("character", "document"))
    known = [_counted(n, noun) for noun, n in counts if type(n) is int]
    per_step = train.batch_size * train.accumulation_steps
    parameters = f"{s.n_parameters:,} parameters: " if s.n_parameters else ""
    layers, heads = _counted(model.n_layers, "layer"), _counted(model.n_heads, "head")
    lines = [
        f"text         {paths}" + (f" ({', '.join(known)})" if known else ""),
        f"model        {parameters}{layers}, {model.d_model} wide, {heads}, context "
        f"{model.context_length}, vocabulary {model.vocab_size:,} (preset {config.preset})",
        f"training     {s.step:,} of {train.max_steps:,} steps, each of {per_step:,} sequences of "
        f"{train.sequence_length or model.context_length:,} tokens",
        f"recipe       {train.optimizer}, learning rate {train.learning_rate:g}, schedule "
        f"{train.schedule}, seed {train.seed}",
    ]
    if config.from_run:
        lines.append(f"begun with   the model of {config.from_run}")
    if s.val_loss is not None:
        bits = "" if s.bits_per_byte is None else f", {s.bits_per_byte:.4f} bits per byte"
        lines.append(
            f"best         validation loss {s.val_loss:.4f} nats per token{bits}, at step "
            f"{s.best_step:,}"
        )
    if (said := _verdict(run, s)) is not None:
        lines.append(f"verdict      {said}")
    if s.elapsed_s is not None:
        lines.append(
            f"took         {format_duration(s.elapsed_s)} on {facts.get('device', 'cpu')}"
        )
    return lines


def _verdict(run: RunFolder, s: Summary) -> str | None:
    """What its losses say, where its checkpoints tell of its text; of a run that has not done all
    its steps only that it has learned the text by heart, as it may go on."""
    from myllm.runs.verdict import Facts, points_of, verdict

    train = run.config.train
    n_train, n_val = s.facts.get("n_train_tokens"), s.facts.get("n_val_tokens")
    if type(n_train) is not int or type(n_val) is not int:
        return None
    length = train.sequence_length or run.config.model.context_length
    facts = Facts(
        n_train,
        n_val,
        tokens_per_step=length * train.batch_size * train.accumulation_steps,
        max_steps=train.max_steps,
        unigram_loss=s.facts.get("unigram_loss", math.inf),
    )
    found = verdict(points_of(run.metrics()), facts)
    return found.sentence if s.is_finished or found.kind == "overfitted" else None


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _checkpoints(run: RunFolder, summary: Summary) -> list[str]:
    from myllm.runs.checkpoint import OPTIMIZER
    from myllm.runs.summary import size_of

    steps = run.checkpoints.steps()
    if not steps:
        return ["checkpoints  none yet: it ended before the first one"]
    lines = []
    for step in steps:
        folder = run.checkpoints.folder(step)
        marks = ["best"] if step == run.checkpoints.best_step() else []
        marks += ["last"] if step == steps[-1] else []
        marks += [] if (folder / OPTIMIZER).exists() else ["cannot be resumed"]
        title = "checkpoints" if step == steps[0] else ""
        mark = f"  {', '.join(marks)}" if marks else ""
        lines.append(f"{title:11}  step {step:,}  {short_bytes(size_of(folder))}{mark}")
    return lines


@dataclass(frozen=True)
class CompareOptions(SomeRuns):
    """Show runs side by side: the settings that differ, their figures, and whether these
    compare."""


def compare(options: CompareOptions) -> None:
    """Prints a table with a column for each run."""
    from myllm.runs.compare import differing_settings, what_compares
    from myllm.runs.summary import summary_of
    from myllm.system.terminal import say

    runs = named_runs(options, "runs compare RUN RUN")
    if len(runs) < 2:
        raise ConfigError(f"{runs[0].name} alone compares with nothing: name another run, too")
    configs, summaries = [run.config for run in runs], [summary_of(run) for run in runs]
    rows = [[name, *map(_value, row)] for name, row in differing_settings(configs).items()]
    figures = {
        "text": [s.text or NONE for s in summaries],
        "parameters": [f"{s.n_parameters:,}" if s.n_parameters else NONE for s in summaries],
        "steps done": [f"{s.step:,}" for s in summaries],
        "best loss": [_decimal(s.val_loss, 4) for s in summaries],
        "bits per byte": [_decimal(s.bits_per_byte, 4) for s in summaries],
        "time": [NONE if s.elapsed_s is None else format_duration(s.elapsed_s) for s in summaries],
    }
    rows += [[name, *row] for name, row in figures.items()]
    columns = [Column(""), *(Column(run.name, least=12, is_number=True) for run in runs)]
    say(*fitted(columns, rows, screen_width()), what_compares(summaries, configs))


def _value(value: object) -> str:
    return NONE if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class PlotOptions(SomeRuns):
    """Draw the curves of the loss: of one run those of training and validation, of several the
    validation in bits per byte."""

    out: str | None = None  # an image to make, of the name *.svg (None: the terminal)


def plot(options: PlotOptions) -> None:
    """Prints a chart, or writes it."""
    from myllm.cli.chart import svg_chart, text_chart
    from myllm.runs.folder import find_run
    from myllm.system.atomic import write_errors, write_file
    from myllm.system.terminal import say

    if options.out is not None and Path(options.out).suffix.lower() != ".svg":
        raise ConfigError(f"--out {options.out}: the image is SVG, its name must end in .svg")
    newest = [find_run(Path(options.runs_dir))] if not options.runs else []
    runs = newest or named_runs(options, "runs plot RUN")
    names = {"train_loss": "training", "val_loss": "validation"}
    y_name = f"loss of {runs[0].name}, nats per token"
    if len(runs) == 1:
        curves = [_curve(runs[0], field, name) for field, name in names.items()]
    else:
        y_name = "validation, bits per byte"
        curves = [_curve(run, "val_bits_per_byte", run.name) for run in runs]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        raise InputError(f"{runs[0].name} has not been evaluated yet: there is nothing to draw")
    if options.out is None:
        say(*text_chart(curves, min(screen_width(), 80), "steps", y_name))
        return
    path = Path(options.out)
    with write_errors("write the chart", path.parent, 1 << 16):
        write_file(path, svg_chart(curves, "steps", y_name))
    say(f"{path}: written")


def _curve(run: RunFolder, field: str, name: str) -> Curve:
    from myllm.cli.chart import Curve
    from myllm.runs.summary import number_of

    values = ((record["step"], number_of(record, field)) for record in run.metrics())
    return Curve(name, [(step, value) for step, value in values if value is not None])


VERBS = {
    "runs": Verb(RunsOptions, list_runs),
    "runs show": Verb(ShowOptions, show),
    "runs compare": Verb(CompareOptions, compare),
    "runs plot": Verb(PlotOptions, plot),
}
