"""The command line: damaged files, full disks."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_place import TINY, assert_refused, hashes, leftovers, words

pytestmark = pytest.mark.usefixtures("quiet_terminal")


class TestDamage:
    def truncate(self, path):
        path.write_bytes(path.read_bytes()[:-10])

    def alter(self, path):
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)

    def test_unharmed_best_is_step_six(self, place):
        """The tests below damage what is used."""
        assert Path("checkpoints/story/best").read_text().strip() == "step-000006"
        assert Path("checkpoints/story/last").read_text().strip() == "step-000006"

    @pytest.mark.parametrize("how", ["truncate", "alter", "unlink"])
    @pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
    def test_older_checkpoint_is_used_and_announced(self, place, run, how, name):
        """Exit 0; the damaged file and the step used instead are named."""
        path = Path("checkpoints/story/step-000006") / name
        if how == "unlink":
            path.unlink()
        elif name == "manifest.json" and how == "alter":
            path.write_text(path.read_text().replace('"sha256": "', '"sha256": "0'))
        else:
            getattr(self, how)(path)
        for args in (["generate", "the", "--max-new-tokens", "5"], ["evaluate"]):
            result = run(*args)
            assert result.code == 0
            assert len(result.lines) == 2, result.err
            assert "step-000006" in result.lines[0] and "3" in result.lines[1]
            if how != "alter":
                assert name in result.lines[0]

    def test_resume_from_the_older_checkpoint(self, place, run):
        """Training goes on from the good one and makes the damaged one anew."""
        self.truncate(Path("checkpoints/story/step-000006/optimizer.safetensors"))
        result = run("train", "--resume", "story")
        assert result.code == 0
        assert "optimizer.safetensors" in result.lines[0] and "from step 3 to 6" in result.out
        metrics = Path("checkpoints/story/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in metrics] == [3, 6]
        again = run("train", "--resume", "story")
        assert again.code == 0 and again.err == ""

    def test_fewer_steps_than_are_done(self, place, run):
        """Exit 2, and the run keeps its settings."""
        config = Path("checkpoints/story/config.toml")
        before = config.read_bytes()
        result = run("train", "--resume", "story", "--max-steps", "4")
        assert result.code == 2 and "Traceback" not in result.err
        assert result.lines[-1] == (
            "myllm: max_steps 4: story has done 6 steps already; give more"
        )
        assert config.read_bytes() == before

    @pytest.mark.parametrize("how", ["truncate", "alter", "unlink"])
    def test_no_good_checkpoint_left(self, place, run, how):
        """Exit 3; the last line names a damaged file. Nothing is deleted."""
        for step in (3, 6):
            path = Path(f"checkpoints/story/step-{step:06d}/model.safetensors")
            path.unlink() if how == "unlink" else getattr(self, how)(path)
        before = hashes("checkpoints")
        for args in (["generate", "the"], ["evaluate"], ["train", "--resume", "story"]):
            result = run(*args)
            assert_refused(result, 3, "model.safetensors", announced=len(result.lines) - 1)
        assert hashes("checkpoints") == before

    def test_damaged_metrics_do_not_stop_resuming(self, place, run):
        """A line cut short by a crash is left out."""
        with open("checkpoints/story/metrics.jsonl", "ab") as file:
            file.write(b'{"step": 6, "elap')
        assert run("train", "--resume", "story", "--max-steps", "7").code == 0

    @pytest.mark.parametrize("name", ["tokenizer.json", "config.toml"])
    def test_damaged_small_files_are_replaced(self, place, run, name):
        """The checkpoints hold copies: nothing is lost, and it is announced."""
        self.truncate(Path("checkpoints/story") / name)
        assert run("generate", "the", "--max-new-tokens", "5").code == 0
        result = run("train", "--resume", "story")
        assert result.code == 0
        assert name in result.lines[0] and "using the copy of step 6" in result.lines[0]
        assert run("verify", "story").code == 0


class TestFullDisk:
    def test_while_resuming(self, place, run, monkeypatch):
        """Exit 4 with the bytes needed; earlier checkpoints are the same bytes."""
        before = hashes("checkpoints/story")
        usage = SimpleNamespace(total=10**9, used=10**9, free=0)
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
        result = run("train", "--resume", "story", "--max-steps", "9")
        assert_refused(result, 4, "bytes", "--resume story", announced=len(result.lines) - 1)
        assert re.search(r"[\d,]{7,} bytes", result.lines[-1])
        kept = {name: value for name, value in before.items() if name.startswith("step-")}
        assert {n: v for n, v in hashes("checkpoints/story").items() if "step-" in n} == kept
        assert not leftovers()

    def test_then_with_room_again(self, place, run):
        """What the message says works: the run goes on."""
        with pytest.MonkeyPatch.context() as patch:
            usage = SimpleNamespace(total=10**9, used=10**9, free=0)
            patch.setattr("shutil.disk_usage", lambda _: usage)
            assert run("train", "--resume", "story", "--max-steps", "9").code == 4
        assert run("generate", "the", "--max-new-tokens", "3").code == 0
        assert run("train", "--resume", "story", "--max-steps", "9").code == 0

    def test_in_the_middle_of_writing(self, place, run, monkeypatch):
        """A disk that fills up while a file is written is no different."""
        before = hashes("checkpoints/story")

        def half(tensors, path):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("myllm.runs.checkpoint.write_tensors", half)
        result = run("train", "--resume", "story", "--max-steps", "9")
        assert_refused(result, 4, "bytes", announced=len(result.lines) - 1)
        kept = {name: value for name, value in before.items() if name.startswith("step-")}
        assert {n: v for n, v in hashes("checkpoints/story").items() if "step-" in n} == kept
        assert not leftovers()

    def test_where_metrics_do_not_fit(self, place, run, monkeypatch):
        """The first thing that does not fit may be a line of metrics."""
        whole = Path.open

        def full(path, mode="r", *args, **kwargs):
            if path.name == "metrics.jsonl" and "a" in mode:
                raise OSError(28, "No space left on device")
            return whole(path, mode, *args, **kwargs)

        monkeypatch.setattr(Path, "open", full)
        result = run("train", "--resume", "story", "--max-steps", "9")
        assert_refused(result, 4, announced=len(result.lines) - 1)

    def test_while_preparing(self, folder, run, monkeypatch):
        """No room for the tokens is exit 4, too, and leaves nothing."""
        Path("story.txt").write_text(words())

        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("myllm.data.prepare.encode_sources", full)
        assert_refused(run("train", "story.txt", *TINY), 4, "space")
        assert not leftovers()
