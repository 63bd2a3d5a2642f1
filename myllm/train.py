"""Room: batches → a trained model: the loop (`Trainer`).

Knows nothing of text, of sampling, or of how progress is shown: that is an `Observer`'s.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from myllm.acceleration import checked_device, compile_blocks, compiling_pays, uncompiled
from myllm.checkpoint import Checkpoint, RunFolder, load_weights, model_tensors
from myllm.config import TrainConfig
from myllm.dataset import TextDataset
from myllm.debug import StepProfiler, nonfinite_report
from myllm.device import (
    autocast,
    choose_device,
    choose_dtype,
    out_of_memory,
    use_fast_products,
)
from myllm.errors import InputError, Interrupted, NonFiniteError
from myllm.evaluate import Evaluation, evaluate, language_loss
from myllm.model import GPTModel
from myllm.optim import (
    build_optimizer,
    get_scheduler,
    load_optimizer_tensors,
    optimizer_tensors,
)

log = logging.getLogger(__name__)


class Observer:
    """What is told of a training run. The methods do nothing; override what you need."""

    def on_start(self, trainer: Trainer) -> None:
        """The loop begins, at `trainer.step`."""

    def on_step(self, step: int, loss: float, tokens_per_second: float) -> None:
        """A step is done."""

    def on_evaluation(self, record: Metrics, is_best: bool) -> None:
        """The validation loss has been measured and the checkpoint saved."""


@dataclass(frozen=True)
class Metrics:
    """A line of `metrics.jsonl`. Losses are in nats per token, times in seconds."""

    step: int
    elapsed_s: float
    train_loss: float
    val_loss: float
    val_bits_per_byte: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float


@dataclass
class Progress:
    """The counters that a checkpoint keeps, so that a resumed run goes on as if never stopped."""

    step: int = 0
    elapsed_s: float = 0.0
    best_loss: float = math.inf
    best_bits_per_byte: float = math.inf
    best_step: int = 0
    evaluations_since_best: int = 0
    loss_sum: float = 0.0  # of the steps since the last evaluation
    loss_count: int = 0


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
        self.config = config.validate()
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
        self.model.recompute = config.activation_checkpointing
        self.train_data, self.val_tokens = train_data, val_tokens
        n_val = 0 if val_tokens is None else len(val_tokens)
        self.val_ranges = [(0, n_val)] if val_ranges is None else list(val_ranges)
        vocab_size = model.config.vocab_size
        self.byte_counts = np.ones(vocab_size, int) if byte_counts is None else byte_counts
        self.observer = observer or Observer()
        self.fingerprint = fingerprint or {}
        self.optimizer = build_optimizer(model, config)
        self.scheduler = get_scheduler(self.optimizer, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.progress = Progress()
        self.profiler = StepProfiler(config.profile)
        self._signal: int | None = None
        self._tensorboard: Any = None
        self.run: RunFolder | None = None
        if run is not None:
            self.attach(run)

    def attach(self, run: RunFolder) -> None:
        """Saves into `run` from now on.

        Raises:
            InputError: TensorBoard is asked for and not installed.
        """
        self.run = run
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
            Interrupted: SIGINT or SIGTERM; the step was finished and saved.
        """
        self._compile_if_it_pays()
        self.observer.on_start(self)
        with self._signals_deferred(), self.profiler:
            while self.step < self.config.max_steps and not self._out_of_patience():
                self.profiler.step()
                start = time.perf_counter()
                loss, grad_norm = self._update(*self.train_data.batch(self.step))
                seconds = time.perf_counter() - start
                self._count_step(loss, seconds)
                if self._evaluation_is_due():
                    self._evaluate_and_save(grad_norm, self._tokens_per_step / seconds)
                if self._signal is not None:
                    self._stop(self._signal)
        return self.progress

    def _update(self, tokens: Tensor, targets: Tensor) -> tuple[float, float]:
        """One optimizer step from a batch (k·B, T); returns loss and gradient norm."""
        self.model.train()
        # dropout is a function of seed and step: no generator state has to be kept
        torch.manual_seed((self.config.seed << 32) + self.step)
        k = self.config.accumulation_steps
        total = torch.zeros((), device=self.device)
        with self._memory_watched(), self._anomaly_watched():
            for inputs, labels in zip(tokens.chunk(k), targets.chunk(k)):
                inputs, labels = (t.to(self.device, non_blocking=True) for t in (inputs, labels))
                with autocast(self.device, self.dtype):
                    loss = language_loss(self.model, inputs, labels) / k
                self.scaler.scale(loss).backward()
                total += loss.detach()
            self.scaler.unscale_(self.optimizer)
            limit = self.config.grad_clip or math.inf
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        values = total.item(), norm.item()
        self._check_finite(*values)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.model.zero_grad(set_to_none=True)
        return values

    def _check_finite(self, loss: float, grad_norm: float) -> None:
        """Raises `NonFiniteError`; with a scaler, an infinite gradient only lowers its scale."""
        scaling = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        if math.isfinite(loss) and (math.isfinite(grad_norm) or scaling):
            return
        rate = self.scheduler.get_last_lr()[0]
        raise NonFiniteError(
            f"step {self.step}: loss {loss}, gradient norm {grad_norm}; the update was not made; "
            f"{nonfinite_report(self.model)}; try --learning-rate {rate / 3:.2g} (now {rate:.2g}),"
            " --dtype float32, a smaller --grad-clip, or --detect-anomaly to find the operation"
        )

    def _count_step(self, loss: float, seconds: float) -> None:
        p = self.progress
        p.step += 1
        p.elapsed_s += seconds
        p.loss_sum += loss
        p.loss_count += 1
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
            learning_rate=float(self.scheduler.get_last_lr()[0]),
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
        return evaluate(
            self.model,
            self.val_tokens,
            self.val_ranges,
            self.byte_counts,
            2 * self.config.batch_size,
            autocast(self.device, self.dtype),
        )

    def save(self, is_best: bool = False) -> None:
        """Saves a checkpoint of the present step, if there is a run folder."""
        if self.run is None:
            return
        progress: dict[str, Any] = asdict(self.progress)
        if math.isinf(self.progress.best_loss):  # JSON has no infinity
            progress |= {"best_loss": None, "best_bits_per_byte": None}
        state = {
            "progress": progress,
            "scaler": self.scaler.state_dict(),
            "fingerprint": self.fingerprint,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        tensors = optimizer_tensors(self.model, self.optimizer)
        checkpoint = Checkpoint(self.step, model_tensors(self.model), tensors, state)
        self.run.save(checkpoint, is_best, self.config.keep)

    def resume(self) -> None:
        """Takes up the run where its last good checkpoint left it.

        Raises:
            CheckpointError: there is no good checkpoint.
            InputError: it was trained on another text or tokenizer, or no checkpoint exists.
        """
        assert self.run is not None
        checkpoint = self.run.load("last")
        saved = checkpoint.state.get("fingerprint", {})
        for what, value in self.fingerprint.items():
            if saved.get(what) != value:
                raise InputError(
                    f"cannot resume {self.run.name}: its {what} was another one "
                    f"({str(saved.get(what))[:12]}…, now {value[:12]}…); bring back the old "
                    f"{what}, or start a new run"
                )
        load_weights(self.model, checkpoint)
        load_optimizer_tensors(self.model, self.optimizer, checkpoint.optimizer)
        progress = {k: v for k, v in checkpoint.state["progress"].items() if v is not None}
        self.progress = Progress(**progress)
        self.scheduler = get_scheduler(self.optimizer, self.config, start_step=self.step)
        if self.scaler.is_enabled() and checkpoint.state.get("scaler"):
            self.scaler.load_state_dict(checkpoint.state["scaler"])
        self.run.cut_metrics(self.step)

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
        if self.run is not None:
            where += f" and saved; go on with: myllm train --resume {self.run.resume_name}"
        raise Interrupted(where, signal_number)

    @contextmanager
    def _signals_deferred(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the loop after the step; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: Any) -> None:
            if self._signal is not None:
                raise Interrupted("stopped at once; the last checkpoint is intact", number)
            self._signal = number
            log.warning("finishing the step and saving; once more stops at once")

        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def _memory_watched(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            B, k = self.config.batch_size, self.config.accumulation_steps
            remedy = f"halve --batch-size {B} and double --accumulation-steps {k}"
            if B == 1:
                remedy = f"halve --context-length {self.train_data.context_length}"
            known = out_of_memory(error, f"{remedy}, or take a smaller model")
            if known is None:
                raise
            raise known from None

    def _anomaly_watched(self) -> AbstractContextManager[object]:
        if not self.config.detect_anomaly:
            return nullcontext()
        return _anomalies_named(lambda: self.step)

    def _compile_if_it_pays(self) -> None:
        flops = self.model.estimate_flops_per_token() * self._tokens_per_step
        wanted = self.config.compile
        if wanted is None:
            wanted = compiling_pays(self.device, flops * self.config.max_steps)
        if wanted:
            tokens = self.train_data.batch(self.step)[0][: self.config.batch_size]
            precision = autocast(self.device, self.dtype)
            compile_blocks(self.model.train(), tokens.to(self.device), precision)


def _open_tensorboard(run: RunFolder) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "--tensorboard needs the package of that name: pip install tensorboard"
        ) from None
    return SummaryWriter(str(run.path))


@contextmanager
def _anomalies_named(step: Callable[[], int]) -> Iterator[None]:
    """Names the operation whose gradient became NaN."""
    try:
        with torch.autograd.detect_anomaly(check_nan=True):
            yield
    except RuntimeError as error:
        if "returned nan values" not in str(error):
            raise
        raise NonFiniteError(f"step {step()}: {str(error).splitlines()[0]}") from None


if __name__ == "__main__":  # python -m myllm.train is myllm train
    import sys

    from myllm.cli import main

    raise SystemExit(main(["train", *sys.argv[1:]]))
