"""Training: accumulation, exact resume, what goes wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import signal

import pytest
import torch

from myllm.config import DataConfig, RunConfig, TrainConfig
from myllm.data.dataset import TextDataset
from myllm.errors import InputError, Interrupted, NonFiniteError, OutOfMemoryError
from myllm.model import GPTModel
from myllm.runs.folder import RunFolder
from myllm.system.torch_adapter import is_compiled
from myllm.train import Trainer
from myllm.train.loss import language_loss
from myllm.train.observer import Observer
from myllm.train.state import TrainState

CONFIG = TrainConfig(
    batch_size=4, max_steps=12, eval_interval=4, warmup_steps=2, device="cpu", dtype="float32"
)


def build(tokens, model_config, config=CONFIG, run=None, observer=None, **changes) -> Trainer:
    """A trainer over `tokens`, whose model is drawn from the seed."""
    torch.manual_seed(config.seed)
    model = GPTModel(dataclasses.replace(model_config, **changes))
    n = len(tokens) - 100
    k = config.batch_size * config.accumulation_steps
    data = TextDataset(tokens, [(0, n)], 16, k, config.seed)
    return Trainer(model, data, tokens, [(n, len(tokens))], config, run, observer=observer)


def weights_hash(model: GPTModel) -> str:
    digest = hashlib.sha256()
    for name, p in sorted(model.state_dict().items()):
        digest.update(name.encode() + p.numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture
def new_run(tmp_path, tokenizer, model_config):
    """Makes run folders."""

    def make(name: str = "run") -> RunFolder:
        config = RunConfig(model=model_config, text=DataConfig(), train=CONFIG)
        return RunFolder.create(tmp_path, name, config, tokenizer)

    return make


class StopAt(Observer):
    """Sends the process a signal after a step."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.at, self.number = step, number

    def on_step(self, step, loss, tokens_per_second):
        if step == self.at:
            os.kill(os.getpid(), self.number)


class TestTrainState:
    def test_round_trip(self):
        state = TrainState(step=5, nats=12.5, n_targets=4, skipped=[3])
        values = json.loads(json.dumps(state.to_json()))
        assert TrainState.from_json(values, 64) == state

    def test_of_an_older_version(self):
        """It kept the sum of the steps' mean losses."""
        values = TrainState(step=5).to_json()
        del values["nats"], values["n_targets"]
        state = TrainState.from_json(values | {"loss_sum": 7.5, "loss_count": 3}, 64)
        assert (state.nats, state.n_targets) == (7.5 * 64, 3 * 64)
        assert state.take_train_loss() == 2.5 and state.n_targets == 0

    def test_of_an_unknown_version(self):
        with pytest.raises(TypeError):
            TrainState.from_json(TrainState().to_json() | {"other": 1}, 64)


