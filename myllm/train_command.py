"""Room: the options of `train` → a `Trainer` that runs: text prepared, model built or resumed,
plan and result told to a person.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

import torch
from rich.console import Console

from myllm.checkpoint import CONFIG
from myllm.config import GPTConfig, RunConfig, SamplingConfig, TrainConfig, flat_values, from_toml
from myllm.corpora import download_corpus, python_docs
from myllm.dataset import TextDataset
from myllm.device import choose_attention, choose_device
from myllm.display import PatientStream, TrainingDisplay
from myllm.errors import ConfigError, InputError
from myllm.generate import TextGenerator
from myllm.memory import check_memory
from myllm.model import ATTENTIONS, GPTModel
from myllm.optim import OPTIMIZERS
from myllm.options import TrainOptions, plain_text_config
from myllm.prepare import prepare
from myllm.recipe import fit_to_time
from myllm.run_folder import RunFolder, find_run
from myllm.schedules import SCHEDULES, learning_rate_factor
from myllm.sources import text_name
from myllm.state import TrainState
from myllm.token_file import TokenFile, fitting_context
from myllm.tokenizer import TOKENIZERS
from myllm.train import Trainer
from myllm.weights import load_weights

log = logging.getLogger(__name__)


def train(options: TrainOptions, began: float) -> None:
    """Prepares the text, trains, tells the result and what to do next.

    Args:
        options: of the command line.
        began: when the program did, by `time.monotonic`; `--minutes` counts from there.
    """
    out = cast(IO[str], PatientStream(sys.stdout))
    console = Console(file=out, highlight=False, markup=False, soft_wrap=True)
    config = dataclasses.replace(
        _run_config(options), text=plain_text_config(options.text)
    ).validate()
    if options.resume is not None:
        trainer, token_file = _resumed(options, config)
    else:
        trainer, token_file = _started(options, config, began)
    run = trainer.run
    assert run is not None
    if not options.quiet:
        _say_plan(console, trainer, token_file)
    with TrainingDisplay(console, _sampler(trainer, token_file), options.quiet) as display:
        trainer.observer = display
        progress = trainer.train()
    if trainer.profiler.table and not options.quiet:
        console.print(trainer.profiler.table)
        console.print(f"Chrome trace: {trainer.profiler.trace_path}")
    _say_result(console, run, progress, options.out)


def _run_config(options: TrainOptions) -> RunConfig:
    return RunConfig(
        options.preset, options.size, options.from_run, options.model, options.text, options.train
    )


def _started(options: TrainOptions, config: RunConfig, began: float) -> tuple[Trainer, TokenFile]:
    # before minutes of preparing: is all there that the configuration names?
    device = choose_device(config.train.device)
    ATTENTIONS[config.model.attention or "flash"]
    OPTIMIZERS[config.train.optimizer]
    SCHEDULES[config.train.schedule]
    TOKENIZERS[config.text.tokenizer]
    _check_writable(Path(options.out))
    folder = Path(config.text.data_dir)
    text = config.text
    if text.data is not None:
        text = dataclasses.replace(text, paths=(str(download_corpus(text.data, folder)),))
    elif not text.paths:
        text = dataclasses.replace(text, paths=(str(python_docs(folder)),))
    name = options.run or text_name(text)
    begun = find_run(Path(options.out), config.from_run) if config.from_run else None
    token_file = prepare(text, config.model.vocab_size, begun.tokenizer if begun else None)
    model = dataclasses.replace(
        config.model,
        vocab_size=max(token_file.tokenizer.vocab_size, config.model.vocab_size * bool(begun)),
        attention=config.model.attention or choose_attention(device),
    )
    config = dataclasses.replace(config, model=model)
    if config.train.minutes is not None:
        spent_s = time.monotonic() - began
        ranges = token_file.train_ranges, token_file.val_ranges
        config = fit_to_time(config, options.named, *ranges, spent_s)
    if begun is not None:
        _check_same_shape(begun, config.model)
    context = config.model.context_length
    if begun is None or config.model.position == "rotary":
        context = fitting_context(token_file, context)
    model = dataclasses.replace(config.model, context_length=context)
    if "-" in text.paths:  # standard input cannot be read twice; its copy can
        paths = tuple(str(source) for source in token_file.source_paths)
        text = dataclasses.replace(text, paths=paths)
    config = dataclasses.replace(
        config, model=model, text=dataclasses.replace(text, data=None)
    ).validate()
    trainer = _build_trainer(config, token_file)
    if begun is not None:
        _begin_with(begun, trainer)
    config = dataclasses.replace(config, train=trainer.config)
    trainer.attach(RunFolder.create(Path(options.out), name, config, token_file.tokenizer))
    return trainer, token_file


def _check_same_shape(begun: RunFolder, model: GPTConfig) -> None:
    """Raises `ConfigError` if weights of a run cannot be those of `model`."""
    free = {"dropout", "attention", *(["context_length"] if model.position == "rotary" else [])}
    old = dataclasses.asdict(begun.config.model)
    changed = [f"{n} {old[n]} → {v}" for n, v in dataclasses.asdict(model).items() if v != old[n]]
    changed = [text for text in changed if text.split()[0] not in free]
    if changed:
        raise ConfigError(
            f"cannot begin with {begun.name} and another model: {', '.join(changed)}; leave these "
            "settings out"
        )


def _begin_with(run: RunFolder, trainer: Trainer) -> None:
    load_weights(trainer.model, run.checkpoints.load("best", with_optimizer=False))
    loss = trainer.evaluate().loss
    log.info("begun with the model of %s: validation loss %.4f on this text", run.name, loss)


def _resumed(options: TrainOptions, config: RunConfig) -> tuple[Trainer, TokenFile]:
    run = find_run(Path(options.out), options.resume)
    newest = (
        run.checkpoints.newest_good()
    )  # its copy is verified; the run's own may have been edited since
    saved = run.config if newest is None else from_toml(run.checkpoints.folder(newest) / CONFIG)
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
    if config.from_run and not run.checkpoints.steps():
        _begin_with(find_run(Path(options.out), config.from_run), trainer)
    trainer.attach(run)
    trainer.resume()
    if config.train.max_steps < trainer.step:
        raise ConfigError(
            f"max_steps {config.train.max_steps}: {run.name} has done {trainer.step} steps "
            "already; give more"
        )
    run.set_config(dataclasses.replace(config, train=trainer.config))
    _say_new_schedule(trainer.step, saved.train, config.train)
    return trainer, token_file


def _say_new_schedule(step: int, old: TrainConfig, new: TrainConfig) -> None:
    """Tells what other `--max-steps` do to the rest of the run."""
    if old.max_steps == new.max_steps:
        return
    rates = [train.learning_rate * learning_rate_factor(step, train) for train in (old, new)]
    log.warning(
        "from step %d on the %s schedule is that of %d steps: the learning rate goes on at %.3g, "
        "where it would have been %.3g",
        step, new.schedule, new.max_steps, rates[1], rates[0],
    )  # fmt: skip


def _build_trainer(config: RunConfig, token_file: TokenFile) -> Trainer:

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


def _say_result(console: Console, run: RunFolder, progress: TrainState, out: str) -> None:
    where = f" --out {out}" if out != "checkpoints" else ""
    console.print(
        f"best validation loss {progress.best_loss:.4f} nats per token, "
        f"{progress.best_bits_per_byte:.4f} bits per byte, at step {progress.best_step}"
    )
    console.print(f"the model is in {run.path}; try")
    console.print(f'  myllm generate "Once upon a time" --run {run.name}{where}')
    console.print(f"  myllm chat --run {run.name}{where}")
