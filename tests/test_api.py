"""The Python face: its examples run, and do what the command line does."""

from __future__ import annotations

import doctest
import logging
import threading
from typing import Any

import pytest

from myllm import api
from myllm import run as run_room
from myllm.cli import main
from myllm.errors import ConfigError, InputError
from myllm.train import Observer

TINY: dict[str, Any] = dict(
    d_model=32, n_layers=1, n_heads=2, context_length=16, batch_size=4, max_steps=6,
    eval_interval=3, device="cpu", dtype="float32", tokenizer="char",
)  # fmt: skip


@pytest.fixture
def novel(tmp_path, monkeypatch, longer_text):
    """A working folder with a text and a run of that name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "novel.txt").write_text(longer_text, encoding="utf-8")
    return api.train("novel.txt", quiet=True, **TINY)


@pytest.mark.parametrize("room", [api, run_room], ids=lambda room: room.__name__)
def test_examples(room, novel):
    """What the docstrings show is what happens; every public function shows something."""
    names = {"load": api.load}
    result = doctest.testmod(room, optionflags=doctest.ELLIPSIS, extraglobs=names)
    assert result.attempted >= 9 and not result.failed


def test_every_public_name_has_an_example():
    functions = [api.train, api.load, api.runs, api.import_model, api.prepare, api.settings]
    methods = [api.Run.generate, api.Run.stream, api.Run.evaluate, api.Run.export, api.Run]
    for thing in [*functions, *methods, api.Run.metrics, api.Run.verify, api.Run.batch]:
        assert ">>>" in (thing.__doc__ or ""), thing


class TestTrain:
    def test_same_weights_as_the_command_line(self, novel):
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
        assert main(["train", "novel.txt", "--run", "typed", "--quiet", *flags]) == 0
        ours, typed = (
            (run.path / "step-000006" / "model.safetensors").read_bytes()
            for run in (novel, api.load("typed"))
        )
        assert ours == typed

    def test_quiet_says_nothing(self, novel, capsys):
        api.train(resume="novel", max_steps=7, quiet=True)
        assert capsys.readouterr() == ("", "")

    def test_progress_is_shown(self, novel, capsys):
        api.train(resume="novel", max_steps=9)
        out = capsys.readouterr().out
        assert out.startswith("text ") and "step 9/9" in out

    @pytest.mark.parametrize("quiet", [True, False])
    def test_observer(self, novel, quiet):
        class Noting(Observer):
            steps: list[int] = []

            def on_step(self, step, loss, tokens_per_second):
                self.steps.append(step)

        noting = Noting()
        noting.steps = []
        api.train(resume="novel", max_steps=8, quiet=quiet, observer=noting)
        assert noting.steps == [7, 8]

    def test_beyond_the_main_thread(self, novel):
        """Where no signal handlers can be set, training works all the same."""
        steps = []

        def work():
            run = api.train(resume="novel", max_steps=8, quiet=True)
            steps.append(run.metrics()[-1]["step"])

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert steps == [8]

    @pytest.mark.parametrize(
        "settings, message",
        [
            (dict(d_modle=3), "unknown setting 'd_modle': did you mean d_model"),
            (dict(d_model="3"), "d_model '3': must be int"),
            (dict(schedule="cosin"), "did you mean cosine"),
            (dict(config="none.toml"), "none.toml"),
        ],
    )
    def test_errors_are_raised(self, novel, settings, message, capsys):
        with pytest.raises(InputError, match=message):
            api.train("novel.txt", **settings)
        assert capsys.readouterr() == ("", "")

    def test_begin_with_a_run(self, novel, caplog):
        """The model is the other run's, and is not planned anew."""
        with caplog.at_level(logging.INFO, logger="myllm"):
            run = api.train("novel.txt", from_run="novel", max_steps=2, run="more", quiet=True)
        assert run.config.model.d_model == 32 and run.config.from_run == "novel"
        assert "begun with the model of novel" in caplog.text


class TestRun:
    def test_evaluation_of_the_validation_split_is_that_of_training(self, novel):
        best = min(record["val_loss"] for record in novel.metrics())
        assert novel.evaluate().loss == pytest.approx(best, abs=1e-6)

    def test_stop_takes_one_string_or_several(self, novel):
        text = novel.generate("the", max_new_tokens=200, sample_seed=1, stop="e")
        assert "e" not in text
        assert text == novel.generate("the", max_new_tokens=200, sample_seed=1, stop=["e"])

    def test_unknown_setting(self, novel):
        with pytest.raises(ConfigError, match="'temprature': did you mean temperature"):
            novel.generate("the", temprature=1.0)

    def test_runs_leaves_out_what_is_none(self, novel, tmp_path):
        (tmp_path / "checkpoints" / "other").mkdir()
        assert [run.name for run in api.runs()] == ["novel"]
        assert api.runs("nowhere") == []
