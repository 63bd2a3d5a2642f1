"""Room: what was asked for → a `Trainer` ready to run. Prints nothing.

request ──settings──▶ text ──prepare──▶ token file ──plan──▶ model ──▶ trainer in a run folder
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from myllm.checks import check_run_name, run_name
from myllm.config import (
    DataConfig,
    GPTConfig,
    RunConfig,
    TrainConfig,
    field_types,
    flat_values,
    from_toml,
    read_toml,
)
from myllm.data.corpora import download_corpus, python_docs
from myllm.data.dataset import TextDataset
from myllm.data.prepare import prepare
from myllm.data.sources import text_name
from myllm.data.token_file import TokenFile
from myllm.errors import ConfigError
from myllm.kinds import ATTENTIONS, OPTIMIZERS, SCHEDULES, TOKENIZERS
from myllm.model.gpt import GPTModel
from myllm.presets import Resolved, begun_from, resolve, resumed_from
from myllm.runs.checkpoint import CONFIG
from myllm.runs.folder import RunFolder, check_runs_dir, find_run
from myllm.runs.weights import load_weights
from myllm.system.atomic import TEMPORARY, make_folders, write_errors
from myllm.system.device import choose_attention, choose_device
from myllm.train.early_stop import with_patience
from myllm.train.epochs import steps_of_epochs, with_steps_of_epochs
from myllm.train.kernels import making_kernels
from myllm.train.memory import check_memory, fitting_batch
from myllm.train.own_text import check_known, own_text
from myllm.train.planner import plan_run, planned_names
from myllm.train.provenance import provenance_of
from myllm.train.request import (
    Request,
    check_begun,
    check_effects,
    check_prepared,
    check_resumed,
)
from myllm.train.schedules import learning_rate_factor
from myllm.train.sequences import as_sequences, check_sequences, fitted, sequence_length
from myllm.train.threads import with_saved_threads, with_threads
from myllm.train.trainer import Trainer

log = logging.getLogger(__name__)

# what a resumed run may change: all but its layout, tokenizer and split
CHANGEABLE = ("dropout", "attention")
FIXED = [
    *("preset", "size", "tokenizer", "val_split"),
    *(name for name in field_types(GPTConfig) if name not in CHANGEABLE),
]
MOVABLE = ("paths", "data_dir")  # the same text may lie elsewhere


@dataclass(frozen=True)
class Session:
    """A trainer with its run folder, and the text that it learns from."""

    trainer: Trainer
    token_file: TokenFile

    @property
    def run(self) -> RunFolder:
        """The folder of the run."""
        assert self.trainer.run is not None
        return self.trainer.run


# ------------------------------------------------------------------- settings


def build_layers(request: Request) -> dict[str, Any]:
    """The layers of settings, as `presets.resolve` takes them.

    Raises:
        InputError, ConfigError: a file or a run cannot be read; an unknown setting.
    """
    file = read_toml(Path(request.file)) if request.file is not None else {}
    layers: dict[str, Any] = {"file": file, "flags": request.flags}
    named = {**file, **request.flags}
    if request.resume is not None:
        saved = find_run(request.runs_dir, request.resume).config
        check_resumed(request, named, saved)
        layers["base"] = resumed_from(saved)
    elif named.get("from_run") is not None:
        begun = find_run(request.runs_dir, named["from_run"])
        for layer in ("file", "flags"):
            layers[layer] = as_sequences(layers[layer], begun.name, begun.config.model)
        check_begun(begun, {**layers["file"], **layers["flags"]})
        layers["base"] = begun_from(begun.config)
    elif named.get("size") is None:  # what this machine trains in minutes
        with_gpu = choose_device(named.get("device")).type == "cuda"
        layers["size"] = "gpu" if with_gpu else "cpu"
    return layers


def settings(request: Request) -> Resolved:
    """The settings that `start` or `resume` would train with, and where each came from.

    With `minutes` the machine is measured and the text prepared, as the plan depends on both;
    where no text is named, so that one would have to be extracted or downloaded, the values that
    a plan would choose are those below it, marked as the plan's. What steps so many `epochs` are
    is counted, too.

    Raises:
        InputError, ConfigError: they cannot work.
    """
    layers = build_layers(request)
    resolved = resolve(**layers)
    config = resolved.config.validate()
    if request.resume is not None:
        if not resolved.chosen("epochs"):
            return resolved
        run = find_run(request.runs_dir, request.resume)
        return with_steps_of_epochs(resolved, config, own_text(run, config, run.tokenizer))
    check_names(config)
    check_effects(resolved)
    if config.train.minutes is None and config.train.epochs is None:
        return resolved
    if config.text.data is not None or not config.text.paths:
        free = dict.fromkeys(planned_names(resolved), "plan")
        return Resolved(config, {**resolved.sources, **free})
    begun = _begun(request, config)
    token_file = _prepared(config, begun)
    config = _adapted(config, token_file, begun)
    plan = _plan(resolved, config, token_file, request.began)
    return with_steps_of_epochs(
        resolve(**layers, plan=plan), fitted(config, token_file), token_file
    )


def check_names(config: RunConfig) -> None:
    """Raises `ConfigError` if a part that the configuration names is not there, or sequences are
    longer than the model looks back."""
    if config.train.minutes is None:  # else the model is not known yet
        check_sequences(config)
    choose_device(config.train.device)
    ATTENTIONS[config.model.attention or "flash"]
    OPTIMIZERS[config.train.optimizer]
    SCHEDULES[config.train.schedule]
    TOKENIZERS[config.text.tokenizer]


def _begun(request: Request, config: RunConfig) -> RunFolder | None:
    """The run to begin with."""
    return find_run(request.runs_dir, config.from_run) if config.from_run else None


def _prepared(config: RunConfig, begun: RunFolder | None) -> TokenFile:
    return prepare(config.text, config.model.vocab_size, begun.tokenizer if begun else None)


def _adapted(config: RunConfig, token_file: TokenFile, begun: RunFolder | None) -> RunConfig:
    """With the vocabulary of the tokenizer, and the attention that is faster here."""
    least = config.model.vocab_size if begun is not None else 0
    model = dataclasses.replace(
        config.model,
        vocab_size=max(token_file.tokenizer.vocab_size, least),
        attention=config.model.attention or choose_attention(choose_device(config.train.device)),
    )
    return dataclasses.replace(config, model=model)


def _plan(
    resolved: Resolved, config: RunConfig, token_file: TokenFile, began: float
) -> dict[str, Any]:
    """The layer `plan`: empty where no time was given."""
    if config.train.minutes is None:
        return {}
    spent_s = time.monotonic() - began
    ranges = token_file.train_ranges, token_file.val_ranges
    return plan_run(dataclasses.replace(resolved, config=config), *ranges, spent_s)


# ------------------------------------------------------------------- a new run


def start(request: Request) -> Session:
    """A new run: its text prepared, its model built, its folder made.

    Raises:
        InputError, ConfigError: the text or the settings cannot work.
        OutOfMemoryError: the model does not fit.
        DiskFullError: there is no room.
    """
    layers = build_layers(request)
    resolved = resolve(**layers)
    config = resolved.config.validate()
    check_names(config)  # before minutes of preparing
    check_effects(resolved)
    if request.run is not None:
        check_run_name(request.run)
    _check_writable(request.runs_dir)
    text = with_paths(config.text)
    name = request.run or run_name(text_name(text))
    begun = _begun(request, config)
    with making_kernels(config):
        token_file = _prepared(dataclasses.replace(config, text=text), begun)
    check_prepared(resolved, token_file)
    if begun is not None:
        check_known(begun.name, token_file.tokenizer, token_file.tokens())
    config = _adapted(config, token_file, begun)
    plan = _plan(resolved, config, token_file, request.began)
    planned = resolve(**layers, plan=plan)
    config = _adapted(planned.config, token_file, begun)
    config = dataclasses.replace(config, text=_as_files(text, token_file))
    config = fitted(config, token_file).validate()
    if begun is not None and not planned.chosen("batch_size"):
        config = _with_fitting_batch(config)
    config = dataclasses.replace(config, train=steps_of_epochs(config, token_file))
    config = with_patience(config, token_file.n_train_tokens)
    config = with_threads(config)
    trainer = _build_trainer(config, token_file, begun)
    if begun is not None:
        _begin_with(begun, trainer)
    config = dataclasses.replace(config, train=trainer.config)
    trainer.attach(RunFolder.create(request.runs_dir, name, config, token_file.tokenizer))
    return Session(trainer, token_file)


def _check_writable(runs_dir: Path) -> None:
    """Raises `InputError` before training rather than after it."""
    check_runs_dir(runs_dir)
    make_folders(runs_dir)
    probe = runs_dir / f"{TEMPORARY}writable-{os.getpid()}"
    with write_errors("write", runs_dir, 1 << 16, "free some space, or name another --runs-dir"):
        probe.touch()
        probe.unlink()


def with_paths(text: DataConfig) -> DataConfig:
    """With the file of a corpus; where no text is named, of the Python manual.

    Raises:
        InputError, DiskFullError: it cannot be had.
    """
    folder = Path(text.data_dir)
    if text.data is not None:
        return dataclasses.replace(text, paths=(str(download_corpus(text.data, folder)),))
    if not text.paths:
        return dataclasses.replace(text, paths=(str(python_docs(folder)),))
    return text


def _as_files(text: DataConfig, token_file: TokenFile) -> DataConfig:
    """As the run keeps it: standard input cannot be read twice, its copy can."""
    paths = text.paths
    if "-" in paths:
        files = token_file.source_paths()
        copies = {path for path in files if Path(path).match(f"{text.data_dir}/stdin-*.txt")}
        # one copy stands for standard input; else all files do for all that was named
        one = copies.pop() if len(copies) == 1 else None
        paths = tuple(one if path == "-" else path for path in paths) if one else tuple(files)
    return dataclasses.replace(text, paths=paths, data=None)


def _with_fitting_batch(config: RunConfig) -> RunConfig:
    """A trained model is as large as it is: the micro-batches are what can be made to fit."""
    device = choose_device(config.train.device)
    train = fitting_batch(config.model, config.train, device)
    if train is not config.train:
        log.info(
            "to fit the memory: --batch-size %d --accumulation-steps %d, which learns the same",
            train.batch_size, train.accumulation_steps,
        )  # fmt: skip
    return dataclasses.replace(config, train=train)


def _begin_with(run: RunFolder, trainer: Trainer) -> None:
    load_weights(trainer.model, run.checkpoints.load("best", with_optimizer=False))
    loss = trainer.evaluate().loss
    log.info("begun with the model of %s: validation loss %.4f on this text", run.name, loss)


def _build_trainer(
    config: RunConfig, token_file: TokenFile, begun: RunFolder | None = None, resumed: bool = False
) -> Trainer:
    check_sequences(config)
    device, is_new = choose_device(config.train.device), config.from_run is None and not resumed
    check_memory(config.model, config.train, device, shape_is_free=is_new)
    torch.manual_seed(config.train.seed)
    model = GPTModel(config.model)
    tokens, seed = token_file.tokens(), config.train.seed
    T = sequence_length(config.model, config.train)
    batch_size = config.train.batch_size * config.train.accumulation_steps
    return Trainer(
        model,
        TextDataset(tokens, token_file.train_ranges, T, batch_size, seed),
        tokens,
        token_file.val_ranges,
        config.train,
        byte_counts=token_file.tokenizer.byte_counts(),
        provenance=provenance_of(token_file, model.count_parameters(), begun),
    )


# --------------------------------------------------------------- a run that continues


def resume(request: Request) -> Session:
    """A run at its last good checkpoint, with the settings that may change changed.

    Raises:
        InputError, ConfigError: no such run, another text, or another model.
        CheckpointError: no checkpoint is good.
    """
    resolved = resolve(**build_layers(request))
    config = resolved.config.validate()
    run = find_run(request.runs_dir, request.resume)
    newest = (
        run.checkpoints.newest_good()
    )  # its copy is verified; the run's own may have been edited since
    saved = run.config if newest is None else from_toml(run.checkpoints.folder(newest) / CONFIG)
    _check_unchanged(run, saved, config)
    token_file = own_text(run, config, run.tokenizer)
    at_beginning = config.from_run is not None and not run.checkpoints.steps()
    begun = _begun(request, config) if at_beginning else None
    config = with_saved_threads(resolved, run.checkpoints.metadata())
    if resolved.chosen("epochs"):
        config = dataclasses.replace(config, train=steps_of_epochs(config, token_file))
    trainer = _build_trainer(config, token_file, begun, resumed=True)
    if begun is not None:
        _begin_with(begun, trainer)
    trainer.attach(run)
    trainer.resume()
    if config.train.max_steps < trainer.step:
        raise ConfigError(
            f"max_steps {config.train.max_steps}: {run.name} has done {trainer.step} steps "
            "already; give more"
        )
    text = _as_files(config.text, token_file)
    run.set_config(dataclasses.replace(config, train=trainer.config, text=text))
    _announce_schedule(trainer.step, saved.train, config.train)
    return Session(trainer, token_file)


def _check_unchanged(run: RunFolder, saved: RunConfig, config: RunConfig) -> None:
    """Announces other settings than the saved ones; refuses those of another model."""
    new, old = flat_values(config), flat_values(saved)
    changed = [name for name in FIXED if new[name] != old[name]]
    if changed:
        what = ", ".join(f"{name} {old[name]} → {new[name]}" for name in changed)
        hint = " (--sequence-length sets that of the training sequences)"
        raise ConfigError(
            f"cannot resume {run.name} with another model or tokenizer: {what}"
            f"{hint if 'context_length' in changed else ''}; leave these settings out, or start a "
            "new run"
        )
    for name, value in new.items():
        if value != old[name] and name not in (*MOVABLE, "threads"):  # `provenance` tells of them
            log.warning("%s changes from %s to %s", name, old[name], value)


def _announce_schedule(step: int, old: TrainConfig, new: TrainConfig) -> None:
    """Tells what another `max_steps` does to the rest of the run."""
    if old.max_steps == new.max_steps:
        return
    rates = [train.learning_rate * learning_rate_factor(step, train) for train in (old, new)]
    log.warning(
        "from step %d on the %s schedule is that of %d steps: the learning rate continues at "
        "%.3g, where it would have been %.3g",
        step, new.schedule, new.max_steps, rates[1], rates[0],
    )  # fmt: skip
