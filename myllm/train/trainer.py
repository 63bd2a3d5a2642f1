"""Room: batches → a trained model: the loop (`Trainer`).

Knows nothing of text, of sampling, or of how progress is shown: that is an `Observer`'s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from myllm.config import TrainConfig
from myllm.data.dataset import TextDataset, batch_number
from myllm.errors import CheckpointError, InputError, Interrupted, NonFiniteError
from myllm.kernels.compiled import uncompiled
from myllm.model.gpt import GPTModel
from myllm.runs.checkpoint import Checkpoint, is_finite
from myllm.runs.folder import RunFolder
from myllm.runs.metrics import Metrics
from myllm.runs.weights import load_weights, model_tensors
from myllm.system.device import (
    autocast,
    choose_device,
    choose_dtype,
    host_copies,
    use_fast_products,
)
from myllm.system.machine import keep_freed_memory
from myllm.system.progress import stage
from myllm.system.signals import Deferred
from myllm.train.evaluate import Evaluation, Validation
from myllm.train.kernels import checked_device, fastest_kernels, use_kernels
from myllm.train.loss import LossFunction, language_loss
from myllm.train.observer import Observer, Observers, TensorBoard
from myllm.train.optim import load_optimizer_tensors, optimizer_tensors
from myllm.train.profiler import StepProfiler
from myllm.train.provenance import Provenance
from myllm.train.saver import BackgroundSaver
from myllm.train.state import TrainState
from myllm.train.step import StepResult, TrainStep

log = logging.getLogger(__name__)

MAX_ROLLBACKS = 3
ROLLBACK_RATE = 0.5  # what the learning rate is multiplied with after the first rollback


class Trainer:
    """Trains a model: steps, evaluations, checkpoints."""

    run: RunFolder | None = None
    _saver: BackgroundSaver | None = None
    _tensorboard: Sequence[Observer] = ()

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
        provenance: Provenance | None = None,
        loss: LossFunction = language_loss,
    ) -> None:
        """
        Args:
            model: what to train; moved to the device.
            train_data: its batches hold `batch_size × accumulation_steps` sequences.
            val_tokens: ids (n,) that evaluations measure; none: no evaluations.
            val_ranges: the parts of them to measure; all by default.
            config: how to train.
            run: where checkpoints and metrics go; none: nowhere.
            byte_counts: bytes of each token (V,), for bits per byte.
            observer: is told of steps and evaluations.
            provenance: what checkpoints tell of the text.
            loss: what training makes small.

        Raises:
            ConfigError, InputError: a wrong value, device or batch size.
        """
        self.config = config = config.validate()
        _check_batch_size(train_data, config)
        device, named = choose_device(config.device), config.device is not None
        self.device = checked_device(model, train_data.batch(0), device, named)
        self.dtype = choose_dtype(self.device, config.dtype)
        use_fast_products(self.device)
        self.model = model.to(self.device)
        self.model.activation_checkpointing = config.activation_checkpointing
        self.train_data = train_data
        self.validation: Validation | None = None
        if val_tokens is not None:
            T = train_data.context_length
            self.validation = Validation(model, val_tokens, val_ranges, byte_counts, T)
        self.observer = observer or Observer()
        self.provenance = provenance or Provenance()
        self.train_step = TrainStep(self.model, self.config, self.device, self.dtype, loss)
        self.state = TrainState()
        self.profiler = StepProfiler(config.profile)
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
            self._tensorboard = [TensorBoard(run.path)]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.state.step

    def train(self) -> TrainState:
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
        return self.state

    def _prepare(self) -> None:
        if self.step < self.config.max_steps:
            keep_freed_memory()
            self._take_up_kernels()
        if self.run is not None and self.config.on_nonfinite == "rollback":
            if not self.run.checkpoints.steps():
                self.save()  # something to roll back to
        with uncompiled():
            self._told.on_start(self.step, self.config.max_steps)

    def _take_up_kernels(self) -> None:
        """Those of the configuration; where it names none, the fastest, which it then names: a
        resumed run goes on as it began."""
        batch = self.train_data.batch(self.step).split(self.config.accumulation_steps)[0]
        batch, model = batch.to(self.device), self.model.train()
        precision = autocast(self.device, self.dtype)
        name = self.config.kernels
        with stage("making kernels ready"):
            if name is None:
                per_token = model.estimate_flops_per_token(self.train_data.context_length)
                flops = per_token * self._tokens_per_step * (self.config.max_steps - self.step)
                name = fastest_kernels(model, batch, self.dtype, precision, flops)
                self._keep(kernels=name)
            use_kernels(name, model, batch, self.dtype, precision)

    def _loop(self, signals: Deferred) -> None:
        while self.step < self.config.max_steps and not self._out_of_patience():
            if signals.received is not None:
                self._stop(signals.received)
            if (name := signals.save_asked()) is not None and self._save_and_wait():
                log.warning("%s: saved at step %d; training goes on", name, self.step)
            self.profiler.step()
            start = time.perf_counter()
            number = batch_number(self.step, self.state.skipped)
            batch = self.train_data.batch(number)
            try:
                result = self.train_step(batch, self.step)
                seconds = time.perf_counter() - start
                self._count_step(result, seconds)
                if self._evaluation_is_due():
                    self._evaluate_and_save(result.grad_norm, self._tokens_per_step / seconds)
            except NonFiniteError as error:
                self._roll_back(error, number)
            if self.train_step.config is not self.config:
                self._keep_smaller_micro_batches()

    def _roll_back(self, error: NonFiniteError, number: int) -> None:
        """Goes back to the last good checkpoint, to leave out the batch that led to `error`.

        Raises:
            NonFiniteError: that is not wanted, or was done too often.
        """
        if self.run is None:
            raise error
        shown = f"its batch: myllm inspect-batch {self.run.resume_name} {number}"
        if self.config.on_nonfinite != "rollback":
            raise NonFiniteError(f"{error}; {shown}") from None
        skipped = [*self.state.skipped, number]
        if len(skipped) > MAX_ROLLBACKS:
            raise NonFiniteError(
                f"given up after {MAX_ROLLBACKS} rollbacks: {error}; {shown}"
            ) from None
        assert self._saver is not None
        self._saver.join()
        failed_step = self.step
        self._restore(self.run.checkpoints.load("last"))
        self.state.skipped, self.state.rate_scale = skipped, ROLLBACK_RATE
        self.train_step.set_schedule(self.step, ROLLBACK_RATE)
        log.warning("%s", str(error).partition(";")[0])
        log.warning(
            "rolled back to step %d; batch %d is left out, the learning rate is %g of what it was",
            self.step, skipped[-1], ROLLBACK_RATE,
        )  # fmt: skip
        event = {"step": self.step, "event": "rollback", "failed_step": failed_step}
        event |= {"left_out_batch": skipped[-1], "learning_rate_scale": ROLLBACK_RATE}
        self.run.append_metrics(event)

    def _keep_smaller_micro_batches(self) -> None:
        """Those that fit the memory, for resumed runs, too."""
        fitting = self.train_step.config
        self._keep(batch_size=fitting.batch_size, accumulation_steps=fitting.accumulation_steps)

    def _keep(self, **changes: Any) -> None:
        """Changes the configuration, also that of the run folder."""
        self.config = replace(self.config, **changes)
        self.train_step.config = self.config
        if self.run is not None:
            kept = self.run.config
            self.run.set_config(replace(kept, train=replace(kept.train, **changes)))

    def _stop_waiting(self) -> None:
        if self._saver is not None:
            self._saver.give_up()

    def _count_step(self, result: StepResult, seconds: float) -> None:
        state, loss = self.state, result.loss
        state.step += 1
        state.elapsed_s += seconds
        state.nats += loss * result.n_targets
        state.n_targets += result.n_targets
        if (z_score := state.watch.add(loss)) is not None:
            log.warning(
                "step %d: the loss rose to %.3f, %.1f standard deviations above its mean of %.3f",
                state.step, loss, z_score, state.watch.mean,
            )  # fmt: skip
        self._told.on_step(state.step, loss, self._tokens_per_step / seconds)

    @property
    def _told(self) -> Observer:
        """Whoever is told of the run."""
        return Observers([*self._tensorboard, self.observer])

    @property
    def _tokens_per_step(self) -> int:
        return self.train_data.batch_size * self.train_data.context_length

    def _evaluation_is_due(self) -> bool:
        at_end = self.step == self.config.max_steps
        return at_end or self.step % self.config.evaluation_steps == 0

    @uncompiled()
    def _evaluate_and_save(self, grad_norm: float, tokens_per_second: float) -> None:
        state, start = self.state, time.perf_counter()
        measured = self.evaluate()
        is_best = measured.loss < state.best_loss or self.validation is None
        state.count_evaluation(measured.loss, measured.bits_per_byte, is_best)
        state.elapsed_s += time.perf_counter() - start
        record = Metrics(
            step=state.step,
            elapsed_s=round(state.elapsed_s, 3),
            train_loss=state.take_train_loss(),
            val_loss=measured.loss,
            val_bits_per_byte=measured.bits_per_byte,
            learning_rate=self.train_step.learning_rate,
            grad_norm=grad_norm,
            tokens_per_second=round(tokens_per_second, 1),
        )
        if self.run is not None:
            self.run.append_metrics(asdict(record))
        self.save(is_best)
        self._told.on_evaluation(record, is_best)

    def evaluate(self) -> Evaluation:
        """The loss over the whole validation split; NaN where there is none."""
        if self.validation is None:
            return Evaluation.nothing()
        precision = autocast(self.device, self.dtype)
        return self.validation.measure(self.model, 2 * self.config.batch_size, precision)

    def save(self, is_best: bool = False) -> None:
        """Begins to save a checkpoint of the present step, if there is a run folder.

        Training may continue meanwhile; `train` returns when all is saved.

        Raises:
            NonFiniteError: a weight is not finite; nothing is saved.
            DiskFullError, InputError: the save before this one failed.
        """
        if self.run is None or self._saver is None:
            return
        state = {"progress": self.state.to_json(), "scaler": self.train_step.scaler.state_dict()}
        metadata = self.provenance.metadata(self.device, self.dtype)
        model = host_copies(model_tensors(self.model))
        bad = [name for name, tensor in model.items() if not is_finite(tensor)]
        if bad:
            raise NonFiniteError(
                f"step {self.step}: {bad[0]} holds NaN or infinity, so it is not saved; earlier "
                f"checkpoints are intact; try --learning-rate {self.config.learning_rate / 3:.2g}"
            )
        optimizer = host_copies(optimizer_tensors(self.model, self.train_step.optimizer))
        files = self.run.small_files()
        self._saver.save(Checkpoint(self.step, model, optimizer, state, metadata, files), is_best)

    def resume(self) -> None:
        """Takes up the run where its last good checkpoint left it, or at its beginning.

        Raises:
            CheckpointError: no checkpoint is good.
            InputError: it was trained on another text or tokenizer, or is in use.
        """
        assert self.run is not None
        self.run.lock()
        if not self.run.checkpoints.steps():
            log.info("%s has no checkpoint yet: it begins at step 0", self.run.name)
            self.run.restore_files(None)
            return
        checkpoint = self.run.checkpoints.load("last")
        self.provenance.take_up(checkpoint, self.run.name)
        self._restore(checkpoint)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Puts weights, optimizer, counters and metrics back to a checkpoint of the run."""
        assert self.run is not None
        load_weights(self.model, checkpoint)
        self.model.zero_grad(set_to_none=True)  # of a step that led to NaN
        self.train_step.optimizer.state.clear()
        load_optimizer_tensors(self.model, self.train_step.optimizer, checkpoint.optimizer)
        try:
            self.state = TrainState.from_json(checkpoint.state["progress"], self._tokens_per_step)
            if self.train_step.scaler.is_enabled() and checkpoint.state["scaler"]:
                self.train_step.scaler.load_state_dict(checkpoint.state["scaler"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.run.checkpoints.folder(checkpoint.step)} was saved by another version: "
                f"{error}"
            ) from None
        self.train_step.set_schedule(self.step, self.state.rate_scale)
        self.run.restore_files(checkpoint)

    def _out_of_patience(self) -> bool:
        patience = self.config.patience
        if not patience or self.state.evaluations_since_best < patience:
            return False
        log.info(
            "stopped early, at step %d of %d: no better validation loss since step %d "
            "(--patience %d; 0 would go on)",
            self.step, self.config.max_steps, self.state.best_step, patience,
        )  # fmt: skip
        return True

    def _stop(self, signal_number: int) -> None:
        where = f"stopped at step {self.step}"
        if self._save_and_wait():
            assert self.run is not None
            where += f" and saved; continue with: myllm train --resume {self.run.resume_name}"
        raise Interrupted(where, signal_number)

    def _save_and_wait(self) -> bool:
        """Whether there is a run to save into."""
        if self._saver is None:
            return False
        self.save()
        self._saver.join()
        return True


def _check_batch_size(train_data: TextDataset, config: TrainConfig) -> None:
    expected = config.batch_size * config.accumulation_steps
    if train_data.batch_size != expected:
        raise InputError(
            f"the dataset's batches have {train_data.batch_size} sequences, but batch_size × "
            f"accumulation_steps is {expected}"
        )
