"""Room: `myllm train`: its options → a trained run, its result and what to do next told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from myllm.cli.parse import alone, given
from myllm.cli.verb import Verb, began, generate_command, run_flags
from myllm.config import RunConfig, flat_values
from myllm.errors import ConfigError
from myllm.system.importing import quick_imports

if TYPE_CHECKING:
    from myllm.presets import Resolved
    from myllm.run import Run


@dataclass(frozen=True)
class TrainOptions:
    """Train a model on texts: files, folders, - for standard input; without any, on the Python
    manual."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "myllm train novel.txt",
        "myllm train novel.txt notes/ --minutes 10 --run mine",
        "myllm train --resume mine --max-steps 2000",
    )

    settings: dict[str, Any] = given(RunConfig)
    run: str | None = None  # the run's name (None: after the text)
    resume: str | None = alone(True)  # continue a run (alone: the newest; auto: this command's)
    config: str | None = None  # a TOML file of settings; a flag wins over it
    runs_dir: str = "checkpoints"  # the folder of runs
    quiet: bool = False  # print the result only
    show_settings: bool = False  # print each setting and where it came from, and do not train
    debug: bool = False  # show the traceback of an error


def train(options: TrainOptions) -> None:
    """Trains, tells the result and what to do next."""
    with quick_imports():
        from myllm import api
    from myllm.system.terminal import say
    from myllm.train.request import resumed_name

    options = replace(options, resume=resumed_name(options.resume, Path(options.runs_dir)))
    settings = dict(options.settings)
    texts = settings.pop("paths", ())
    asked: dict[str, Any] = dict(
        run=options.run, resume=options.resume, runs_dir=options.runs_dir, config=options.config,
        began=began(), **settings,
    )  # fmt: skip
    if options.show_settings:
        if options.quiet:
            raise ConfigError("--show-settings prints, --quiet does not: give one of them")
        say(*setting_lines(api.settings(*texts, **asked), options))
        return
    run = api.train(*texts, quiet=options.quiet, **asked)
    say(*result_lines(run, options.runs_dir))


def result_lines(run: Run, runs_dir: str) -> list[str]:
    """What came out of training, what it is worth, and commands to try."""
    assert run.state is not None and run.outcome is not None
    flags, outcome = run_flags(run.name, runs_dir), run.outcome
    lines = [
        f"best validation loss {run.state.best_loss:.4f} nats per token, "
        f"{run.state.best_bits_per_byte:.4f} bits per byte, at step {run.state.best_step}",
        f"to compare: the compressor xz takes {outcome.xz_bits_per_byte:.4f} bits per byte for "
        "the same text",
        outcome.verdict.sentence,
        f"the model is in {run.path}; try",
        f"  {generate_command(outcome.beginning, flags)}",
        f"  myllm write {flags}",
    ]
    if (more := outcome.verdict.more_steps) is not None:
        lines.append(f"  myllm train --resume {run.folder.resume_name} --max-steps {more}")
    return lines


def setting_lines(resolved: Resolved, options: TrainOptions) -> list[str]:
    """A line per setting: its name, its value, where that came from."""
    config = resolved.config
    labels = {
        "preset": f"preset {config.preset}",
        "size": f"size {config.size}",
        "run": f"run {options.resume or config.from_run}",
        "file": f"file {Path(options.config or '').name}",
        "flags": "flag",
    }
    rows = [
        (name, str(value), labels.get(resolved.sources[name], resolved.sources[name]))
        for name, value in flat_values(config).items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return [f"{name:{widths[0]}}  {value:{widths[1]}}  {where}" for name, value, where in rows]


VERB = Verb(TrainOptions, train)
