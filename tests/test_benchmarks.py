"""The comparing benchmarks: that they run, and read what the other side prints."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def text(tmp_path, longer_text) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(longer_text, encoding="utf-8")
    return path


@pytest.fixture
def checkout(tmp_path) -> Path:
    """What stands for nanoGPT: scripts with its names and flags, whose model knows nothing."""
    root = tmp_path / "checkout"
    (root / "config").mkdir(parents=True)
    (root / "data" / "shakespeare_char").mkdir(parents=True)
    (root / "config" / "train_shakespeare_char.py").touch()
    prepare = """
        import os, numpy, requests
        folder = os.path.dirname(__file__)
        text = open(os.path.join(folder, "input.txt")).read()
        ids = numpy.array([ord(c) % 50 for c in text], numpy.uint16)
        ids[len(ids) * 9 // 10:].tofile(os.path.join(folder, "val.bin"))
    """
    train = """
        import sys, torch
        assert sys.argv[1] == "config/train_shakespeare_char.py"
        block_size, iter_num, device = 16, 31, "cpu"
        class Model(torch.nn.Module):
            def forward(self, x, y):
                return None, torch.nn.functional.cross_entropy(torch.zeros(x.numel(), 50), y[0])
        raw_model = Model()
        for i in range(30):
            print(f"iter {i}: loss 2.5000, time {100 if i < 10 else 40}.00ms, mfu 1.00%")
    """
    (root / "data/shakespeare_char/prepare.py").write_text(textwrap.dedent(prepare))
    (root / "train.py").write_text(textwrap.dedent(train))
    return root


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(FOLDER / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nanogpt_is_run_unchanged_and_measured_over_everything(checkout, text, tmp_path):
    output = run("nanogpt.py", checkout, text, tmp_path, "--device=cpu")
    found = json.loads(output.splitlines()[-1])
    assert found["steps"] == 30 and found["seconds"] >= 0
    assert found["loss"] == pytest.approx(3.912, abs=1e-3)  # ln 50


@pytest.mark.slow
def test_training_speed(checkout, text, tmp_path):
    """The median of the settled steps, of both sides, in the table and the file."""
    path = tmp_path / "speed.json"
    options = ["--nanogpt", checkout, "--steps", 12, "--rounds", 1, "--json", path]
    table = run("training_speed.py", text, *options)
    assert "nanoGPT, compiled" in table and "ours is faster by" in table
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert results["nanoGPT, eager"][0]["seconds"] == 0.04
    assert results["MyLLM"][0]["steps"] == 12


@pytest.mark.slow
def test_scaling(tmp_path):
    picture, path = tmp_path / "scaling.png", tmp_path / "scaling.json"
    table = run("scaling.py", picture, "--sweep", "batch_size", "--json", path)
    assert "against batch_size" in table and picture.stat().st_size > 1000
    points = json.loads(path.read_text(encoding="utf-8"))["results"]["batch_size"]
    assert [point["batch_size"] for point in points] == [2, 8, 32]
    for point in points:
        assert point["estimated_bytes"] == pytest.approx(point["memory_bytes"], rel=0.35)


def test_what_stands_on_a_terminal_in_the_end(monkeypatch):
    """Of a bar that was drawn again and taken off nothing; of wide characters each one."""
    pytest.importorskip("pty")
    monkeypatch.syspath_prepend(str(FOLDER))
    from first_hour import shown

    bar = "a\r\nbar 1\r\x1b[2Kbar 2\r\x1b[1A\x1b[2Kdone\r\n\x1b[2K"
    assert shown(f"{bar}日本\x1b[2D語\r\nab\x1b[2D1\x1b]0;t\x07") == ["done", "日語", "1b"]


@pytest.mark.parametrize(
    "kind, is_early, worse, gain, is_true",
    [
        ("overfitted", True, 0.2, 0.001, True),
        ("overfitted", False, -0.1, 0.0, False),
        ("overfitted", True, 0.2, 0.05, False),
        ("still improving", False, 0.0, 0.1, True),
        ("levelled off", False, 0.0, 0.1, False),
        ("learned nothing", False, 0.0, 0.01, False),
    ],
)
def test_verdicts_are_judged_by_what_they_promise(
    monkeypatch, kind, is_early, worse, gain, is_true
):
    monkeypatch.syspath_prepend(str(FOLDER))
    from verdicts import measured

    assert measured(kind, is_early, worse, gain, away=0.0)[1] is is_true


def test_imports_are_summed_up_by_package(monkeypatch):
    """Of what Python traces, each module once, by its own time."""
    monkeypatch.syspath_prepend(str(FOLDER))
    from start import by_package

    trace = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:       300 |        300 |     json.decoder\n"
        "import time:      2000 |       2300 |   torch.nn\nMyLLM's own line\n"
        "import time:      1000 |       3300 | torch\n"
    )
    assert by_package(trace) == {"Python's own": (1, 0.0003), "torch": (2, 0.003)}


@pytest.mark.slow
def test_start():
    table = run("start.py", "--rounds", 1, "--runs-dir", FOLDER.parent / "tests/saved_run/runs")
    rows = {
        row[1].strip(): row[2:]
        for row in (line.split("│") for line in table.splitlines())
        if len(row) > 4
    }
    assert float(rows["myllm --help"][0]) < float(rows["myllm generate"][0])
    assert rows["myllm --help"][3].strip() == "0" and int(rows["import torch"][3]) > 100
    assert rows["torch"][2].strip().endswith("%")
