"""Room: the command line. Its verbs put the other rooms to work; only here results are printed
and the program exits. Torch is imported when a verb needs it, so that help answers at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import logging
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from myllm import __version__, signals
from myllm.config import DataConfig, TrainConfig
from myllm.errors import (
    CheckpointError,
    ConfigError,
    InputError,
    Interrupted,
    MyLLMError,
)
from myllm.machine import use_available_cores
from myllm.options import (
    BenchmarkOptions,
    ChatOptions,
    EvaluateOptions,
    ExportOptions,
    GenerateOptions,
    ImportOptions,
    InspectBatchOptions,
    PrepareOptions,
    TrainOptions,
    VerifyOptions,
    parse,
    plain_text_config,
)
from myllm.registry import unknown

log = logging.getLogger("myllm")
_began = time.monotonic()  # when the program did: what `--minutes` counts from

# ------------------------------------------------------------------------------ train


def train(options: TrainOptions) -> None:
    """Prepares the text, trains, tells the result and what to do next."""
    from myllm.train_command import train as run_training

    run_training(options, _began)


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

    from myllm.device import autocast, choose_device, choose_dtype
    from myllm.evaluate import evaluate as measure
    from myllm.prepare import encode_file, prepare
    from myllm.run_folder import find_run
    from myllm.weights import load_model

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
    from myllm.prepare import prepare

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


def verify(options: VerifyOptions) -> None:
    """Prints a table of what is whole and what is damaged."""
    from myllm.run_folder import find_run
    from myllm.verify import check_run

    run = find_run(Path(options.out), options.run)
    findings = check_run(run)
    width = max(len(finding.name) for finding in findings)
    for found in findings:
        print(f"{found.name:{width}}  {found.n_bytes:>15,} bytes  {found.damage or 'whole'}")
    if damaged := [finding.name for finding in findings if finding.damage]:
        raise CheckpointError(
            f"run {run.name} is damaged: {', '.join(damaged)}; myllm train --resume "
            f"{run.resume_name} goes on from its newest whole checkpoint"
        )


def inspect_batch(options: InspectBatchOptions) -> None:
    """Prints the sequences of a batch."""
    from myllm.dataset import TextDataset
    from myllm.display import printable
    from myllm.prepare import prepare
    from myllm.run_folder import find_run

    if options.step < 0:
        raise ConfigError(f"step {options.step}: the first one is 0")
    run = find_run(Path(options.out), options.run)
    config, tokenizer = run.config, run.tokenizer
    token_file = prepare(config.text, config.model.vocab_size, tokenizer)
    tokens, T = token_file.tokens(), config.model.context_length
    batch_size = config.train.batch_size * config.train.accumulation_steps
    dataset = TextDataset(tokens, token_file.train_ranges, T, batch_size, config.train.seed)
    for i, start in enumerate(dataset.sequence_starts(options.step)):
        print(f"--- sequence {i}: tokens {start:,} to {start + T:,} of {len(tokens):,}")
        text = tokenizer.decode([int(token) for token in tokens[start : start + T + 1]])
        print(printable(text))


def export(options: ExportOptions) -> None:
    """Writes the model, reads it back, tells both."""
    from myllm.display import printable
    from myllm.formats import export as export_run
    from myllm.run_folder import find_run

    run = find_run(Path(options.runs), options.run)
    out = Path(options.out) if options.out else None
    made = export_run(run, options.to, out, {"quantize": options.quantize}, options.verify)
    print(f"{made.path}: written")
    if made.missing:
        print(f"not read back and compared: pip install {made.missing}")
    if made.compared is None:
        return
    found = made.compared
    print(
        f"read back with {found.reader}: normalised logits differ by {found.difference:.1e} at "
        f"most (the largest is {found.scale:.1f}); {len(found.ours)} tokens written greedily are "
        + ("the same" if found.ours == found.theirs else "not the same")
    )
    width = max(len("myllm"), len(found.reader))
    for name, ids in (("myllm", found.ours), (found.reader, found.theirs)):
        text = json.dumps(run.tokenizer.decode(ids[:20]), ensure_ascii=False)
        print(f"  {name:{width}}  {printable(text)}")


def import_model(options: ImportOptions) -> None:
    """Makes a run."""
    from myllm.hf_import import import_huggingface

    if not options.path:
        raise InputError("no folder is named: myllm import FOLDER")
    folder = Path(options.path)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give one that is on this machine")
    name = options.run or folder.resolve().name
    run = import_huggingface(folder, Path(options.out), name)
    print(f"{run.path}: imported; try")
    print(f'  myllm generate "Once upon a time" --run {run.name}')
    print(f"  myllm train FILE --from {run.name}")


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
    OPTIMIZERS[options.optimizer]
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
    "export": (ExportOptions, export),
    "import": (ImportOptions, import_model),
    "verify": (VerifyOptions, verify),
    "inspect-batch": (InspectBatchOptions, inspect_batch),
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
    log.handlers[:] = [_LogHandler(sys.stderr)]
    log.setLevel(logging.WARNING if "--quiet" in args else logging.INFO)
    try:
        with signals.raised():
            return _dispatch(args)
    except MyLLMError as error:
        if "--debug" in args:
            traceback.print_exc()
        _tell(" ".join(str(error).split()))
        return error.exit_code
    except RuntimeError as error:
        return _out_of_memory(error)
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        _tell("interrupted; what was saved before is intact")
        return Interrupted("", number).exit_code
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        from myllm.display import silence

        silence(sys.stdout)  # its reader has left, as `head` does, or the terminal is closed
        return 0


class _LogHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes above the progress bar, which takes the place of `sys.stderr` on a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.__stderr__ is not None and sys.__stderr__.isatty():
            self.stream = sys.stderr
        super().emit(record)


def _tell(message: str) -> None:
    with contextlib.suppress(OSError):  # the terminal is closed
        print(f"myllm: {message}", file=sys.stderr, flush=True)


def _out_of_memory(error: RuntimeError) -> int:
    """Tells of a model that does not fit; any other `RuntimeError` is ours, and goes on."""
    from myllm.device import out_of_memory

    remedy = "take a smaller --d-model, --n-layers, --vocab-size or --batch-size"
    known = out_of_memory(error, remedy)
    if known is None:
        raise error
    _tell(str(known))
    return known.exit_code


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if args[0] == "--version":
        print(f"myllm {__version__}")
        return 0
    if args[0] not in VERBS:
        raise unknown("verb", args[0], VERBS)
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
