"""How many CPU threads a run takes, and how often it goes through its text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from cli_place import TINY, assert_refused, words

from myllm.config import from_toml, with_values
from myllm.presets import default_config
from myllm.runs.folder import RunFolder
from myllm.system import machine
from myllm.train import threads

STEPLESS = TINY[: TINY.index("--max-steps")] + TINY[TINY.index("--max-steps") + 2 :]


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    """No number in the environment, whoever runs the tests."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "_set_here", {})


@pytest.fixture
def text(folder):
    (folder / "a.txt").write_text(words(6000), encoding="utf-8")
    return folder


def saved(name="a"):
    """A run's number of threads: as its settings say, and as its checkpoint says."""
    folder = RunFolder(Path("checkpoints") / name)
    return folder.config.train.threads, folder.checkpoints.metadata()["threads"]


@pytest.fixture
def step_that_takes(monkeypatch):
    """A machine whose steps take so long by the number of threads; time passes in them only."""

    def build(seconds):
        now, used = [0.0], []

        def step():
            used.append(torch.get_num_threads())
            now[0] += seconds[torch.get_num_threads()]

        monkeypatch.setattr(threads, "training_step", lambda *args, **more: step)
        monkeypatch.setattr(threads.time, "perf_counter", lambda: now[0])
        torch.set_num_threads(max(seconds))
        return used

    return build


def small(**values):
    return with_values(
        default_config(), dict(d_model=32, n_layers=1, n_heads=2, vocab_size=300, **values)
    )


