"""The rules of recipes, and runs that are fitted into a time."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from myllm.cli import main
from myllm.config import flat_values, with_values
from myllm.errors import ConfigError, OutOfMemoryError
from myllm.presets import begun_from, default_config, resolve
from myllm.runs.folder import RunFolder
from myllm.system.timing import Timing
from myllm.train import pace
from myllm.train import planner as room
from myllm.train.memory import lacking_memory
from myllm.train.planner import LEAST_STEPS, PLANNED, PLANNED_BEGUN, plan_run, recipe
from myllm.train.sequences import check_sequences

BUDGETS = [10.0**k for k in range(9, 21)]


class TestRecipe:
    @pytest.mark.parametrize("n_tokens", [100, 10**6, 10**10])
    def test_every_recipe_is_a_valid_configuration(self, n_tokens):
        for flops in BUDGETS:
            with_values(default_config(), recipe(flops, n_tokens)).validate()

    def test_what_grows_with_the_budget(self):
        recipes = [recipe(flops, 10**7) for flops in BUDGETS]
        for less, more in itertools.pairwise(recipes):
            for name in ("d_model", "n_layers", "context_length", "dropout"):
                assert less[name] <= more[name]
            assert less["learning_rate"] >= more["learning_rate"]
            tokens = [r["batch_size"] * r["context_length"] for r in (less, more)]
            assert tokens[0] <= 1.2 * tokens[1]  # but for the rounding

    def test_a_long_text_is_not_dropped(self):
        assert recipe(1e14, 10**10)["dropout"] == 0
        assert recipe(1e14, 10**5)["dropout"] >= 0.1

    def test_the_rate_takes_the_width_out(self):
        """Four times the width, half the rate."""
        rates = {r["d_model"]: r["learning_rate"] for r in (recipe(f, 10**8) for f in BUDGETS)}
        widths = [width for width in rates if 4 * width in rates]
        assert widths
        for width in widths:
            assert rates[4 * width] == pytest.approx(rates[width] / 2, rel=0.05)

    # 40 GFLOP/s for 1, 3 and 10 minutes, as docs/benchmarks.md has figures of
    @pytest.mark.parametrize(
        "flops, n_tokens, expected",
        [
            (2.4e12, 10**6, (96, 4, 3, 64, 40, 0.0056, 0.0)),
            (7.2e12, 10**6, (96, 4, 3, 64, 44, 0.0056, 0.0)),
            (2.4e13, 10**6, (128, 5, 4, 128, 24, 0.0049, 0.0)),
            (2.4e12, 330_000, (96, 4, 3, 64, 40, 0.0056, 0.0)),
            (7.2e12, 330_000, (128, 5, 4, 128, 24, 0.0049, 0.02)),
            (2.4e13, 330_000, (160, 5, 5, 256, 12, 0.0043, 0.04)),
        ],
    )
    def test_a_normal_text_is_not_bounded(self, flops, n_tokens, expected):
        """A megabyte, as characters or byte pairs: as before there was a bound."""
        assert tuple(recipe(flops, n_tokens).values()) == expected

    @pytest.mark.parametrize("n_tokens", [64, 900, 25_000, 10**6])
    def test_a_text_bears_so_many_parameters(self, n_tokens):
        """Whatever the time; the smallest model is for any text."""
        for flops in BUDGETS:
            planned = recipe(flops, n_tokens)
            n_parameters = 12 * planned["n_layers"] * planned["d_model"] ** 2
            assert n_parameters <= max(25 * n_tokens, 12 * 3 * 64**2)
            step_tokens = planned["batch_size"] * planned["context_length"]
            assert step_tokens <= max(n_tokens / 3, 4 * planned["context_length"])


class TestPlan:
    @pytest.fixture
    def machine(self, monkeypatch):
        """One that does 10^11 operations a second, whatever the model, with 8 GiB free."""

        def benchmark(model, batch_size, seq_len, n_iterations, config, budget_s):
            tokens = batch_size * seq_len
            seconds = model.estimate_flops_per_token(seq_len) * tokens / 1e11
            return Timing(seconds, tokens / seconds, 1e11, 0)

        monkeypatch.setattr("myllm.system.device.available_memory_bytes", lambda: 8 << 30)
        monkeypatch.setattr(room, "measure_peak_flops", lambda device, dtype, budget_s: 2e11)
        monkeypatch.setattr(pace, "benchmark_training_step", benchmark)
        monkeypatch.setattr(room.time, "monotonic", lambda: 0.0)  # planning takes no time there

    @staticmethod
    def fitted(n_train=10**6, **flags):
        flags = {"device": "cpu", "vocab_size": 65, "optimizer": "adamw", **flags}
        val = (n_train, n_train + min(n_train // 9, 250_000))
        plan = plan_run(resolve(flags=flags), [(0, n_train)], [val], spent_s=2.0)
        assert set(plan) <= set(PLANNED)
        assert not set(plan) & set(flags)
        return resolve(plan=plan, flags=flags).config

    @pytest.mark.parametrize("minutes", [0.5, 5.0, 30.0])
    def test_the_run_takes_the_time(self, machine, minutes):
        from myllm.model import GPTModel

        config = self.fitted(minutes=minutes)
        model, train = config.model, config.train
        per_token = GPTModel(model).estimate_flops_per_token()
        seconds = train.max_steps * train.batch_size * model.context_length * per_token / 1e11
        assert 0.75 * 60 * minutes < seconds < 1.2 * 60 * minutes
        assert 1 <= train.max_steps // train.evaluation_steps <= 10

    def test_what_was_named_stays(self, machine):
        changes = dict(d_model=96, learning_rate=1e-4, max_steps=77, eval_interval=7)
        config = self.fitted(minutes=1.0, **changes)
        assert config.model.d_model == 96 and config.train.learning_rate == 1e-4
        assert config.train.max_steps == 77 and config.train.eval_interval == 7

    def test_a_short_text_ends_the_run_earlier(self, machine):
        config = self.fitted(minutes=30.0, n_train=20_000)
        tokens = config.train.max_steps * config.train.batch_size * config.model.context_length
        assert tokens <= 20 * 20_000

    @pytest.mark.parametrize("minutes", [0.04, 0.05])
    def test_too_short_a_time(self, machine, minutes):
        with pytest.raises(ConfigError, match=rf"minutes {minutes}: .* give more minutes"):
            self.fitted(minutes=minutes)

    @pytest.mark.parametrize("n_train", [58, 800, 2500, 23_000, 300_000, 10**8])
    def test_every_text_and_time(self, machine, n_train):
        """A valid plan that ends in time; a short text ends it earlier, after some steps."""
        for minutes in (0.1, 1.0, 60.0, 600.0):
            config = self.fitted(minutes=minutes, n_train=n_train, kernels="plain")
            train, T = config.train, config.model.context_length
            work = pace.step_work(config)
            assert LEAST_STEPS <= train.max_steps and T <= max(8, n_train // 2)
            assert train.max_steps * work.total / 1e11 <= 60 * minutes
            most = max(100 * train.batch_size * T, 20 * n_train)
            assert train.max_steps * train.batch_size * T <= most
            assert lacking_memory(config.model, train, torch.device("cpu")) is None

    def test_the_plan_fits_the_memory(self, machine, monkeypatch):
        """Smaller micro-batches first, then a narrower model."""
        roomy = self.fitted(minutes=600.0, n_train=10**8)
        for free in (1000 << 20, 200 << 20):
            monkeypatch.setattr("myllm.system.device.available_memory_bytes", lambda: free)
            config = self.fitted(minutes=600.0, n_train=10**8)
            assert lacking_memory(config.model, config.train, torch.device("cpu")) is None
            assert config.train.batch_size < roomy.train.batch_size
        assert config.model.d_model < roomy.model.d_model

    @pytest.mark.parametrize(
        "given",
        [
            {"d_model": 4096}, {"n_layers": 100, "d_model": 1024}, {"batch_size": 100_000},
            {"d_model": 1024, "n_layers": 24, "context_length": 8192, "batch_size": 64},
        ],
        ids=str,
    )  # fmt: skip
    def test_what_is_given_and_cannot_be(self, machine, monkeypatch, given):
        """No model is built for it; the refusal names what is too large."""
        monkeypatch.setattr(room, "measure_pace", lambda *_: pytest.fail("timed"))
        with pytest.raises((ConfigError, OutOfMemoryError)) as raised:
            self.fitted(minutes=0.5, optimizer="muon", **given)
        assert f"--{next(iter(given)).replace('_', '-')}" in str(raised.value)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        "given",
        [
            {"n_kv_heads": 3}, {"n_kv_heads": 5}, {"n_heads": 7}, {"n_heads": 5, "n_kv_heads": 5},
            {"d_model": 100}, {"d_model": 96, "n_kv_heads": 2}, {"head_dim": 24},
            {"head_dim": 16, "n_kv_heads": 3}, {"n_layers": 1}, {"context_length": 48},
            {"sequence_length": 300}, {"batch_size": 3}, {"accumulation_steps": 2},
            {"preset": "gpt2", "n_heads": 3},
        ],
        ids=str,
    )  # fmt: skip
    def test_parts_of_a_shape(self, machine, given):
        """The rest is made to match."""
        config = self.fitted(minutes=1.0, **given)
        assert config.validate() and all(flat_values(config)[n] == v for n, v in given.items())
        check_sequences(config)


class TestBegun:
    """Of a trained model batch, sequences and steps are planned, never its shape."""

    def plan(self, minutes, shape, n_train=10**6, **flags):
        model = dict(vocab_size=300, n_layers=2, n_heads=6, n_kv_heads=3, attention="flash")
        old = with_values(default_config(), {**model, **shape})
        layers: dict[str, Any] = {
            "base": begun_from(old),
            "flags": {"minutes": minutes, "from_run": "old", "device": "cpu", **flags},
        }
        val = (n_train, n_train + min(n_train // 9, 250_000))
        plan = plan_run(resolve(**layers), [(0, n_train)], [val], spent_s=2.0)
        assert set(plan) <= set(PLANNED_BEGUN)
        new = resolve(**layers, plan=plan).config
        assert new.model == dataclasses.replace(old.model, dropout=0.0)
        check_sequences(new)
        return new

    machine = TestPlan.machine

    @pytest.mark.parametrize("n_train", [58, 2500, 10**6])
    def test_any_text(self, machine, n_train):
        shape = dict(d_model=96, context_length=40_960)
        for minutes in (0.5, 10.0):
            train = self.plan(minutes, shape, n_train).train
            assert train.sequence_length <= min(1024, max(8, n_train // 2))
            assert train.max_steps >= LEAST_STEPS

    @pytest.mark.slow
    def test_a_slow_model_takes_shorter_sequences(self, machine):
        """Rather than some steps of long ones."""
        shape = dict(d_model=768, n_layers=16, context_length=4096)
        slow = self.plan(5.0, shape, 100_000, optimizer="adamw").train
        assert slow.sequence_length < 1024 and slow.batch_size == 1 and slow.max_steps >= 20
        assert self.plan(600.0, shape, optimizer="adamw").train.sequence_length == 1024
        named = self.plan(5.0, shape, 100_000, optimizer="adamw", sequence_length=900).train
        assert named.sequence_length == 900

    def test_no_time_for_it(self, machine, monkeypatch):
        monkeypatch.setattr(room, "measure_pace", lambda *_: pytest.fail("timed"))
        with pytest.raises(ConfigError, match="give more minutes, or a smaller --context-length"):
            self.plan(1.0, dict(d_model=1536, n_layers=4))


class TestCommandLine:
    def test_minutes_choose_the_rest_once(self, tmp_path, longer_text, monkeypatch):
        """The run folder holds what was found; resuming does not choose anew."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.txt").write_text(longer_text, encoding="utf-8")
        command = ["train", "a.txt", "--tokenizer", "char", "--minutes", "1", "--max-steps", "12"]
        assert main([*command, "--d-model", "32", "--n-heads", "2", "--quiet"]) == 0
        config = RunFolder(tmp_path / "checkpoints" / "a").config
        assert (config.model.d_model, config.train.max_steps) == (32, 12)
        assert config.model.n_layers >= 3 and config.train.minutes == 1
        assert main(["train", "--resume", "a", "--max-steps", "14", "--quiet"]) == 0
        resumed = RunFolder(tmp_path / "checkpoints" / "a").config
        assert resumed.model == config.model and resumed.train.max_steps == 14

    def test_a_short_text_gets_a_small_model(self, tmp_path, longer_text, monkeypatch, capsys):
        """2,000 characters, an hour: no billions of parameters."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.txt").write_text(longer_text[:2000], encoding="utf-8")
        assert main(["train", "a.txt", "--minutes", "60", "--show-settings"]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        found = {row[0]: row[1] for row in rows}
        assert found["d_model"] == "64" and int(found["max_steps"]) <= 300

    def test_size_and_minutes_contradict(self, tmp_path, longer_text, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.txt").write_text(longer_text, encoding="utf-8")
        assert main(["train", "a.txt", "--minutes", "1", "--size", "cpu"]) == 2
        assert "give one of them" in capsys.readouterr().err
