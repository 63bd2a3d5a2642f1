"""Room: the Python face: what the command line does, as functions and a class `Run`.

    run = train("novel.txt", max_steps=300)
    run.generate("Once upon")

Errors are raised (classes of `errors`), never printed.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console

from myllm import session
from myllm.benchmark import Timing, run_benchmark
from myllm.checkpoint import RunFolder, find_run
from myllm.config import DataConfig, RunConfig, SamplingConfig, with_values
from myllm.data import TokenFile, encode_file
from myllm.data import prepare as prepare_text
from myllm.dataset import TextDataset
from myllm.device import autocast, choose_device, choose_dtype
from myllm.display import TrainingDisplay, plan_lines
from myllm.errors import ConfigError, InputError
from myllm.evaluate import Evaluation
from myllm.evaluate import evaluate as measure
from myllm.generate import TextGenerator
from myllm.presets import Resolved, resolve
from myllm.progress import Progress
from myllm.registry import unknown
from myllm.session import Request, Session
from myllm.terminal import PatientStream
from myllm.train import Observer, Trainer
from myllm.verification import Finding, check_run
from myllm.weights import load_model

if TYPE_CHECKING:
    from myllm.formats import ExportResult

log = logging.getLogger(__name__)
StrPath = str | Path


class Run:
    """A training run: its model, its settings, its figures. Made by `train`, `load`, `runs` or
    `import_model`.

    >>> run = load("novel")
    >>> run.name
    'novel'
    >>> run.config.train.max_steps
    6
    >>> run
    Run('checkpoints/novel')
    """

    def __init__(
        self, folder: RunFolder, device: str | None = None, state: Progress | None = None
    ) -> None:
        """
        Args:
            folder: of the run.
            device: where its model computes: cpu, cuda, mps; by default the best one here.
            state: what training ended at, if it has just been trained.
        """
        self.folder, self.device, self.state = folder, device, state

    def __repr__(self) -> str:
        return f"Run({self.path.as_posix()!r})"

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.folder.name

    @property
    def path(self) -> Path:
        """The run's folder, which can be copied to another machine."""
        return self.folder.path

    @property
    def config(self) -> RunConfig:
        """All settings of the run."""
        return self.folder.config

    @cached_property
    def generator(self) -> TextGenerator:
        """The best model of the run with its tokenizer, loaded at first use.

        Raises:
            CheckpointError: no good checkpoint.
        """
        device = choose_device(self.device)
        model, tokenizer, _ = load_model(self.folder, device)
        return TextGenerator(model, tokenizer, device)

    def generate(self, prompt: str = "", **sampling: Any) -> str:
        """The text that follows `prompt`, without it.

        Args:
            prompt: any text; an empty one begins a new document.
            sampling: fields of `SamplingConfig`, such as max_new_tokens, temperature, top_p.

        Raises:
            ConfigError: an unknown setting, or a value out of its limits.

        >>> text = load("novel").generate("Once upon", max_new_tokens=5, sample_seed=1)
        >>> isinstance(text, str)
        True
        """
        return self.generator.generate(prompt, _sampling(sampling))

    def stream(self, prompt: str = "", **sampling: Any) -> Iterator[str]:
        """As `generate`, in pieces of whole characters as they come.

        >>> run = load("novel")
        >>> pieces = list(run.stream("Once upon", max_new_tokens=5, sample_seed=1))
        >>> "".join(pieces) == run.generate("Once upon", max_new_tokens=5, sample_seed=1)
        True
        """
        return self.generator.stream(prompt, _sampling(sampling))

    def evaluate(
        self, text: StrPath | None = None, encoding: str = "utf-8", encoding_errors: str = "strict"
    ) -> Evaluation:
        """How well the model predicts a text.

        Args:
            text: a file or folder; by default the run's validation split.
            encoding: of the text's files.
            encoding_errors: what to do about undecodable bytes: strict, replace, ignore.

        Raises:
            InputError: the text cannot be read, or is too short.

        >>> measured = load("novel").evaluate("novel.txt")
        >>> measured.perplexity > 1 and measured.bits_per_byte > 0
        True
        """
        tokenizer = self.generator.tokenizer
        if text is None:
            token_file = prepare_text(self.config.text, 0, tokenizer)
            ids, ranges = token_file.tokens(), token_file.val_ranges
        else:
            reading = DataConfig(encoding=encoding, encoding_errors=encoding_errors).validate()
            ids = encode_file(str(text), tokenizer, reading)
            ranges = [(0, len(ids))]
        if n_unknown := tokenizer.count_unknown(ids):
            log.warning(
                "%s: %d of %d characters do not occur in the training text; bits per byte counts "
                "each as an unknown one",
                text or "validation split", n_unknown, len(ids),
            )  # fmt: skip
        # evaluated as the trainer does it, so that the figures agree
        device = self.generator.device
        precision = autocast(device, choose_dtype(device, self.config.train.dtype))
        return measure(self.generator.model, ids, ranges, tokenizer.byte_counts(), 32, precision)

    def export(
        self,
        format: str,
        out: StrPath | None = None,
        quantize: str | None = None,
        verify: bool = True,
    ) -> ExportResult:
        """Writes the model for other programs, and reads it back with one of them.

        Args:
            format: hf (transformers, vLLM), gguf (llama.cpp, Ollama, LM Studio), onnx.
            out: the file or folder to make; by default it is named after the run.
            quantize: the type of the weights, of gguf.
            verify: read it back with the independent program, where that is installed.

        Returns:
            The path, and the comparison or None.

        Raises:
            ExportError: the other program computes something else.
            InputError: `out` exists.

        >>> load("novel").export("hf", "novel-hf", verify=False).path.name
        'novel-hf'
        """
        from myllm.formats import export

        out = Path(out) if out is not None else None
        return export(self.folder, format, out, quantize=quantize, verify=verify)

    def metrics(self) -> list[dict[str, Any]]:
        """What was measured at each evaluation, oldest first.

        >>> [record["step"] for record in load("novel").metrics()]
        [3, 6]
        """
        return self.folder.metrics()

    def verify(self) -> list[Finding]:
        """Every file of the run, with what is wrong with it.

        >>> any(finding.damage for finding in load("novel").verify())
        False
        """
        return check_run(self.folder)

    def batch(self, step: int) -> Iterator[tuple[int, str]]:
        """The sequences that a training step learned from: where each begins, and its text.

        Raises:
            ConfigError: a negative step.

        >>> next(load("novel").batch(0))[1] in open("novel.txt").read()
        True
        """
        if step < 0:
            raise ConfigError(f"step {step}: the first one is 0")
        config, tokenizer = self.config, self.folder.tokenizer
        token_file = prepare_text(config.text, config.model.vocab_size, tokenizer)
        tokens, T = token_file.tokens(), config.model.context_length
        batch_size = config.train.batch_size * config.train.accumulation_steps
        data = TextDataset(tokens, token_file.train_ranges, T, batch_size, config.train.seed)
        for start in data.window_starts(step):
            ids = [int(token) for token in tokens[start : start + T + 1]]
            yield int(start), tokenizer.decode(ids)


