"""Room: batches → a trained model: the loop (`Trainer`).

Knows nothing of text, of sampling, or of how progress is shown: that is an `Observer`'s.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from myllm.acceleration import checked_device, compile_blocks, compiling_pays, uncompiled
from myllm.checkpoint import Checkpoint, RunFolder
from myllm.config import TrainConfig
from myllm.dataset import TextDataset, batch_number
from myllm.debug import StepProfiler
from myllm.device import (
    autocast,
    choose_device,
    choose_dtype,
    host_copies,
    out_of_memory,
    use_fast_products,
)
from myllm.errors import (
    CheckpointError,
    InputError,
    Interrupted,
    NonFiniteError,
)
from myllm.evaluate import Evaluation, evaluate
from myllm.model import GPTModel
from myllm.optim import load_optimizer_tensors, optimizer_tensors
from myllm.progress import Metrics, Progress
from myllm.saving import BackgroundSaver
from myllm.signals import Deferred
from myllm.update import Updater
from myllm.weights import load_weights, model_tensors

log = logging.getLogger(__name__)

MOST_ROLLBACKS = 3
ROLLBACK_RATE = 0.5  # what the learning rate is multiplied with after the first rollback


class Observer:
    """What is told of a training run. The methods do nothing; override what you need."""

    def on_start(self, trainer: Trainer) -> None:
        """The loop begins, at `trainer.step`."""

    def on_step(self, step: int, loss: float, tokens_per_second: float) -> None:
        """A step is done."""

    def on_evaluation(self, record: Metrics, is_best: bool) -> None:
        """The validation loss has been measured and the checkpoint saved."""


class Trainer:
    """Trains a model: steps, evaluations, checkpoints."""

    def __init__(
        self,
        model: GPTModel,
        train_data: TextDataset,
        val_tokens: np.ndarray | None = None,
        val_ranges: Sequence[tuple[int, int]] | None = None,
        config: TrainConfig = TrainConfig(),
        run: RunFolder | None = None,
        byte_counts: np.ndarray | None = None,
        observer: Observer | None = None,
        fingerprint: dict[str, str] | None = None,
    ) -> None:
        """
        Args:
            model: what to train; moved to the device.
            train_data: its batches hold `batch_size × accumulation_steps` windows.
            val_tokens: ids (n,) that evaluations measure; none: no evaluations.
            val_ranges: the parts of them to measure; all by default.
            config: how to train.
            run: where checkpoints and metrics go; none: nowhere.
            byte_counts: bytes of each token (V,), for bits per byte.
            observer: is told of steps and evaluations.
            fingerprint: hashes that a checkpoint must share to be resumed, by what they are of.

        Raises:
            ConfigError: a value out of its limits, or a device that is not there.
            InputError: `train_data` has another batch size.
        """
        self.config = config = config.validate()
        expected = config.batch_size * config.accumulation_steps
        if train_data.batch_size != expected:
            raise InputError(
                f"the dataset's batches have {train_data.batch_size} windows, but batch_size × "
                f"accumulation_steps is {expected}"
            )
        self.device = checked_device(
            model, train_data.batch(0)[0], choose_device(config.device), config.device is not None
        )
        self.dtype = choose_dtype(self.device, config.dtype)
        use_fast_products(self.device)
        self.model = model.to(self.device)
        self.model.activation_checkpointing = config.activation_checkpointing
        self.train_data, self.val_tokens = train_data, val_tokens
        if config.compile is None:  # decided once: a resumed run does as it did before
            flops = model.estimate_flops_per_token() * self._tokens_per_step * config.max_steps
            self.config = replace(config, compile=compiling_pays(self.device, flops))
        n_val = 0 if val_tokens is None else len(val_tokens)
        self.val_ranges = [(0, n_val)] if val_ranges is None else list(val_ranges)
        vocab_size = model.config.vocab_size
        self.byte_counts = np.ones(vocab_size, int) if byte_counts is None else byte_counts
        self.observer = observer or Observer()
        self.fingerprint = fingerprint or {}
        self.updater = Updater(self.model, self.config, self.device, self.dtype)
        self.progress = Progress()
        self.profiler = StepProfiler(config.profile)
        self._tensorboard: Any = None
        self._saver: BackgroundSaver | None = None
        self.run: RunFolder | None = None
        if run is not None:
            self.attach(run)

    def attach(self, run: RunFolder) -> None:
        """Saves into `run` from now on.

        Raises:
            InputError: TensorBoard is asked for and not installed.
        """
        self.run = run
        waits = self.config.on_disk_full == "wait"
        self._saver = BackgroundSaver(run, self.config.keep, waits)
        self.profiler.trace_path = run.path / "trace.json"
        if self.config.tensorboard:
            self._tensorboard = _open_tensorboard(run)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step

    def train(self) -> Progress:
        """Trains until `max_steps`, or until `patience` runs out.

        Raises:
            NonFiniteError: the loss or a gradient is not finite; the update was not made.
            OutOfMemoryError: the device has too little memory.
            Interrupted: a signal came; the step was finished and saved.
            DiskFullError: there was no room to save; what was saved earlier is intact.
        """
        if self.run is not None:
            self.run.lock()
        with Deferred(self._stop_waiting) as signals, self.profiler:
            try:
                self._prepare()
                self._loop(signals)
            finally:
                if self._saver is not None and not signals.twice:
                    self._saver.join()
                if self.run is not None:
                    self.run.unlock()
        return self.progress

    def _prepare(self) -> None:
        if self.config.compile:
            tokens = self.train_data.batch(self.step)[0][: self.config.batch_size]
            precision = autocast(self.device, self.dtype)
            compile_blocks(self.model.train(), tokens.to(self.device), precision)
        if self.run is not None and self.config.on_nonfinite == "rollback":
            if not self.run.steps():
                self.save()  # something to roll back to
        self.observer.on_start(self)

    def _loop(self, signals: Deferred) -> None:
        while self.step < self.config.max_steps and not self._out_of_patience():
            if signals.received is not None:
                self._stop(signals.received)
            self.profiler.step()
            start = time.perf_counter()
            number = batch_number(self.step, self.progress.skipped)
            tokens, targets = self.train_data.batch(number)
            try:
                loss, grad_norm = self.updater.update(tokens, targets, self.step)
                seconds = time.perf_counter() - start
                self._count_step(loss, seconds)
                if self._evaluation_is_due():
                    self._evaluate_and_save(grad_norm, self._tokens_per_step / seconds)
            except NonFiniteError as error:
                self._roll_back(error, number)
            if self.updater.config is not self.config:
                self._keep_smaller_parts()

    def _roll_back(self, error: NonFiniteError, number: int) -> None:
        """Goes back to the last good checkpoint, to leave out the batch that led to `error`.

        Raises:
            NonFiniteError: that is not wanted, or was done too often.
        """
        if self.run is None:
            raise error
        shown = f"myllm inspect-batch {self.run.resume_name} {number} shows the batch"
        if self.config.on_nonfinite != "rollback":
            raise NonFiniteError(f"{error}; {shown}") from None
        skipped = [*self.progress.skipped, number]
        if len(skipped) > MOST_ROLLBACKS:
            raise NonFiniteError(
                f"given up after {MOST_ROLLBACKS} rollbacks: {error}; {shown}"
            ) from None
        assert self._saver is not None
        self._saver.join()
        failed_step = self.step
        self._restore(self.run.load("last"))
        self.progress.skipped, self.progress.rate_scale = skipped, ROLLBACK_RATE
        self.updater.set_schedule(self.step, ROLLBACK_RATE)
        log.warning("%s", str(error).partition(";")[0])
        log.warning(
            "rolled back to step %d; batch %d is left out, the learning rate is %g of what it was",
            self.step, skipped[-1], ROLLBACK_RATE,
        )  # fmt: skip
        event = {"step": self.step, "event": "rollback", "failed_step": failed_step}
        event |= {"left_out_batch": skipped[-1], "learning_rate_scale": ROLLBACK_RATE}
        self.run.append_metrics(event)

    def _keep_smaller_parts(self) -> None:
        """Notes the parts that fit the memory, for resumed runs, too."""
        self.config = self.updater.config
        if self.run is not None:
            kept = self.run.config
            train = replace(
                kept.train,
                batch_size=self.config.batch_size,
                accumulation_steps=self.config.accumulation_steps,
            )
            self.run.set_config(replace(kept, train=train))

    def _stop_waiting(self) -> None:
        if self._saver is not None:
            self._saver.give_up()

    def _count_step(self, loss: float, seconds: float) -> None:
        p = self.progress
        p.step += 1
        p.elapsed_s += seconds
        p.loss_sum += loss
        p.loss_count += 1
        if (z_score := p.watch.add(loss)) is not None:
            log.warning(
                "step %d: the loss rose to %.3f, %.1f standard deviations above its mean of %.3f",
                p.step, loss, z_score, p.watch.mean,
            )  # fmt: skip
        self.observer.on_step(p.step, loss, self._tokens_per_step / seconds)

    @property
    def _tokens_per_step(self) -> int:
        return self.train_data.batch_size * self.train_data.context_length

    def _evaluation_is_due(self) -> bool:
        at_end = self.step == self.config.max_steps
        return at_end or self.step % self.config.evaluation_steps == 0

    @uncompiled()
    def _evaluate_and_save(self, grad_norm: float, tokens_per_second: float) -> None:
        p, start = self.progress, time.perf_counter()
        measured = self.evaluate()
        is_best = measured.loss < p.best_loss or self.val_tokens is None
        if is_best:
            p.best_loss, p.best_bits_per_byte = measured.loss, measured.bits_per_byte
            p.best_step, p.evaluations_since_best = p.step, 0
        else:
            p.evaluations_since_best += 1
        p.elapsed_s += time.perf_counter() - start
        record = Metrics(
            step=p.step,
            elapsed_s=round(p.elapsed_s, 3),
            train_loss=p.loss_sum / p.loss_count,
            val_loss=measured.loss,
            val_bits_per_byte=measured.bits_per_byte,
            learning_rate=self.updater.learning_rate,
            grad_norm=grad_norm,
            tokens_per_second=round(tokens_per_second, 1),
        )
        p.loss_sum, p.loss_count = 0.0, 0
        if self.run is not None:
            self.run.append_metrics(asdict(record))
        if self._tensorboard is not None:
            for name, value in asdict(record).items():
                self._tensorboard.add_scalar(name, value, p.step)
            self._tensorboard.flush()
        self.save(is_best)
        self.observer.on_evaluation(record, is_best)

    def evaluate(self) -> Evaluation:
        """The loss over the whole validation split; NaN where there is none."""
        if self.val_tokens is None:
            return Evaluation(math.nan, math.nan, 0)
        n_windows = 2 * self.config.batch_size
        precision = autocast(self.device, self.dtype)
        while True:
            try:
                return evaluate(
                    self.model, self.val_tokens, self.val_ranges, self.byte_counts, n_windows,
                    precision,
                )  # fmt: skip
            except RuntimeError as error:
                if n_windows == 1 or out_of_memory(error, "") is None:
                    raise
            n_windows //= 2

    def save(self, is_best: bool = False) -> None:
        """Begins to save a checkpoint of the present step, if there is a run folder.

        Training may go on meanwhile; `train` returns when all is saved.

        Raises:
            NonFiniteError: a weight is not finite; nothing is saved.
            DiskFullError, InputError: the save before this one failed.
        """
        if self.run is None or self._saver is None:
            return
        state = {"progress": self.progress.to_json(), "scaler": self.updater.scaler.state_dict()}
        facts = {
            **self.fingerprint,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "world_size": 1,
        }
        model = host_copies(model_tensors(self.model))
        bad = [name for name, tensor in model.items() if not tensor.isfinite().all()]
        if bad:
            raise NonFiniteError(
                f"step {self.step}: {bad[0]} holds NaN or infinity, so it is not saved; earlier "
                f"checkpoints are intact; try --learning-rate {self.config.learning_rate / 3:.2g}"
            )
        optimizer = host_copies(optimizer_tensors(self.model, self.updater.optimizer))
        files = self.run.small_files()
        self._saver.save(Checkpoint(self.step, model, optimizer, state, facts, files), is_best)

    def resume(self) -> None:
        """Takes up the run where its last good checkpoint left it, or at its beginning.

        Raises:
            CheckpointError: no checkpoint is good.
            InputError: it was trained on another text or tokenizer, or is in use.
        """
        assert self.run is not None
        self.run.lock()
        if not self.run.steps():
            log.info("%s has no checkpoint yet: it begins at step 0", self.run.name)
            self.run.restore_files(None)
            return
        checkpoint = self.run.load("last")
        for what, wanted in self.fingerprint.items():
            saved = str(checkpoint.facts.get(what))
            if saved != wanted:
                raise InputError(
                    f"cannot resume {self.run.name}: its {what} was another one "
                    f"({saved[:12]}…, now {wanted[:12]}…); bring back the old {what}, or start a "
                    "new run"
                )
        now = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        for what, value in now.items():
            if checkpoint.facts.get(what) != value:
                log.warning(
                    "%s: %s when it was saved, %s now; the run goes on, though not bit for bit as "
                    "it would have", what, checkpoint.facts.get(what), value,
                )  # fmt: skip
        self._restore(checkpoint)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Puts weights, optimizer, counters and metrics back to a checkpoint of the run."""
        assert self.run is not None
        load_weights(self.model, checkpoint)
        self.model.zero_grad(set_to_none=True)  # of a step that led to NaN
        self.updater.optimizer.state.clear()
        load_optimizer_tensors(self.model, self.updater.optimizer, checkpoint.optimizer)
        try:
            self.progress = Progress.from_json(checkpoint.state["progress"])
            if self.updater.scaler.is_enabled() and checkpoint.state["scaler"]:
                self.updater.scaler.load_state_dict(checkpoint.state["scaler"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.run.folder(checkpoint.step)} was saved by another version: {error}"
            ) from None
        self.updater.set_schedule(self.step, self.progress.rate_scale)
        self.run.restore_files(checkpoint)

    def _out_of_patience(self) -> bool:
        patience = self.config.patience
        if patience is None or self.progress.evaluations_since_best < patience:
            return False
        log.info(
            "stopping early: no better validation loss in %d evaluations (--patience)", patience
        )
        return True

    def _stop(self, signal_number: int) -> None:
        self.save()
        where = f"stopped at step {self.step}"
        if self.run is not None and self._saver is not None:
            self._saver.join()
            where += f" and saved; go on with: myllm train --resume {self.run.resume_name}"
        raise Interrupted(where, signal_number)


def _open_tensorboard(run: RunFolder) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "--tensorboard needs the package of that name: pip install tensorboard"
        ) from None
    return SummaryWriter(str(run.path))


if __name__ == "__main__":  # python -m myllm.train is myllm train
    import sys

    from myllm.cli import main

    raise SystemExit(main(["train", *sys.argv[1:]]))
