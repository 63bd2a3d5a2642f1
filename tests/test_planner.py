"""The rules of recipes, and runs that are fitted into a time."""

from __future__ import annotations

import itertools

import pytest

from myllm.cli import main
from myllm.config import with_values
from myllm.errors import ConfigError
from myllm.presets import default_config, resolve
from myllm.runs.folder import RunFolder
from myllm.train import planner as room
from myllm.train.benchmark import Timing
from myllm.train.planner import PLANNED, plan_run, recipe

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


class TestPlan:
    @pytest.fixture
    def machine(self, monkeypatch):
        """One that does 10^11 operations a second, whatever the model."""

        def benchmark(model, batch_size, seq_len, n_iterations, config):
            tokens = batch_size * seq_len
            seconds = model.estimate_flops_per_token(seq_len) * tokens / 1e11
            return Timing(seconds, tokens / seconds, 1e11, 0)

        monkeypatch.setattr(room, "measure_peak_flops", lambda device, dtype: 2e11)
        monkeypatch.setattr(room, "benchmark_training_step", benchmark)

    @staticmethod
    def fitted(n_train=10**6, **flags):
        flags = {"device": "cpu", "vocab_size": 65, **flags}
        val = (n_train, n_train + n_train // 9)
        plan = plan_run(resolve(flags=flags), [(0, n_train)], [val], spent_s=2.0)
        assert set(plan) <= set(PLANNED)
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

    def test_too_short_a_time(self, machine):
        with pytest.raises(ConfigError, match=r"minutes 0.04: .* give more minutes"):
            self.fitted(minutes=0.04)


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

    def test_size_and_minutes_contradict(self, tmp_path, longer_text, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.txt").write_text(longer_text, encoding="utf-8")
        assert main(["train", "a.txt", "--minutes", "1", "--size", "cpu"]) == 2
        assert "give one of them" in capsys.readouterr().err
