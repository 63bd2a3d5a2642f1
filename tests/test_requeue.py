"""Jobs of a batch system: saved on request, and gone on with when they are started again."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from cli_place import TINY, assert_refused, hashes

from myllm.display import TrainingDisplay

pytestmark = pytest.mark.usefixtures("quiet_terminal")
JOB = ["train", "story.txt", "--run", "job", "--resume", "auto", *TINY]
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture
def send(monkeypatch):
    """Sends this process signals after a step of training."""

    def at(step, *numbers):
        def on_step(self, done, loss, tokens_per_second):
            if done == step:
                for number in numbers:
                    os.kill(os.getpid(), number)

        monkeypatch.setattr(TrainingDisplay, "on_step", on_step)

    return at


class TestAuto:
    def test_begins_goes_on_and_is_finished(self, place, run, send):
        send(4, signal.SIGINT)
        first = run(*JOB)
        assert first.code == 130 and "there is no run job yet" in first.lines[0]
        send(0)
        again = run(*JOB)
        assert again.code == 0 and "run job is there: it goes on" in again.lines[0]
        assert "from step 4 to 6" in again.out
        before = hashes("checkpoints/job")
        third = run(*JOB)
        assert third.code == 0 and "has done its 6 steps" in third.lines[-1]
        assert "best validation loss" in third.out
        assert hashes("checkpoints/job") == before
        assert not Path("checkpoints/job-2").exists()

    def test_ends_as_a_run_that_was_never_stopped(self, place, run, send):
        assert run("train", "story.txt", "--run", "whole", *TINY).code == 0
        send(2, signal.SIGINT)
        assert run(*JOB).code == 130
        send(0)
        assert run(*JOB).code == 0
        whole, job = (hashes(f"checkpoints/{name}/step-000006") for name in ("whole", "job"))
        assert whole["model.safetensors"] == job["model.safetensors"]

    def test_the_name_that_the_text_gives(self, place, run):
        args = ["train", "story.txt", "--resume", "auto", *TINY]
        result = run(*args)  # `story` is there, of these very settings
        assert result.code == 0 and "has done its 6 steps" in result.lines[-1]

    def test_what_a_run_has_fitted_is_no_other_setting(self, place, run):
        """A vocabulary that the text cannot fill, micro-batches that fit the memory."""
        args = [*JOB, "--vocab-size", "5000"]
        assert run(*args).code == 0
        result = run(*args, "--batch-size", "2", "--accumulation-steps", "2")
        assert result.code == 0 and "has done its 6 steps" in result.lines[-1]

    @pytest.mark.parametrize("flag, value", [("--max-steps", "9"), ("--d-model", "64")])
    def test_other_settings(self, place, run, flag, value):
        assert run(*JOB).code == 0
        name = flag[2:].replace("-", "_")
        assert_refused(run(*JOB, flag, value), 2, name, value, "--resume job")

    def test_another_text(self, place, run):
        assert run(*JOB).code == 0
        Path("story.txt").write_text(Path("story.txt").read_text()[100:])
        result = run(*JOB)
        assert_refused(result, 2, "the text of job has changed", announced=len(result.lines) - 1)

    def test_something_else_of_that_name(self, place, run):
        Path("checkpoints/job").mkdir()
        Path("checkpoints/job/notes.txt").touch()
        assert_refused(run(*JOB), 2, "is no run", "--run")
        Path("checkpoints/job/notes.txt").unlink()  # an empty one is in nobody's way
        assert run(*JOB).code == 0
        assert Path("checkpoints/job/last").is_file()

    def test_a_run_that_ended_before_its_first_checkpoint(self, place, run, send, monkeypatch):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("myllm.train.trainer.Trainer._loop", lambda *_: None)
            run(*JOB)
        assert run(*JOB).code == 0
        assert Path("checkpoints/job/step-000006").is_dir()

    def test_show_settings(self, place, run):
        assert run(*JOB).code == 0
        assert "run auto" in run(*JOB, "--show-settings").out


@posix
class TestSignals:
    @pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2"])
    def test_saves_and_goes_on(self, place, run, send, name):
        """Saved between evaluations; the end is the same."""
        assert run("train", "story.txt", "--run", "whole", *TINY).code == 0
        send(4, getattr(signal, name))
        result = run("train", "story.txt", "--run", "job", "--keep", "9", *TINY)
        assert result.code == 0
        assert f"{name}: saved at step 4; training goes on" in result.err
        assert Path("checkpoints/job/step-000004/manifest.json").is_file()
        assert run("verify", "job").code == 0
        whole, job = (hashes(f"checkpoints/{run}/step-000006") for run in ("whole", "job"))
        assert whole["model.safetensors"] == job["model.safetensors"]

    def test_elsewhere_it_ends_nothing(self, place, run, monkeypatch):
        from myllm import api

        real = api.load

        def load(*args):
            os.kill(os.getpid(), signal.SIGUSR1)
            return real(*args)

        monkeypatch.setattr(api, "load", load)
        result = run("verify", "story")
        assert result.code == 0
        assert result.lines == ["SIGUSR1 is ignored: there is nothing to save now"]

    def test_time_on_the_processor_is_over(self, place, run, send):
        """The system repeats SIGXCPU every second; that is no second signal."""
        send(2, signal.SIGXCPU, signal.SIGXCPU)
        result = run("train", "story.txt", "--run", "job", *TINY)
        assert result.code == 128 + signal.SIGXCPU
        assert "stopped at step 2 and saved" in result.lines[-1]
