"""Room: the command line. Its verbs put the other rooms to work; only here results are printed
and the program exits. Torch is imported when a verb needs it, so that help answers at once.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import signal
import sys
import time
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from myllm import __version__
from myllm.config import (
    DataConfig,
    GPTConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
    flat_values,
)
from myllm.errors import ConfigError, InputError, Interrupted, MyLLMError, lookup, nearest
from myllm.machine import use_available_cores
from myllm.options import (
    BenchmarkOptions,
    ChatOptions,
    EvaluateOptions,
    GenerateOptions,
    PrepareOptions,
    TrainOptions,
    parse,
    plain_text_config,
)

if typing.TYPE_CHECKING:
    from rich.console import Console

    from myllm.checkpoint import RunFolder
    from myllm.data import TokenFile
    from myllm.train import Progress, Trainer

log = logging.getLogger("myllm")
_began = time.monotonic()  # when the program did: what `--minutes` counts from

# ------------------------------------------------------------------------------ train


def train(options: TrainOptions) -> None:
    """Prepares the text, trains, tells the result and what to do next."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
    config = dataclasses.replace(
        _run_config(options), text=plain_text_config(options.text)
    ).validate()
    if options.resume is not None:
        trainer, token_file = _resumed(options, config)
    else:
        trainer, token_file = _started(options, config)
    run = trainer.run
    assert run is not None
    if not options.quiet:
        _say_plan(console, trainer, token_file)
    from myllm.display import TrainingDisplay

    with TrainingDisplay(console, _sampler(trainer, token_file), options.quiet) as display:
        trainer.observer = display
        progress = trainer.train()
    if trainer.profiler.table and not options.quiet:
        console.print(trainer.profiler.table)
        console.print(f"Chrome trace: {trainer.profiler.trace_path}")
    _say_result(console, run, progress, options.out)


def _run_config(options: TrainOptions) -> RunConfig:
    return RunConfig(options.preset, options.size, options.model, options.text, options.train)


def _started(options: TrainOptions, config: RunConfig) -> tuple[Trainer, TokenFile]:
    from myllm.checkpoint import RunFolder
    from myllm.corpora import download_corpus, python_docs
    from myllm.data import fitting_context, prepare, text_name
    from myllm.device import choose_attention, choose_device
    from myllm.model import ATTENTIONS
    from myllm.optim import OPTIMIZERS, SCHEDULES
    from myllm.recipe import fit_to_time
    from myllm.tokenizer import TOKENIZERS

    # before minutes of preparing: is all there that the configuration names?
    device = choose_device(config.train.device)
    lookup("attention", config.model.attention or "flash", ATTENTIONS)
    lookup("optimizer", config.train.optimizer, OPTIMIZERS)
    lookup("schedule", config.train.schedule, SCHEDULES)
    lookup("tokenizer", config.text.tokenizer, TOKENIZERS)
    _check_writable(Path(options.out))
    folder = Path(config.text.data_dir)
    text = config.text
    if text.data is not None:
        text = dataclasses.replace(text, paths=(str(download_corpus(text.data, folder)),))
    elif not text.paths:
        text = dataclasses.replace(text, paths=(str(python_docs(folder)),))
    name = options.run or text_name(text)
    token_file = prepare(text, config.model.vocab_size)
    model = dataclasses.replace(
        config.model,
        vocab_size=token_file.tokenizer.vocab_size,
        attention=config.model.attention or choose_attention(device),
    )
    config = dataclasses.replace(config, model=model)
    if config.train.minutes is not None:
        spent_s = time.monotonic() - _began
        ranges = token_file.train_ranges, token_file.val_ranges
        config = fit_to_time(config, options.named, *ranges, spent_s)
    context = fitting_context(token_file, config.model.context_length)
    model = dataclasses.replace(config.model, context_length=context)
    if "-" in text.paths:  # standard input cannot be read twice; its copy can
        paths = tuple(str(source) for source in token_file.source_paths)
        text = dataclasses.replace(text, paths=paths)
    config = dataclasses.replace(
        config, model=model, text=dataclasses.replace(text, data=None)
    ).validate()
    trainer = _build_trainer(config, token_file)
    trainer.attach(RunFolder.create(Path(options.out), name, config, token_file.tokenizer))
    return trainer, token_file


def _resumed(options: TrainOptions, config: RunConfig) -> tuple[Trainer, TokenFile]:
    from myllm.checkpoint import find_run
    from myllm.data import prepare

    run = find_run(Path(options.out), options.resume)
    saved = run.config
    new, old = flat_values(config), flat_values(saved)
    fixed = [
        "preset",
        "size",
        *(f.name for f in dataclasses.fields(GPTConfig)),
        "tokenizer",
        "val_split",
    ]
    changed = [n for n in fixed if new[n] != old[n] and n not in ("dropout", "attention")]
    if changed:
        what = ", ".join(f"{name} {old[name]} → {new[name]}" for name in changed)
        raise ConfigError(
            f"cannot resume {run.name} with another model or tokenizer: {what}; leave these "
            "settings out, or start a new run"
        )
    for name, value in new.items():
        if value != old[name] and name not in ("paths", "data_dir"):
            log.warning("%s changes from %s to %s", name, old[name], value)
    token_file = prepare(config.text, config.model.vocab_size, run.tokenizer)
    trainer = _build_trainer(config, token_file)
    trainer.attach(run)
    trainer.resume()
    run.set_config(config)
    return trainer, token_file


