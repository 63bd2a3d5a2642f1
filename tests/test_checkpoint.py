"""Run folders: whole or not there, verified, never pickled (law 6)."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch

from myllm.config import RunConfig
from myllm.errors import CheckpointError, DiskFullError, InputError
from myllm.runs.checkpoint import Checkpoint
from myllm.runs.folder import RunFolder, find_run
from myllm.runs.weights import load_model, model_tensors
from myllm.system.device import host_copies

FILES = [
    "config.toml", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json",
    "tokenizer.json",
]  # fmt: skip


@pytest.fixture
def run(tmp_path, tokenizer, model_config) -> RunFolder:
    return RunFolder.create(tmp_path, "run", RunConfig(model=model_config), tokenizer)


def at(step: int, model, run: RunFolder) -> Checkpoint:
    with torch.no_grad():
        model.ln_final.weight.fill_(step)
    tensors = host_copies(model_tensors(model))
    return Checkpoint(step, tensors, {"x:m": torch.ones(3)}, {"seen": step}, {}, run.small_files())


def contents(folder) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class TestRunFolder:
    def test_round_trip(self, run, small_model):
        run.checkpoints.save(at(3, small_model, run), is_best=True, keep=2)
        found = RunFolder(run.path).checkpoints.load()
        assert found.step == 3 and found.state["seen"] == 3
        assert torch.equal(found.optimizer["x:m"], torch.ones(3))
        model, tokenizer, _ = load_model(run)
        for name, p in small_model.state_dict().items():
            assert torch.equal(model.state_dict()[name], p), name
        assert tokenizer.content_hash == run.tokenizer.content_hash

    def test_holds_safetensors_and_json_only(self, run, small_model):
        run.checkpoints.save(at(1, small_model, run), True, 2)
        assert sorted(p.name for p in (run.path / "step-000001").iterdir()) == sorted(FILES)
        names = {p.name for p in run.path.iterdir()}
        assert names == {"config.toml", "tokenizer.json", "last", "best", "step-000001"}

    def test_keeps_the_newest_and_the_best(self, run, small_model):
        for step in (1, 2, 3, 4, 5):
            run.checkpoints.save(at(step, small_model, run), is_best=step == 2, keep=2)
        assert run.checkpoints.steps() == [2, 4, 5]
        assert (run.checkpoints.best_step(), run.checkpoints.newest_good()) == (2, 5)
        names = [(run.path / pointer).read_text("utf-8") for pointer in ("best", "last")]
        assert names == ["step-000002\n", "step-000005\n"]
        assert run.checkpoints.load("best").step == 2 and run.checkpoints.load("last").step == 5

    def test_same_name_gets_a_number(self, run, tmp_path, tokenizer, caplog):
        other = RunFolder.create(tmp_path, "run", RunConfig(), tokenizer)
        assert other.name == "run-2" and "this one is run-2" in caplog.text

    @pytest.mark.parametrize("file", FILES)
    @pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
    def test_damage_is_found_and_named(self, run, small_model, file, damage, caplog):
        run.checkpoints.save(at(1, small_model, run), True, 3)
        run.checkpoints.save(at(2, small_model, run), True, 3)
        path = run.path / "step-000002" / file
        data = bytearray(path.read_bytes())
        if damage == "truncate":
            path.write_bytes(data[:-1])
        elif damage == "flip":
            data[len(data) // 2] ^= 4
            path.write_bytes(data)
        else:
            path.unlink()
        assert run.checkpoints.load().step == 1
        assert file in caplog.text and "step 1 instead" in caplog.text
        shutil.rmtree(run.path / "step-000001")
        with pytest.raises(CheckpointError, match=file.replace(".", r"\.")):
            run.checkpoints.load()

    def test_full_disk_is_known_beforehand(self, run, small_model, monkeypatch):
        run.checkpoints.save(at(1, small_model, run), True, 2)
        before = contents(run.path)
        usage = SimpleNamespace(total=10, used=10, free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(DiskFullError, match=r"[\d,]+ bytes are needed"):
            run.checkpoints.save(at(2, small_model, run), True, 2)
        assert contents(run.path) == before

    def test_weights_of_another_shape(self, run, small_model):
        wrong = {"token_embedding.weight": torch.ones(2, 2)}
        run.checkpoints.save(Checkpoint(1, wrong, {}, {}, {}, run.small_files()), True, 2)
        with pytest.raises(CheckpointError, match="does not fit its config.toml"):
            load_model(run)

    def test_metrics_survive_a_cut_line(self, run):
        run.append_metrics({"step": 1})
        run.append_metrics({"step": 2})
        with (run.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"step": 3, "va')
        assert [record["step"] for record in run.metrics()] == [1, 2]
        run.restore_files(Checkpoint(1, {}, {}, {}, {}, {"metrics.jsonl": b'{"step": 1}\n'}))
        assert (run.path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'


class TestFindRun:
    def test_newest(self, tmp_path, tokenizer, model_config, small_model):
        for name in ("b", "c", "a"):
            new = RunFolder.create(tmp_path, name, RunConfig(model=model_config), tokenizer)
            new.checkpoints.save(at(1, small_model, new), True, 2)
        assert find_run(tmp_path).name == "a"
        assert find_run(tmp_path, "b").name == "b"
        assert find_run(tmp_path, str(tmp_path / "c")).name == "c"

    def test_none(self, tmp_path):
        with pytest.raises(InputError, match="make one with myllm train"):
            find_run(tmp_path)
        with pytest.raises(InputError, match="no run 'x'"):
            find_run(tmp_path, "x")

    def test_no_checkpoint_yet(self, run):
        with pytest.raises(InputError, match="no checkpoint yet"):
            run.checkpoints.load()
