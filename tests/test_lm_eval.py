"""The evaluation harness: a run scores as its exported folder does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from myllm.formats.hf_export import export_huggingface
from myllm.runs.folder import RunFolder

slow = pytest.mark.slow

COMMON = """dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
"""
TASKS = {
    "choice": """task: choice
output_type: multiple_choice
doc_to_text: "{{before}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "page": """task: page
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
""",
    "written": """task: written
output_type: generate_until
doc_to_text: "{{before}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: [","], max_gen_toks: 20, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture
def tasks(tmp_path):
    """A folder of three local tasks, cut from this file."""
    text = Path(__file__).read_text(encoding="utf-8")
    pieces = [text[i : i + 150] for i in range(0, 1500, 150)]
    documents = [
        {
            "before": piece[:100].rstrip(),
            "choices": [" " + piece[100:].strip(), " " + other[:40].strip(), " 0 0 0"],
            "text": piece + other * 3,  # beyond the context
        }
        for piece, other in zip(pieces, pieces[1:])
    ]
    data = tmp_path / "documents.jsonl"
    data.write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    for name, task in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(task + COMMON % data, encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(tmp_path):
    from myllm.cli import main

    flags = "--d-model 48 --n-layers 2 --n-heads 2 --context-length 128 --max-steps 60 --run run"
    command = ["train", __file__, "--runs-dir", str(tmp_path), "--batch-size", "4", *flags.split()]
    assert main([*command, "--vocab-size", "320", "--data-dir", str(tmp_path / "data")]) == 0
    return RunFolder(tmp_path / "run")


def test_the_library_has_its_command():
    """What the module is run with: tells when a new version calls its entry point otherwise."""
    pytest.importorskip("lm_eval")
    from myllm.formats.lm_eval import command

    assert callable(command())


@slow
def test_a_run_scores_as_its_export(run, tasks, tmp_path, monkeypatch):
    """Choices, log-likelihoods of texts longer than the context, and texts written."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from myllm.formats.lm_eval import HarnessModel

    export_huggingface(run, tmp_path / "hf")
    found = [
        lm_eval.simple_evaluate(
            model, tasks=list(TASKS), task_manager=TaskManager(include_path=str(tasks)),
            bootstrap_iters=0,
        )
        for model in (
            HarnessModel("run", runs_dir=str(tmp_path), device="cpu", batch_size=4),
            HFLM(str(tmp_path / "hf"), device="cpu", dtype="float32", batch_size=4),
        )
    ]  # fmt: skip
    ours, theirs = (result["results"] for result in found)
    for task in TASKS:
        assert ours[task].keys() == theirs[task].keys()
        for metric, value in theirs[task].items():
            assert ours[task][metric] == (
                pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            ), metric
    samples = [[s["resps"] for s in result["samples"]["written"]] for result in found]
    assert samples[0] == samples[1] and any(text[0][0] for text in samples[0])


@slow
def test_the_command(run, tasks):
    command = (
        f"-m myllm.formats.lm_eval run --model myllm --model_args run={run.path} --tasks choice"
    )
    command += f" --include_path {tasks} --device cpu --batch_size 4"
    done = subprocess.run(
        [sys.executable, *command.split()], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert "acc_norm" in done.stdout


@slow
def test_no_such_run(tasks):
    command = "-m myllm.formats.lm_eval run --model myllm --model_args run=nothing --tasks choice"
    done = subprocess.run(
        [sys.executable, *command.split(), "--include_path", str(tasks)],
        capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("myllm: no run 'nothing'")