def _build_trainer(config: RunConfig, token_file: TokenFile) -> Trainer:
    import torch

    from myllm.device import choose_device
    from myllm.memory import check_memory
    from myllm.model import GPTModel
    from myllm.train import TextDataset, Trainer

    check_memory(config.model, config.train, choose_device(config.train.device))
    torch.manual_seed(config.train.seed)
    model = GPTModel(config.model)
    tokens, T, seed = token_file.tokens(), config.model.context_length, config.train.seed
    batch_size = config.train.batch_size * config.train.accumulation_steps
    return Trainer(
        model,
        TextDataset(tokens, token_file.train_ranges, T, batch_size, seed),
        tokens,
        token_file.val_ranges,
        config.train,
        byte_counts=token_file.tokenizer.byte_counts(),
        fingerprint={
            "text": token_file.text_hash,
            "tokenizer": token_file.tokenizer.content_hash,
        },
    )


def _check_writable(out: Path) -> None:
    """Raises `InputError` before training rather than after it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".tmp-writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; name another --out") from None


def _sampler(trainer: Trainer, token_file: TokenFile) -> Callable[[int], str]:
    from myllm.generate import TextGenerator

    generator = TextGenerator(trainer.model, token_file.tokenizer)

    def write(step: int) -> str:
        sampling = SamplingConfig(max_new_tokens=60, sample_seed=step, ignore_end=True)
        return generator.generate("", sampling).strip()

    return write


def _say_plan(console: Console, trainer: Trainer, token_file: TokenFile) -> None:
    shape, config = trainer.model.config, trainer.config
    names = f"{token_file.n_documents:,} documents" if token_file.n_documents > 1 else "1 document"
    per_step = trainer.train_data.batch_size * shape.context_length
    dtype = str(trainer.dtype).removeprefix("torch.")
    begin = f"from step {trainer.step} " if trainer.step else ""
    assert trainer.run is not None
    console.print(
        f"text    {token_file.n_characters:,} characters, {token_file.n_tokens:,} tokens "
        f"({token_file.tokenizer.kind}, vocabulary {token_file.tokenizer.vocab_size:,}), {names}"
    )
    console.print(
        f"model   {trainer.model.count_parameters():,} parameters: {shape.n_layers} layers, "
        f"{shape.d_model} wide, {shape.n_heads} heads, context {shape.context_length}"
    )
    console.print(f"device  {trainer.device}, {dtype}")
    console.print(
        f"steps   {begin}to {config.max_steps:,}, {per_step:,} tokens each "
        f"({config.max_steps * per_step / token_file.n_tokens:.1f} times the text)"
    )
    console.print(f"saved   in {trainer.run.path}")


def _say_result(console: Console, run: RunFolder, progress: Progress, out: str) -> None:
    where = f" --out {out}" if out != "checkpoints" else ""
    console.print(
        f"best validation loss {progress.best_loss:.4f} nats per token, "
        f"{progress.best_bits_per_byte:.4f} bits per byte, at step {progress.best_step}"
    )
    console.print(f"the model is in {run.path}; try")
    console.print(f'  myllm generate "Once upon a time" --run {run.name}{where}')
    console.print(f"  myllm chat --run {run.name}{where}")


# --------------------------------------------------------------- the other verbs


def generate(options: GenerateOptions) -> None:
    """Streams the text to standard output."""
    from myllm.display import printable
    from myllm.generate import TextGenerator

    sampling = options.sampling.validate()
    generator = TextGenerator.from_run(options.run, options.out, options.device)
    sys.stdout.write(options.prompt)
    for piece in generator.stream(options.prompt, sampling):
        sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def chat(options: ChatOptions) -> None:
    """The interactive mode."""
    from myllm.chat import Chat
    from myllm.generate import TextGenerator

    sampling = options.sampling.validate()
    Chat(TextGenerator.from_run(options.run, options.out, options.device), sampling).run()


def evaluate(options: EvaluateOptions) -> None:
    """Prints a line per text."""
    import math

    from myllm.checkpoint import find_run, load_model
    from myllm.data import encode_file, prepare
    from myllm.device import autocast, choose_device, choose_dtype
    from myllm.evaluate import evaluate as measure

    run = find_run(Path(options.out), options.run)
    device = choose_device(options.device)
    model, tokenizer, _ = load_model(run, device)
    text = DataConfig(encoding=options.encoding, encoding_errors=options.encoding_errors)
    texts: list[tuple[str, Any, list[tuple[int, int]]]] = []
    if options.paths:
        for path in options.paths:
            ids = encode_file(path, tokenizer, text.validate())
            texts.append((path, ids, [(0, len(ids))]))
    else:
        token_file = prepare(run.config.text, 0, tokenizer)
        texts.append(("validation split", token_file.tokens(), token_file.val_ranges))
    for name, ids, ranges in texts:
        if unknown := tokenizer.count_unknown(ids):
            log.warning(
                "%s: %d of %d characters do not occur in the training text; bits per byte counts "
                "each as an unknown one",
                name, unknown, len(ids),
            )  # fmt: skip
        # evaluated as the trainer does it, so that the figures agree
        precision = autocast(device, choose_dtype(device, run.config.train.dtype))
        found = measure(model, ids, ranges, tokenizer.byte_counts(), 32, precision)
        print(
            f"{name}: loss {found.loss:.4f} nats per token, perplexity {math.exp(found.loss):.2f},"
            f" {found.bits_per_byte:.4f} bits per byte ({found.n_tokens:,} tokens, run {run.name})"
        )


def prepare_text(options: PrepareOptions) -> None:
    """Makes a folder of tokens."""
    from myllm.data import prepare

    text = plain_text_config(options.text).validate()
    if not text.paths:
        raise InputError("no text is named: myllm prepare FILE-OR-FOLDER")
    out = Path(options.out) if options.out is not None else None
    made = prepare(text, options.vocab_size, out=out)
    print(
        f"{made.folder}: {made.n_characters:,} characters, {made.n_tokens:,} tokens, "
        f"{made.n_documents:,} documents, vocabulary {made.tokenizer.vocab_size:,}"
    )
    print(f"train on it with: myllm train {made.folder}")


def benchmark(options: BenchmarkOptions) -> None:
    """Prints a table of speeds."""
    from rich.console import Console
    from rich.table import Table

    from myllm.benchmark import run_benchmark
    from myllm.optim import OPTIMIZERS

    train_config = TrainConfig(
        batch_size=options.batch_size,
        optimizer=options.optimizer,
        dtype=options.dtype,
        device=options.device,
    ).validate()
    shape = options.model
    shape = dataclasses.replace(shape, vocab_size=shape.vocab_size or 4096).validate()
    lookup("optimizer", options.optimizer, OPTIMIZERS)
    if options.iterations < 1:
        raise ConfigError(f"iterations {options.iterations}: must be at least 1")
    peak, timings = run_benchmark(shape, train_config, options.iterations)
    table = Table("", "ms", "tokens/s", "of peak", "peak memory")
    for name, timing in timings.items():
        table.add_row(
            name,
            f"{timing.seconds * 1e3:,.1f}",
            f"{timing.tokens_per_second:,.0f}",
            f"{timing.flops_per_second / peak:.1%}",
            f"{timing.peak_memory_bytes / 2**20:,.0f} MiB",
        )
    console = Console()
    console.print(table)
    console.print(f"peak of a matrix product here: {peak / 1e9:,.0f} GFLOP/s")


VERBS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "train": (TrainOptions, train),
    "generate": (GenerateOptions, generate),
    "chat": (ChatOptions, chat),
    "evaluate": (EvaluateOptions, evaluate),
    "prepare": (PrepareOptions, prepare_text),
    "benchmark": (BenchmarkOptions, benchmark),
}


# --------------------------------------------------------------- arguments and exit


def main(args: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit code (see `errors.py`)."""
    global _began
    if args is not None:  # called from Python
        _began = time.monotonic()
    args = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show 你好 shows ?
    handler = logging.StreamHandler(sys.stderr)
    log.handlers[:] = [handler]
    log.setLevel(logging.WARNING if "--quiet" in args else logging.INFO)
    try:
        return _dispatch(args)
    except MyLLMError as error:
        if "--debug" in args:
            traceback.print_exc()
        print(f"myllm: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except RuntimeError as error:
        return _out_of_memory(error)
    except KeyboardInterrupt:
        print("myllm: interrupted", file=sys.stderr)
        return Interrupted("", signal.SIGINT).exit_code
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _out_of_memory(error: RuntimeError) -> int:
    """Tells of a model that does not fit; any other `RuntimeError` is ours, and goes on."""
    from myllm.device import out_of_memory

    remedy = "take a smaller --d-model, --n-layers, --vocab-size or --batch-size"
    known = out_of_memory(error, remedy)
    if known is None:
        raise error
    print(f"myllm: {known}", file=sys.stderr)
    return known.exit_code


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if args[0] == "--version":
        print(f"myllm {__version__}")
        return 0
    if args[0] not in VERBS:
        raise InputError(f"unknown verb {args[0]!r}: {nearest(args[0], VERBS)}")
    options, work = VERBS[args[0]]
    use_available_cores()
    try:
        work(parse(options, args[0], args[1:]))
    except SystemExit as exit:  # --help has been shown
        return int(exit.code or 0)
    return 0


def _overview() -> str:
    lines = ["usage: myllm VERB [OPTIONS]    (myllm VERB --help lists its options)", ""]
    for verb, (options, _) in VERBS.items():
        summary = " ".join((options.__doc__ or "").split())
        lines.append(f"  {verb:10} {summary}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
