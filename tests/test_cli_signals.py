"""The command line: training that a signal stops, and how it goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_place import ENV, TINY, assert_refused, hashes

from myllm.display import TrainingDisplay

pytestmark = pytest.mark.usefixtures("quiet_terminal")


def interrupt_at(monkeypatch, step, number):
    """Sends this process a signal at a step of training."""

    def on_step(self, done, loss, tokens_per_second):
        if done == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(TrainingDisplay, "on_step", on_step)


class TestSignals:
    @pytest.mark.parametrize(
        "number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
    )
    def test_finishes_the_step_and_saves(self, place, run, number, code):
        """The exit code is the signal's; the line says how to go on, and that works."""
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(patch, 2, number)
            result = run("train", "story.txt", "--run", "stopped", *TINY)
        assert_refused(result, code, "step 2", "--resume stopped", announced=1)
        assert (Path("checkpoints/stopped/step-000002") / "model.safetensors").is_file()
        again = run("train", "--resume", "stopped")
        assert again.code == 0 and "from step 2 to 6" in again.out

    def test_resumed_weights_are_those_of_one_run(self, place, run):
        """Interrupted and resumed, the last weights are bit-identical (law 3)."""
        args = ["story.txt", "--dropout", "0.1", "--accumulation-steps", "2", *TINY]
        assert run("train", *args, "--run", "whole").code == 0
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(patch, 4, signal.SIGINT)
            assert run("train", *args, "--run", "parts").code == 130
        assert run("train", "--resume", "parts").code == 0
        whole, parts = (hashes(f"checkpoints/{name}/step-000006") for name in ("whole", "parts"))
        assert whole["model.safetensors"] == parts["model.safetensors"]

    def test_handlers_are_put_back(self, place, run):
        """After training, signals do what they did before."""
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        assert run("train", "story.txt", *TINY).code == 0
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before

    def test_way_to_resume_holds_for_another_folder(self, place, run):
        """With --runs-dir, the command to resume names it as well."""
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(patch, 2, signal.SIGINT)
            result = run("train", "story.txt", "--run", "far", "--runs-dir", "runs", *TINY)
        command = result.lines[-1].partition("myllm train --resume")[2].split()
        assert run("train", "--resume", *command).code == 0

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
    @pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143)])
    def test_real_process(self, place, name, code):
        """A process of its own stops at the signal, and a new one goes on."""
        args = [a if a != "6" else "100000" for a in TINY]
        command = [sys.executable, "-m", "myllm", "train"]
        process = subprocess.Popen(
            [*command, "story.txt", "--run", "long", *args],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("step "):
                    break
            process.send_signal(getattr(signal, name))
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == code, err
        last = err.splitlines()[-1]
        assert last.startswith("myllm: ") and "--resume long" in last
        assert "Traceback" not in err
        step = int(last.partition("step ")[2].split()[0])
        done = subprocess.run(
            [*command, "--resume", "long", "--max-steps", str(step + 2)],
            capture_output=True, text=True, env=ENV, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"from step {step} to" in done.stdout.replace(",", "")
