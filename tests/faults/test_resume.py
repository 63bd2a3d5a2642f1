"""Law 3 in every configuration: stopped anywhere and resumed is bit for bit never stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch

from myllm.config import RunConfig, TrainConfig
from myllm.data.dataset import TextDataset
from myllm.errors import Interrupted
from myllm.model import GPTModel
from myllm.runs.folder import RunFolder
from myllm.train import Trainer
from myllm.train.observer import Observer
from myllm.train.schedules import SCHEDULES

BASE = TrainConfig(
    batch_size=4, max_steps=17, eval_interval=4, warmup_steps=3, device="cpu", dtype="float32"
)
CONFIGURATIONS: dict[str, dict] = {
    **{f"schedule {name}": {"schedule": name} for name in SCHEDULES},
    "accumulation": {"accumulation_steps": 3},
    "adamw": {"optimizer": "adamw"},
    "bfloat16": {"dtype": "bfloat16"},
    "float16 with its scaler": {"dtype": "float16", "optimizer": "adamw"},
    "patience": {"patience": 2, "learning_rate": 0.3, "optimizer": "adamw", "max_steps": 60},
    "activation checkpointing": {"activation_checkpointing": True},
    "rollback": {"on_nonfinite": "rollback"},
}


@pytest.fixture
def make(tmp_path, tokenizer, longer_text, model_config):
    """Makes a trainer of a run, which exists or is made."""
    tokens = np.array(tokenizer.encode(longer_text[:1100]), np.uint16)
    shape = dataclasses.replace(model_config, dropout=0.2)

    def build(name: str, config: TrainConfig, observer: Observer | None = None) -> Trainer:
        if not (tmp_path / name).exists():
            RunFolder.create(tmp_path, name, RunConfig(model=shape, train=config), tokenizer)
        torch.manual_seed(config.seed)
        model = GPTModel(shape)
        size = config.batch_size * config.accumulation_steps
        data = TextDataset(tokens, [(0, 900)], 16, size, config.seed)  # 56 sequences an epoch
        run = RunFolder(tmp_path / name)
        return Trainer(model, data, tokens, [(900, 1100)], config, run, observer=observer)

    return build


class StopAt(Observer):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step, loss, tokens_per_second):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class CrashAt(StopAt):
    """Ends the loop as `kill -9` would: nothing is saved any more."""

    def on_step(self, step, loss, tokens_per_second):
        if step == self.step:
            raise ZeroDivisionError("a crash")


def outcome(trainer: Trainer) -> tuple[dict, list[dict], dict]:
    assert trainer.run is not None
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    clocks = ("elapsed_s", "tokens_per_second")
    records = [{k: v for k, v in r.items() if k not in clocks} for r in trainer.run.metrics()]
    counters = {k: v for k, v in trainer.state.to_json().items() if k not in clocks}
    return weights, records, counters


def assert_equal(found, expected) -> None:
    assert json.dumps(found[1:]) == json.dumps(expected[1:])
    for name, p in expected[0].items():
        assert torch.equal(found[0][name], p), name


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_stopped_and_resumed(make, name):
    config = dataclasses.replace(BASE, **CONFIGURATIONS[name])
    whole = make("whole", config)
    whole.train()
    last = whole.step
    rng = random.Random(name)
    stops = sorted(rng.sample(range(1, last), 2))
    for stop, kind in zip(stops, rng.sample([StopAt, CrashAt], 2)):
        trainer = make("parts", config, kind(stop))
        trainer.resume()
        with pytest.raises((Interrupted, ZeroDivisionError)):
            trainer.train()
    trainer = make("parts", config)
    trainer.resume()
    trainer.train()
    assert_equal(outcome(trainer), outcome(whole))


def test_after_moving_the_folder(make, tmp_path):
    whole = make("whole", BASE)
    whole.train()
    with pytest.raises(Interrupted):
        make("here", BASE, StopAt(6)).train()
    shutil.move(tmp_path / "here", tmp_path / "there")
    trainer = make("there", BASE)
    trainer.resume()
    assert trainer.step == 6
    trainer.train()
    assert_equal(outcome(trainer), outcome(whole))


def test_the_end_of_a_run_is_resumed_to_nothing(make):
    whole = make("whole", BASE)
    whole.train()
    expected = outcome(whole)
    trainer = make("whole", BASE)
    trainer.resume()
    trainer.train()
    assert_equal(outcome(trainer), expected)


def test_other_circumstances_are_told(make, caplog):
    make("run", BASE).train()
    torch.set_num_threads(2)
    make("run", BASE).resume()
    assert "threads: 1 when it was saved, 2 now" in caplog.text
    assert "not bit for bit" in caplog.text