def _sampling(values: dict[str, Any]) -> SamplingConfig:
    known = SamplingConfig.__dataclass_fields__
    for name in values:
        if name not in known:
            raise unknown("setting", name, known)
    stop = values.get("stop", ())
    values = {**values, "stop": (stop,) if isinstance(stop, str) else tuple(stop)}
    return SamplingConfig(**values).validate()


# ------------------------------------------------------------------- making runs


def train(
    *texts: StrPath,
    run: str | None = None,
    resume: str | None = None,
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
        resume: the run to continue, by name or path, instead of a new one.
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
    myllm.errors.ConfigError: unknown setting 'd_modle': did you mean d_model? (choices: ...
    """
    request = _request(texts, settings, config, run, resume, runs_dir, began)
    made = session.resume(request) if resume is not None else session.start(request)
    out = cast(IO[str], PatientStream(sys.stdout))
    console = Console(file=out, highlight=False, markup=False, soft_wrap=True)
    trainer = made.trainer
    if not quiet:
        _show(console, plan_lines(trainer, made.token_file))
    with TrainingDisplay(console, _sampler(made), quiet) as display:
        trainer.observer = display if observer is None else _Observers([display, observer])
        state = trainer.train()
    if trainer.profiler.table and not quiet:
        _show(console, [trainer.profiler.table, f"Chrome trace: {trainer.profiler.trace_path}"])
    return Run(made.run, made.trainer.config.device, state)


def settings(
    *texts: StrPath,
    run: str | None = None,
    resume: str | None = None,
    runs_dir: StrPath = "checkpoints",
    config: StrPath | None = None,
    began: float | None = None,
    **settings: Any,
) -> Resolved:
    """The settings that `train` would take, and where each came from; trains nothing.

    >>> settings("novel.txt", size="cpu", seed=3).sources["seed"]
    'flags'
    """
    return session.settings(_request(texts, settings, config, run, resume, runs_dir, began))


def _request(
    texts: Iterable[StrPath],
    settings: dict[str, Any],
    config: StrPath | None,
    run: str | None,
    resume: str | None,
    runs_dir: StrPath,
    began: float | None,
) -> Request:
    paths = {"paths": tuple(str(text) for text in texts)}
    return Request(
        flags={**settings, **paths} if paths["paths"] else settings,
        file=None if config is None else str(config),
        run=run,
        resume=None if resume is None else str(resume),
        runs_dir=Path(runs_dir),
        began=time.monotonic() if began is None else began,
    )


def _show(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line)


def _sampler(made: Session) -> Callable[[int], str]:
    """Samples of the model's writing during training."""
    generator = TextGenerator(made.trainer.model, made.token_file.tokenizer)

    def write(step: int) -> str:
        sampling = SamplingConfig(max_new_tokens=60, sample_seed=step, ignore_end=True)
        return generator.generate("", sampling).strip()

    return write


class _Observers(Observer):
    """Several observers as one."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self.observers = list(observers)

    def on_start(self, trainer: Trainer) -> None:
        for observer in self.observers:
            observer.on_start(trainer)

    def on_step(self, step: int, loss: float, tokens_per_second: float) -> None:
        for observer in self.observers:
            observer.on_step(step, loss, tokens_per_second)

    def on_evaluation(self, record: Any, is_best: bool) -> None:
        for observer in self.observers:
            observer.on_evaluation(record, is_best)


def import_model(
    folder: StrPath, run: str | None = None, runs_dir: StrPath = "checkpoints"
) -> Run:
    """Makes a run from a local Hugging Face folder (GPT-2, Llama, Qwen3), to use or train on.

    Args:
        folder: with config.json, tokenizer.json and safetensors files.
        run: the run's name; by default that of the folder.
        runs_dir: the folder of runs.

    Raises:
        InputError: not such a folder, or a model of another layout.

    >>> exported = load("novel").export("hf", "exported", verify=False)
    >>> import_model("exported", run="imported").name
    'imported'
    """
    from myllm.huggingface import import_huggingface

    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{path} is not a folder: give one that is on this machine")
    return Run(import_huggingface(path, Path(runs_dir), run or path.resolve().name))


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
    values = {**settings, "paths": tuple(str(text) for text in texts)}
    config = with_values(RunConfig(), values).text.validate()
    if not config.paths:
        raise InputError("no text is named: myllm prepare FILE-OR-FOLDER")
    return prepare_text(config, vocab_size, out=None if out is None else Path(out))


# ------------------------------------------------------------------- finding runs


def load(
    name: str | None = None, runs_dir: StrPath = "checkpoints", device: str | None = None
) -> Run:
    """A run by name or path; without one, the run that was saved to last.

    Raises:
        InputError: there is none; the message lists those that there are.

    >>> load("novel").name
    'novel'
    >>> load("nobody")
    Traceback (most recent call last):
    myllm.errors.InputError: no run 'nobody' in checkpoints; there are: ...
    """
    return Run(find_run(Path(runs_dir), None if name is None else str(name)), device)


def runs(runs_dir: StrPath = "checkpoints") -> list[Run]:
    """All runs of a folder, by name.

    >>> "novel" in [run.name for run in runs()]
    True
    """
    found: list[Run] = []
    for path in sorted(Path(runs_dir).glob("*")):
        try:
            found.append(Run(RunFolder(path)))
        except InputError:
            continue  # another kind of folder
    return found


def benchmark(
    iterations: int = 20, size: str | None = None, **settings: Any
) -> tuple[float, dict[str, Timing]]:
    """Measures training and generation speed on this machine.

    Args:
        iterations: timed repetitions.
        size: cpu, gpu, 124m; by default what this machine trains in minutes.
        settings: of the model, and preset, batch_size, optimizer, dtype, device.

    Returns:
        Operations a second of the fastest matrix product here, and timings by name.

    Raises:
        ConfigError: a setting that cannot work.

    >>> peak, timings = benchmark(2, d_model=16, n_heads=2, n_layers=1, context_length=8)
    >>> all(timing.tokens_per_second > 0 for timing in timings.values())
    True
    """
    if iterations < 1:
        raise ConfigError(f"iterations {iterations}: must be at least 1")
    flags = settings if size is None else {**settings, "size": size}
    config = resolve(**session.build_layers(Request(flags))).config
    if not config.model.vocab_size:
        config = with_values(config, {"vocab_size": 4096})
    session.check_names(config.validate())
    return run_benchmark(config.model, config.train, iterations)
