"""kill -9 and power loss: nothing saved is lost, and a resumed run ends as if never stopped."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from myllm.config import RunConfig
from myllm.runs.checkpoint import Checkpoint
from myllm.runs.folder import RunFolder
from myllm.runs.weights import load_weights, model_tensors
from myllm.system.device import host_copies

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks and kills")
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "faults.py"


@pytest.mark.parametrize("n_kills", [5, pytest.param(25, marks=pytest.mark.slow)])
def test_kills_lose_nothing(tmp_path, longer_text, n_kills):
    """In a process of its own: what it forks must not have computed anything yet."""
    text = tmp_path / "text.txt"
    text.write_text(longer_text, encoding="utf-8")
    command = [
        sys.executable,
        str(BENCHMARK),
        str(text),
        "--kills",
        str(n_kills),
        "--only",
        "kills",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{n_kills} kills, 0 losses" in done.stdout


@pytest.fixture
def run(tmp_path, tokenizer, model_config) -> RunFolder:
    return RunFolder.create(tmp_path / "out", "run", RunConfig(model=model_config), tokenizer)


def at(step: int, model, run: RunFolder) -> Checkpoint:
    with torch.no_grad():
        model.ln_final.weight.fill_(step)
    weights = host_copies(model_tensors(model))
    return Checkpoint(step, weights, {"x:m": torch.ones(3)}, {"seen": step}, {}, run.small_files())


def test_every_prefix_of_a_save_loads(tmp_path, run, small_model):
    """The power fails after any operation of a save that also prunes: old or new is there."""
    from crashes import PowerLoss

    for step in (1, 2):
        run.append_metrics({"step": step})
        run.checkpoints.save(at(step, small_model, run), is_best=step == 1, keep=2)
    run.append_metrics({"step": 3})
    power = PowerLoss(run.path)
    with power.recording():
        run.checkpoints.save(at(3, small_model, run), is_best=True, keep=2)
    assert run.checkpoints.steps() == [2, 3]
    operations = [name for name, _, _ in power.log]
    assert {"write", "make_folder", "sync", "rename", "remove"} == set(operations)

    n_states = 0
    for n, variant, files in power.states():
        folder = tmp_path / f"state-{n}-{variant[-4:]}"
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        found = RunFolder(folder).checkpoints.load()
        assert found.step in (2, 3), (n, variant)
        load_weights(small_model, found)
        assert (small_model.ln_final.weight == found.step).all()
        best = RunFolder(folder).checkpoints.load("best").step
        assert best == (3 if found.step == 3 else 1), (n, variant)
        n_states += 1
    assert found.step == 3 and n_states == 2 * (len(power.log) + 1)


def test_without_the_syncs_it_would_not_hold(tmp_path, run, small_model):
    """That the replay above can fail: a save that leaves out its syncs loses its content."""
    from crashes import PowerLoss

    run.checkpoints.save(at(1, small_model, run), is_best=True, keep=2)
    power = PowerLoss(run.path)
    with power.recording():
        run.checkpoints.save(at(2, small_model, run), is_best=True, keep=2)
    power.log = [entry for entry in power.log if entry[0] != "sync"]
    last = [files for _, variant, files in power.states() if variant == PowerLoss.VARIANTS[1]][-1]
    assert last["step-000002/model.safetensors"] == b""


def test_the_second_process_is_refused(run, small_model):
    from myllm.errors import InputError

    run.lock()
    with pytest.raises(InputError, match="in use by another process"):
        RunFolder(run.path).lock()
    run.unlock()
    RunFolder(run.path).lock()


def test_what_dead_processes_left_is_removed(run):
    left = run.path / ".tmp-step-000009-1"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    run.lock()
    assert not left.exists()


def test_a_good_step_is_never_written_again(run, small_model):
    run.checkpoints.save(at(1, small_model, run), is_best=True, keep=2)
    before = {p: p.stat().st_mtime_ns for p in run.checkpoints.folder(1).iterdir()}
    run.checkpoints.save(
        dataclasses.replace(at(1, small_model, run), state={"other": 1}), False, 2
    )
    assert {p: p.stat().st_mtime_ns for p in run.checkpoints.folder(1).iterdir()} == before


def test_a_damaged_step_is_put_aside(run, small_model, caplog):
    run.checkpoints.save(at(1, small_model, run), is_best=True, keep=2)
    (run.checkpoints.folder(1) / "state.json").write_bytes(b"{}")
    again = RunFolder(run.path)
    again.checkpoints.save(at(1, small_model, run), is_best=True, keep=2)
    assert (run.path / "step-000001.damaged-1" / "state.json").read_bytes() == b"{}"
    assert again.checkpoints.load().state["seen"] == 1


def test_pruning_counts_good_checkpoints_only(run, small_model):
    for step in (1, 2, 3):
        run.checkpoints.save(at(step, small_model, run), is_best=step == 1, keep=5)
    (run.checkpoints.folder(3) / "state.json").write_bytes(b"{}")
    again = RunFolder(run.path)
    again.checkpoints.save(at(4, small_model, run), is_best=False, keep=1)
    assert again.checkpoints.steps() == [
        1,
        2,
        3,
        4,
    ]  # the best, two good ones, and the damaged between them