class TestChoice:
    @pytest.mark.parametrize(
        "seconds, fastest",
        [
            ({1: 0.1, 2: 0.06}, 2),
            ({1: 0.1, 2: 0.3}, 1),
            ({1: 0.1, 2: 0.105}, 2),  # no advantage to speak of
            ({1: 0.4, 2: 0.2, 3: 0.11, 4: 0.3}, 3),
        ],
    )
    def test_the_fastest_number_is_taken(self, step_that_takes, seconds, fastest):
        step_that_takes(seconds)
        assert threads.fastest_threads(small()) == fastest
        assert torch.get_num_threads() == max(seconds)

    def test_of_many_cores_some_numbers_are_tried(self, step_that_takes):
        used = step_that_takes({n: 0.1 for n in range(1, 17)})
        assert threads.fastest_threads(small()) == 16
        assert set(used) == {1, 2, 4, 8, 15, 16}

    def test_measuring_is_short(self, step_that_takes):
        used = step_that_takes({1: 0.01, 2: 0.01})
        threads.fastest_threads(small())
        assert len(used) <= 1 + 2 + threads.BUDGET_S / 0.01

    @pytest.mark.parametrize(
        "values",
        [
            dict(max_steps=2),  # over before it is measured
            dict(max_steps=10**6, threads=2),
            dict(max_steps=10**6, d_model=2048, n_layers=24, n_heads=16),  # a step takes long
        ],
    )
    def test_what_is_not_measured(self, monkeypatch, values):
        monkeypatch.setattr(
            threads, "training_step", lambda *args, **more: pytest.fail("measured")
        )
        torch.set_num_threads(2)
        config = with_values(small(), values)
        assert threads.with_threads(config).train.threads == 2

    def test_what_the_environment_says_goes_before(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        monkeypatch.setattr(
            threads, "training_step", lambda *args, **more: pytest.fail("measured")
        )
        torch.set_num_threads(2)
        assert threads.with_threads(small(max_steps=10**6)).train.threads == 2

    def test_what_we_set_is_not_the_users(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that it is put back afterwards
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setattr(machine, "available_cores", lambda: 1)
        monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
        machine.use_available_cores()
        assert not machine.user_chose_threads()
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        assert machine.user_chose_threads()


class TestRun:
    def test_named_and_kept(self, text, run):
        """The number stands in the plan, the settings and the checkpoint; afterwards PyTorch has
        its own again."""
        done = run("train", "a.txt", *TINY, "--threads", "2")
        assert done.code == 0 and "device  cpu, float32, 2 threads" in done.out
        assert saved() == (2, 2) and torch.get_num_threads() == 1

    def test_resumed_with_the_same_number(self, text, run, monkeypatch):
        """Also where the machine's own would be another, and where the settings are older."""
        monkeypatch.setattr(threads, "available_cores", lambda: 4)
        assert run("train", "a.txt", *TINY, "--threads", "2").code == 0
        config = text / "checkpoints" / "a" / "config.toml"
        for copy in [config, *config.parent.glob("step-*/config.toml")]:
            lines = copy.read_text(encoding="utf-8").replace("threads = 2\n", "")
            if copy == config:
                copy.write_text(lines, encoding="utf-8")
        done = run("train", "--resume", "a", "--max-steps", "7")
        assert done.code == 0 and "threads" not in done.err, done.err
        assert saved() == (2, 2)

    @pytest.mark.parametrize("cores, flags, now", [(1, [], 1), (4, ["--threads", "3"], 3)])
    def test_another_number_is_told(self, text, run, monkeypatch, cores, flags, now):
        monkeypatch.setattr(threads, "available_cores", lambda: cores)
        assert run("train", "a.txt", *TINY, "--threads", "2").code == 0
        done = run("train", "--resume", "a", "--max-steps", "7", *flags)
        assert done.code == 0 and saved() == (now, now)
        assert len([line for line in done.lines if "threads" in line]) == 1
        assert f"threads: 2 when it was saved, {now} now" in done.err
        assert "not bit for bit" in done.err

    @pytest.mark.parametrize("verb", ["generate", "evaluate", "benchmark"])
    def test_other_verbs_take_it(self, place, run, verb, monkeypatch):
        used: list[int] = []
        monkeypatch.setattr(torch, "set_num_threads", used.append)
        more = {
            "generate": ["a", "--max-new-tokens", "1"],
            "benchmark": "--d-model 16 --n-layers 1 --n-heads 2 --iterations 1".split(),
        }
        done = run(verb, *more.get(verb, []), "--threads", "3")
        assert done.code == 0 and 3 in used
        assert_refused(run(verb, "--threads", "0"), 2, "threads 0", "1")


class TestEpochs:
    def test_steps_follow_from_the_text(self, text, run):
        """Twice through the part that is learned from; the plan says so."""
        done = run("train", "a.txt", *STEPLESS, "--epochs", "2")
        assert done.code == 0 and "(2.0 times the text)" in done.out
        folder = text / "checkpoints" / "a"
        train = from_toml(folder / "config.toml").train
        n_steps = int(re.findall(r"to ([\d,]+), 64 tokens each", done.out)[0].replace(",", ""))
        assert (train.epochs, train.max_steps) == (2, n_steps) and n_steps > 10

    def test_at_least_one_step(self, text, run):
        assert run("train", "a.txt", *STEPLESS, "--epochs", "0.00001").code == 0
        assert from_toml(text / "checkpoints" / "a" / "config.toml").train.max_steps == 1

    @pytest.mark.parametrize(
        "flags, file",
        [
            (["--epochs", "1", "--max-steps", "9"], ""),
            (["--epochs", "1", "--minutes", "1"], ""),
            (["--minutes", "1"], "epochs = 2"),
            ([], "epochs = 2\nmax_steps = 8"),
        ],
    )
    def test_contradictions(self, text, run, flags, file):
        (text / "c.toml").write_text(file, encoding="utf-8")
        refused = run("train", "a.txt", "--config", "c.toml", *STEPLESS, *flags)
        assert_refused(refused, 2, "epochs", "give one of them")

    def test_higher_layers_win(self, text, run):
        """A flag goes before a file, whichever of the two it names."""
        (text / "e.toml").write_text("epochs = 2", encoding="utf-8")
        (text / "m.toml").write_text("max_steps = 3", encoding="utf-8")
        flags = [*STEPLESS, "--run"]
        assert (
            run("train", "a.txt", "--config", "e.toml", *flags, "a", "--max-steps", "4").code == 0
        )
        assert run("train", "a.txt", "--config", "m.toml", *flags, "b", "--epochs", "1").code == 0
        a, b = (from_toml(text / "checkpoints" / n / "config.toml").train for n in "ab")
        assert (a.epochs, a.max_steps) == (None, 4)
        assert b.epochs == 1 and b.max_steps > 4

    def test_shown_with_its_origin(self, text, run):
        done = run("train", "a.txt", *STEPLESS, "--epochs", "2", "--show-settings")
        rows = {line.split()[0]: line.split()[1:] for line in done.out.splitlines()}
        assert rows["epochs"] == ["2.0", "flag"]
        assert rows["max_steps"][1] == "epochs" and int(rows["max_steps"][0]) > 10

    def test_more_of_them_on_resuming(self, text, run):
        assert run("train", "a.txt", *STEPLESS, "--epochs", "1").code == 0
        config = text / "checkpoints" / "a" / "config.toml"
        once = from_toml(config).train.max_steps
        shown = run("train", "--resume", "a", "--epochs", "2", "--show-settings").out
        done = run("train", "--resume", "a", "--epochs", "2")
        assert done.code == 0, done.err
        train = from_toml(config).train
        assert ["max_steps", str(train.max_steps), "epochs"] in map(str.split, shown.splitlines())
        assert train.epochs == 2 and abs(train.max_steps - 2 * once) <= 1
        assert run("train", "--resume", "a", "--max-steps", str(2 * once + 5)).code == 0
        train = from_toml(config).train
        assert (train.epochs, train.max_steps) == (None, 2 * once + 5)
        assert_refused(
            run("train", "--resume", "a", "--epochs", "0.1"), 2, "max_steps", announced=1
        )
