"""Room: the Python face: what the command line does, as functions that give a `Run`.

    run = train("novel.txt", max_steps=300)
    run.generate("Once upon")

Errors are raised (classes of `errors`), never printed.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from myllm.checks import check_range, check_ranges, check_run_name
from myllm.config import (
    MODEL_LIMITS,
    GPTConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
    with_values,
)
from myllm.data.corpora import download_corpus
from myllm.data.prepare import prepare as prepare_text
from myllm.data.token_file import TokenFile
from myllm.errors import InputError
from myllm.generate.generator import TextGenerator
from myllm.kernels.decode_cpu import begin_to_compile
from myllm.presets import Resolved, resolve
from myllm.run import Run
from myllm.runs.folder import all_runs, find_run
from myllm.runs.verdict import points_of
from myllm.speeds import Duel, Speeds, measure_against, measure_speeds
from myllm.system.progress import watched_by
from myllm.system.shell import quoted
from myllm.system.terminal import PatientStream, printable
from myllm.system.wrapping import wrapped
from myllm.train import session
from myllm.train.observer import Observer, Observers
from myllm.train.outcome import facts_of, outcome_of
from myllm.train.plan import INDENT, plan_lines
from myllm.train.request import Request, resumed_name
from myllm.train.requeue import AUTO, decided, tell_if_finished
from myllm.train.session import Session
from myllm.train.threads import threads_put_back, use_threads

if TYPE_CHECKING:
    from rich.console import Console

StrPath = str | Path
T = TypeVar("T")


# ------------------------------------------------------------------- making runs


def train(
    *texts: StrPath,
    run: str | None = None,
    resume: str | bool | None = None,
    runs_dir: StrPath = "checkpoints",
    config: StrPath | None = None,
    quiet: bool = False,
    observer: Observer | None = None,
    began: float | None = None,
    **settings: Any,
) -> Run:
    """Trains a model on texts; without any, on the Python manual.

    Args:
        texts: files, folders, or - for standard input.
        run: the new run's name; by default it is named after the text.
        resume: the run to continue, by name or path, instead of a new one; True: the newest;
            "auto": the run that this very call began before, if it did.
        runs_dir: the folder of runs.
        config: a TOML file of settings; those of the call go before it.
        quiet: show nothing.
        observer: is told of steps and evaluations.
        began: what `minutes` counts from, by `time.monotonic`; by default now.
        settings: any flag of `myllm train` by its name, such as max_steps, d_model, minutes,
            from_run.

    Returns:
        The run, at its end.

    Raises:
        InputError, ConfigError: a text or a setting that cannot work.
        NonFiniteError, OutOfMemoryError, DiskFullError, Interrupted: see `Trainer.train`.

    >>> tiny = dict(d_model=32, n_heads=2, n_layers=1, context_length=16, batch_size=4)
    >>> run = train("novel.txt", max_steps=4, device="cpu", quiet=True, run="short", **tiny)
    >>> run.state.step
    4
    >>> run = train(resume="short", max_steps=6, quiet=True)
    >>> run.state.step
    6
    >>> train("novel.txt", d_modle=32)
    Traceback (most recent call last):
    myllm.errors.ConfigError: unknown setting 'd_modle': did you mean d_model?
    """
    with threads_put_back():
        request = _request(texts, settings, config, run, resume, runs_dir, began)
        made = session.start(request) if request.resume is None else session.resume(request)
        if resume == AUTO:
            tell_if_finished(made)
        return _run_to_its_end(made, quiet, observer)


def _run_to_its_end(made: Session, quiet: bool, observer: Observer | None) -> Run:
    # here, as only training draws: what writes and measures begins sooner without
    from rich.console import Console

    from myllm.display import TrainingDisplay

    out = cast(IO[str], PatientStream(sys.stdout))
    console = Console(file=out, highlight=False, markup=False, soft_wrap=True)
    trainer = made.trainer
    line = str(trainer.provenance.facts["beginning"])
    if not quiet:
        _show(console, plan_lines(made))
    points = points_of(made.run.metrics())
    interval = trainer.config.evaluation_steps
    shown = TrainingDisplay(
        console, _sampler(made, line), quiet, line, facts_of(made), points, interval
    )
    with shown as display, watched_by(display.watch):
        trainer.observer = display if observer is None else Observers([display, observer])
        state = trainer.train()
    if trainer.profiler.table and not quiet:
        console.print(printable(trainer.profiler.table))
        _show(console, [f"Chrome trace: {trainer.profiler.trace_path}"])
    return Run(made.run, made.trainer.config.device, state, outcome=outcome_of(made))


def settings(
    *texts: StrPath,
    run: str | None = None,
    resume: str | bool | None = None,
    runs_dir: StrPath = "checkpoints",
    config: StrPath | None = None,
    began: float | None = None,
    **settings: Any,
) -> Resolved:
    """The settings that `train` would take, and where each came from; trains nothing.

    >>> settings("novel.txt", size="cpu", seed=3).sources["seed"]
    'flags'
    """
    with threads_put_back():  # a plan chooses them
        return session.settings(_request(texts, settings, config, run, resume, runs_dir, began))


def _request(
    texts: Iterable[StrPath],
    settings: dict[str, Any],
    config: StrPath | None,
    run: str | None,
    resume: str | bool | None,
    runs_dir: StrPath,
    began: float | None,
) -> Request:
    paths = {"paths": tuple(str(text) for text in texts)}
    request = Request(
        flags={**settings, **paths} if paths["paths"] else settings,
        file=None if config is None else str(config),
        run=run,
        resume=resumed_name(resume, Path(runs_dir)),
        runs_dir=Path(runs_dir),
        began=time.monotonic() if began is None else began,
    )
    return decided(request)


def _show(console: Console, lines: Iterable[str]) -> None:
    width = console.width if console.is_terminal else None
    for line in lines:
        console.print(wrapped(printable(line), width, INDENT))


def _sampler(made: Session, beginning: str) -> Callable[[int], str]:
    """Samples of what the model writes after a beginning, during training."""
    trainer = made.trainer
    if trainer.device.type == "cpu":
        begin_to_compile()
    facts = trainer.provenance.facts
    generator = TextGenerator(
        trainer.model,
        made.token_file.tokenizer,
        knows_beginnings=bool(facts["knows_beginnings"]),
        never=facts["unseen_tokens"],
    )

    def write(step: int) -> str:
        sampling = SamplingConfig(max_new_tokens=60, sample_seed=step, ignore_end=True)
        return generator.generate(beginning, sampling)

    return write


def import_model(
    folder: StrPath, run: str | None = None, runs_dir: StrPath = "checkpoints"
) -> Run:
    """Makes a run from a local Hugging Face folder (GPT-2, Llama, Qwen3), to use or train on.

    Args:
        folder: with config.json, safetensors files and tokenizer.json (or vocab.json and
            merges.txt); the folder above that one, or the model's place in the Hub's cache.
        run: the run's name; by default that of the folder.
        runs_dir: the folder of runs.

    Raises:
        InputError: not such a folder, or a model of another layout.

    >>> exported = load("novel").export("hf", "exported", verify=False)
    >>> import_model("exported", run="imported").name
    'imported'
    """
    from myllm.formats.hf_import import import_huggingface

    if run is not None:
        check_run_name(run)
    return Run(import_huggingface(Path(folder), Path(runs_dir), run))


def prepare(
    *texts: StrPath, vocab_size: int = 0, out: StrPath | None = None, **settings: Any
) -> TokenFile:
    """Turns texts into a folder of tokens, to train on it later.

    Args:
        texts: files, folders, or - for standard input.
        vocab_size: tokens in the vocabulary; 0 chooses it from the length of the text.
        out: the folder to make; by default one in `data_dir`, named after the text.
        settings: fields of `DataConfig`: tokenizer, encoding, …

    Raises:
        InputError: the texts cannot be used, or `out` holds something else.

    >>> prepare("novel.txt", tokenizer="char", out="novel-tokens").n_documents
    1
    """
    values = {**settings, "vocab_size": vocab_size, "paths": tuple(str(text) for text in texts)}
    made_for = with_values(RunConfig(), values)
    check_ranges(made_for.model, MODEL_LIMITS)
    config = made_for.text.validate()
    if config.data is not None:
        path = download_corpus(config.data, Path(config.data_dir))
        config = dataclasses.replace(config, paths=(str(path),), data=None)
    if not config.paths:
        raise InputError("no text is named: myllm prepare FILE-OR-FOLDER")
    made = prepare_text(config, vocab_size, out=None if out is None else Path(out))
    if [made.folder] == [Path(path) for path in config.paths]:
        raise InputError(f"{made.folder} is prepared already: myllm train {quoted(made.folder)}")
    return made


# ------------------------------------------------------------------- finding runs


def load(
    name: str | None = None,
    runs_dir: StrPath = "checkpoints",
    device: str | None = None,
    threads: int | None = None,
    checkpoint: str | int = "best",
) -> Run:
    """A run by name or path; without one, the run that was saved to last.

    Args:
        name: of the run, or its folder.
        runs_dir: the folder of runs.
        device: where its model computes: cpu, cuda, mps; by default the best one here.
        threads: of the CPU, for all that this process computes from now on.
        checkpoint: which one is used: best, last, or a step that is kept.

    Raises:
        ConfigError: a number of threads below 1.
        InputError: there is none; the message lists those that there are.

    >>> load("novel").name
    'novel'
    >>> load("nobody")
    Traceback (most recent call last):
    myllm.errors.InputError: no run 'nobody' in checkpoints; there are: ...
    """
    use_threads(threads)
    folder = find_run(Path(runs_dir), None if name is None else str(name))
    return Run(folder, device, checkpoint=checkpoint)


def runs(runs_dir: StrPath = "checkpoints") -> list[Run]:
    """All runs of a folder, by name.

    >>> "novel" in [run.name for run in runs()]
    True
    """
    return [Run(folder) for folder in all_runs(Path(runs_dir))]


def benchmark(iterations: int = 20, size: str | None = None, **settings: Any) -> Speeds:
    """Measures how fast a model is trained and writes on this machine.

    Args:
        iterations: timed repetitions.
        size: cpu, gpu, 124m; by default what this machine trains in minutes.
        settings: of the model, and preset, batch_size, optimizer, dtype, device, kernels, threads.

    Raises:
        ConfigError: a setting that cannot work.

    >>> found = benchmark(2, d_model=16, n_heads=2, n_layers=1, context_length=8)
    >>> all(timing.tokens_per_second > 0 for timing in found.timings.values())
    True
    """
    return _measured(measure_speeds, iterations, size, settings)


def benchmark_against(
    program: str, iterations: int = 20, size: str | None = None, **settings: Any
) -> Duel:
    """Measures a training step beside that of another program's model of the same shape, in turns.

    Args:
        program: transformers, or a folder with nanoGPT, whose model.py is run.
        iterations, size, settings: as for `benchmark`.

    Raises:
        InputError: the other program is not there.
        ConfigError: a setting that cannot work.
    """
    return _measured(functools.partial(measure_against, program), iterations, size, settings)


def _measured(
    measure: Callable[[GPTConfig, TrainConfig, int], T],
    iterations: int,
    size: str | None,
    settings: dict[str, Any],
) -> T:
    check_range("iterations", iterations, 1, 10**6)
    flags = settings if size is None else {**settings, "size": size}
    config = resolve(**session.build_layers(Request(flags))).config
    if not config.model.vocab_size:
        config = with_values(config, {"vocab_size": 4096})
    session.check_names(config.validate())
    with threads_put_back():
        use_threads(config.train.threads)
        return measure(config.model, config.train, iterations)