class TestTrainer:
    def test_learns(self, tokens, model_config):
        config = dataclasses.replace(CONFIG, max_steps=60, eval_interval=60)
        trainer = build(tokens, model_config, config)
        before = trainer.evaluate().loss
        assert trainer.train().best_loss < 0.75 * before

    def test_sampling_does_not_change_training(self, tokens, model_config, tokenizer):
        from myllm.config import SamplingConfig
        from myllm.generate import TextGenerator

        class Writes(Observer):
            model: GPTModel

            def on_evaluation(self, record, is_best):
                TextGenerator(self.model, tokenizer).generate("the", SamplingConfig(20))

        plain = build(tokens, model_config, vocab_size=tokenizer.vocab_size, dropout=0.1)
        plain.train()
        observer = Writes()
        writing = build(tokens, model_config, observer=observer, vocab_size=tokenizer.vocab_size,
                        dropout=0.1)  # fmt: skip
        observer.model = writing.model
        writing.train()
        assert weights_hash(writing.model) == weights_hash(plain.model)

    def test_signals_are_put_back(self, tokens, model_config):
        before = signal.getsignal(signal.SIGINT)
        build(tokens, model_config).train()
        assert signal.getsignal(signal.SIGINT) is before

    def test_exit_code_is_the_signal(self, tokens, model_config, new_run):
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            trainer = build(tokens, model_config, observer=StopAt(2, number))
            with pytest.raises(Interrupted) as caught:
                trainer.train()
            assert caught.value.exit_code == code

    def test_patience(self, tokens, model_config, new_run):
        config = dataclasses.replace(
            CONFIG, max_steps=400, eval_interval=2, patience=3, learning_rate=5.0, grad_clip=0.0,
            weight_decay=0.0, optimizer="adamw",
        )  # fmt: skip
        progress = build(tokens, model_config, config).train()
        assert progress.step < 400
        assert progress.step == progress.best_step + 3 * 2

    def test_metrics(self, tokens, model_config, new_run):
        run = new_run()
        build(tokens, model_config, run=run).train()
        text = (run.path / "metrics.jsonl").read_text(encoding="utf-8")
        records = [json.loads(line) for line in text.splitlines()]
        assert [record["step"] for record in records] == [4, 8, 12]
        wanted = "step elapsed_s train_loss val_loss val_bits_per_byte learning_rate grad_norm"
        assert list(records[0]) == [*wanted.split(), "tokens_per_second"]
        assert {record.pop("val_bits_per_byte") for record in records} == {None}  # not known
        assert all(math.isfinite(value) for record in records for value in record.values())

    def test_reported_loss_is_nats_over_targets(self, tokens, model_config, new_run):
        """Over all steps since the last evaluation, however unequal their numbers of targets."""

        class Masked(TextDataset):
            def batch(self, step):
                batch = super().batch(step)
                places = torch.arange(batch.mask.numel()).view_as(batch.mask)
                return batch._replace(mask=places < (3, 64, 17, 40)[step % 4])

        seen: list[tuple[float, int]] = []

        def loss(model, batch):
            nats, n_targets = language_loss(model, batch)
            seen.append((nats.item(), int(n_targets)))
            return nats, n_targets

        run = new_run()
        config = dataclasses.replace(CONFIG, max_steps=4, batch_size=2, accumulation_steps=2)
        data = Masked(tokens, [(0, 900)], 16, 4)
        Trainer(GPTModel(model_config), data, config=config, run=run, loss=loss).train()
        wanted = sum(nats for nats, _ in seen) / sum(count for _, count in seen)
        assert sum(count for _, count in seen) == 3 + 64 + 17 + 40
        assert run.metrics()[0]["train_loss"] == pytest.approx(wanted, rel=1e-6)

    def test_best_is_the_best(self, tokens, model_config, new_run):
        run = new_run()
        config = dataclasses.replace(CONFIG, keep=10, learning_rate=0.5, optimizer="adamw")
        build(tokens, model_config, config, run).train()
        losses = {record["step"]: record["val_loss"] for record in run.metrics()}
        assert run.checkpoints.best_step() == min(losses, key=lambda step: losses[step])
        assert run.checkpoints.newest_good() == 12

    def test_nonfinite_stops_before_the_update(self, tokens, model_config):
        class Poison(Observer):
            model: GPTModel

            def on_step(self, step, loss, tokens_per_second):
                if step == 3:
                    with torch.no_grad():
                        self.model.get_parameter("blocks.1.attention.W_v.weight")[0, 0] = math.nan

        observer = Poison()
        trainer = build(tokens, model_config, observer=observer)
        observer.model = trainer.model
        with pytest.raises(NonFiniteError, match=r"step 3: loss nan.*not finite: .*learning-rate"):
            trainer.train()
        assert trainer.step == 3
        assert trainer.model.token_embedding.weight.isfinite().all()  # no update was made

    def test_nonfinite_gradient_names_its_parameter(self, tokens, model_config):
        trainer = build(tokens, model_config)
        weight = trainer.model.get_parameter("blocks.1.feed_forward.linear1.weight")
        weight.register_hook(lambda g: g * float("inf"))
        with pytest.raises(
            NonFiniteError, match=r"not finite: blocks.1.feed_forward.linear1.weight"
        ):
            trainer.train()
        assert trainer.step == 0

    @pytest.mark.filterwarnings("ignore:Error detected")
    def test_detect_anomaly_names_the_operation(self, tokens, model_config):
        class BadBackward(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, gradient):
                return gradient * float("nan")

        config = dataclasses.replace(CONFIG, detect_anomaly=True)
        trainer = build(tokens, model_config, config)
        trainer.model.ln_final.register_forward_hook(lambda m, i, out: BadBackward.apply(out))
        with pytest.raises(NonFiniteError, match="BadBackwardBackward"):
            trainer.train()

    def test_out_of_memory_says_what_to_halve(self, tokens, model_config, monkeypatch):
        trainer = build(tokens, model_config)

        def fail(*args):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        monkeypatch.setattr(trainer.model, "features", fail)
        with pytest.raises(
            OutOfMemoryError, match=r"2.00 GiB.*one sequence.*halve --context-length"
        ):
            trainer.train()

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_mixed_precision_learns(self, tokens, model_config, dtype):
        config = dataclasses.replace(CONFIG, max_steps=40, eval_interval=40, dtype=dtype)
        trainer = build(tokens, model_config, config)
        before = trainer.evaluate().loss
        assert trainer.train().best_loss < 0.85 * before
        assert trainer.train_step.scaler.is_enabled() == (dtype == "float16")
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}

    def test_compile_falls_back_in_one_line(self, tokens, model_config, monkeypatch, caplog):
        config = dataclasses.replace(CONFIG, kernels="compiled")
        eager = build(tokens, model_config)
        eager.train()
        trainer = build(tokens, model_config, config)

        def fail(*args, **kwargs):
            raise RuntimeError("no compiler here\nand more lines")

        monkeypatch.setattr("myllm.model.TransformerBlock.compile", fail)
        trainer.train()
        assert "slower: RuntimeError (no compiler here)" in caplog.text
        assert weights_hash(trainer.model) == weights_hash(eager.model)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 1e-2)])
    def test_compiled_trains_alike(self, tokens, model_config, dtype, tolerance):
        """Also with dropout, whose draws are the same compiled and not."""
        losses = []
        for kernels in ("plain", "compiled"):
            config = dataclasses.replace(CONFIG, kernels=kernels, dtype=dtype)
            trainer = build(tokens, model_config, config, dropout=0.2, attention="manual")
            losses.append(trainer.train().best_loss)
            compiled = [is_compiled(b) for b in trainer.model.blocks]
            assert compiled == 2 * [kernels == "compiled"]
        assert losses[1] == pytest.approx(losses[0], rel=tolerance)

    @pytest.mark.slow
    @pytest.mark.parametrize("kernels", ["compiled", "numba"])
    def test_other_kernels_repeat_and_resume_exactly(self, tokens, model_config, new_run, kernels):
        """Law 3 on the fast path: bfloat16, dropout."""
        config = dataclasses.replace(CONFIG, kernels=kernels, dtype="bfloat16")
        hashes: list[str] = []
        for stop in (None, None, 5):
            run = new_run(f"run-{stop}-{len(hashes)}")
            observer = StopAt(stop) if stop else None
            trainer = build(tokens, model_config, config, run, observer, dropout=0.2)
            if stop:
                with pytest.raises(Interrupted):
                    trainer.train()
                trainer = build(tokens, model_config, config, run, dropout=0.2)
                trainer.resume()
            trainer.train()
            hashes.append(weights_hash(trainer.model))
        assert len(set(hashes)) == 1

    @pytest.mark.slow
    def test_numba_kernels_learn_as_much(self, tokens, model_config):
        """In 600 steps of three seeds each: the losses differ less than those of seeds do."""
        pytest.importorskip("numba")
        losses: dict[str, list[float]] = {}
        for kernels in ("plain", "numba"):
            configs = [
                dataclasses.replace(CONFIG, kernels=kernels, seed=seed, max_steps=600)
                for seed in range(3)
            ]
            trainers = [build(tokens, model_config, config) for config in configs]
            losses[kernels] = [trainer.train().best_loss for trainer in trainers]
        means = [sum(found) / 3 for found in losses.values()]
        assert abs(means[0] - means[1]) < max(losses["plain"]) - min(losses["plain"])

    def test_activation_checkpointing_changes_nothing(self, tokens, model_config):
        hashes: set[str] = set()
        for wanted in (False, True):
            config = dataclasses.replace(CONFIG, activation_checkpointing=wanted)
            trainer = build(tokens, model_config, config, dropout=0.2)
            trainer.train()
            hashes.add(weights_hash(trainer.model))
        assert len(hashes) == 1

    def test_profile(self, tokens, model_config, new_run):
        run = new_run()
        trainer = build(tokens, model_config, dataclasses.replace(CONFIG, profile=2), run)
        trainer.train()
        assert trainer.profiler.table is not None and "aten::" in trainer.profiler.table
        trace = json.loads((run.path / "trace.json").read_text(encoding="utf-8"))
        assert trace["traceEvents"]

    def test_tensorboard(self, tokens, model_config, new_run):
        run = new_run()
        build(tokens, model_config, dataclasses.replace(CONFIG, tensorboard=True), run).train()
        assert list(run.path.glob("events.out.tfevents*"))

    def test_other_text_is_refused(self, tokens, model_config, new_run):
        run = new_run()
        first = build(tokens, model_config, run=run)
        first.provenance.fingerprint = {"text": "a" * 64}
        first.train()
        second = build(tokens, model_config, run=run)
        second.provenance.fingerprint = {"text": "b" * 64}
        with pytest.raises(InputError, match="its text was another one"):
            second.resume()

    def test_facts_stay_those_of_the_beginning(self, tokens, model_config, new_run):
        run = new_run()
        first = build(tokens, model_config, run=run)
        first.provenance.facts = {"knows_beginnings": True}
        first.train()
        assert run.checkpoints.metadata()["knows_beginnings"] is True
        second = build(tokens, model_config, run=run)
        second.provenance.facts = {"knows_beginnings": False}
        second.resume()
        assert second.provenance.facts == {"knows_beginnings": True}

    def test_wrong_batch_size(self, small_model, tokens):
        with pytest.raises(InputError, match="is 4"):
            Trainer(small_model, TextDataset(tokens, None, 16, 3), config=CONFIG)

    @pytest.mark.gpu
    def test_trains_on_cuda(self, tokens, model_config, new_run):
        config = dataclasses.replace(CONFIG, device="cuda", dtype=None, max_steps=40)
        trainer = build(tokens, model_config, config, new_run())
        before = trainer.evaluate().loss
        assert trainer.train().best_loss < before
