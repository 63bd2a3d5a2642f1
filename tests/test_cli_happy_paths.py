"""The command line: what each verb does."""

import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_place import TINY, assert_refused, hashes, words

pytestmark = pytest.mark.usefixtures("quiet_terminal")


class TestHappyPaths:
    def test_train_tells_plan_evaluations_and_result(self, place, run):
        """Plan, a warning, a line per evaluation, the result, what it is worth, three commands."""
        result = run("train", "story.txt", "--run", "told", *TINY)
        lines = result.out.splitlines()
        assert result.code == 0 and result.err == ""
        assert [line.split()[0] for line in lines[:5]] == "text model device steps saved".split()
        text = Path("story.txt").read_text()
        assert f"{len(text):,} characters" in lines[0] and "1 document" in lines[0]
        assert "parameters" in lines[1] and "cpu, float32" in lines[2]
        assert str(Path("checkpoints/told")) in lines[4]
        assert [line.split()[1] for line in lines if line.startswith("step ")] == ["3/6", "6/6"]
        result_line = next(line for line in lines if "best validation loss" in line)
        assert "nats per token" in result_line and "bits per byte" in result_line
        assert lines[5].startswith("warning this run sees only") and "--max-steps" in lines[5]
        assert "xz" in lines[9] and "hardly learned anything" in lines[10]
        assert lines[-3].strip().startswith("myllm generate ")
        assert lines[-2].strip() == "myllm write --run told"
        assert lines[-1].strip() == "myllm train --resume told --max-steps 200"
        assert len(lines) == 6 + 2 + 7

    def test_run_folder_has_all_parts(self, place):
        """Configuration, tokenizer, metrics with every field, checkpoints without pickle."""
        folder = Path("checkpoints/story")
        names = {path.name for path in folder.rglob("*") if path.is_file()}
        assert {"config.toml", "tokenizer.json", "metrics.jsonl", "model.safetensors"} <= names
        assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {
            ".toml", ".json", ".jsonl", ".safetensors", ""
        }  # fmt: skip
        records = [
            json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        assert [record["step"] for record in records] == [3, 6]
        assert set(records[0]) == {
            "step", "elapsed_s", "train_loss", "val_loss", "val_bits_per_byte", "learning_rate",
            "grad_norm", "tokens_per_second",
        }  # fmt: skip
        assert (folder / "step-000003").is_dir() and (folder / "step-000006").is_dir()

    def test_output_in_a_pipe_has_no_control_characters(self, place, run):
        """Every character is printable or ends a line."""
        result = run("train", "story.txt", *TINY)
        assert all(ch.isprintable() or ch == "\n" for ch in result.out + result.err)

    def test_quiet_prints_the_result_only(self, place, run):
        """--quiet leaves out plan and evaluations."""
        result = run("train", "story.txt", "--quiet", "--run", "calm", *TINY)
        assert result.code == 0 and result.err == ""
        assert result.out.startswith("best validation loss")
        assert len(result.out.splitlines()) == 7

    def test_generate_streams_prompt_and_text(self, place, run):
        """The prompt comes first; the same seed gives the same text."""
        args = ("generate", "the moon", "--max-new-tokens", "20", "--sample-seed", "1")
        first, second = run(*args), run(*args)
        assert first.code == 0 and first.err == ""
        assert first.out.startswith("the moon") and first.out.endswith("\n")
        assert len(first.out) > len("the moon\n")
        assert first.out == second.out
        assert run(*args[:-1], "2").out != first.out

    def test_generate_takes_the_newest_run_or_the_named_one(self, place, run):
        """Without --run the run that was saved last writes."""
        seeded = ("generate", "the", "--sample-seed", "1", "--max-new-tokens", "12")
        newest = run(*seeded).out
        assert newest == run(*seeded, "--run", "story").out
        other = run(*seeded, "--run", "chars").out
        assert other != newest
        assert run("train", "--resume", "chars", "--max-steps", "7").code == 0
        assert run(*seeded).out == run(*seeded, "--run", "chars").out

    def test_generate_with_all_settings(self, place, run):
        """Each sampling flag is accepted; a stop string ends the text and is not shown."""
        result = run(
            "generate", "the", "--temperature", "0.5", "--top-k", "5", "--top-p", "0.9", "--min-p",
            "0.05", "--repetition-penalty", "1.2", "--max-new-tokens", "300", "--sample-seed", "3",
            "--ignore-end", "--stop", "e",
        )  # fmt: skip
        assert result.code == 0
        assert "e" not in result.out.removeprefix("the")

    def test_write_reads_lines_from_a_pipe(self, place, run, monkeypatch):
        """A beginning is written on, commands work, /quit leaves."""
        lines = "the moon\n/temperature 0\n/settings\n/probs\n/nonsense\n/reset\n/quit\nnever\n"
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        result = run("write", "--max-new-tokens", "5", "--sample-seed", "1")
        assert result.code == 0 and result.err == ""
        assert "temperature: 0.0" in result.out
        assert "%" in result.out and "nonsense" in result.out
        assert "forgotten" in result.out

    def test_write_ends_with_its_input(self, place, run, monkeypatch):
        """The end of standard input is a good end."""
        monkeypatch.setattr(sys, "stdin", io.StringIO("the\n"))
        assert run("write", "--max-new-tokens", "3").code == 0

    def test_chat_says_what_it_is_not(self, place, run, monkeypatch):
        """No model here was trained to answer: one line says so, and writing begins."""
        monkeypatch.setattr(sys, "stdin", io.StringIO("the moon\n/quit\n"))
        result = run("chat", "--max-new-tokens", "5")
        assert result.code == 0 and result.err == ""
        assert result.out.splitlines()[0].startswith("story was not trained to answer")
        assert "myllm write" in result.out

    def test_chat_with_a_template(self, place, run, monkeypatch):
        """A chat template is not applied yet; one line says so."""
        monkeypatch.setattr("myllm.tokenizer.Tokenizer.chat_template", "{{ messages }}")
        monkeypatch.setattr(sys, "stdin", io.StringIO("/quit\n"))
        assert "not applied yet" in run("chat").out.splitlines()[0]

    def test_evaluate_agrees_with_training(self, place, run):
        """On the validation split it finds the best loss of training, again."""
        result = run("evaluate", "--device", "cpu")
        metrics = Path("checkpoints/story/metrics.jsonl").read_text().splitlines()
        best = min(json.loads(line)["val_loss"] for line in metrics)
        assert result.code == 0
        assert f"loss {best:.4f} nats per token" in result.out
        assert "bits per byte" in result.out and "run story" in result.out

    def test_evaluate_texts(self, place, run):
        """Each text has a line with its name; a last one is of all together."""
        Path("other.txt").write_text(words(3000, seed=2))
        result = run("evaluate", "other.txt", "story.txt", "--run", "chars")
        assert result.code == 0
        assert [line.split(":")[0] for line in result.out.splitlines()] == [
            "other.txt",
            "story.txt",
            "all 2 texts",
        ]

    def test_prepare_then_train_on_the_folder(self, folder, run):
        """prepare makes a folder, train takes it, the run resumes from it."""
        Path("story.txt").write_text(words())
        made = run("prepare", "story.txt", "--vocab-size", "300", "--out", "data/corpus")
        assert made.code == 0 and "vocabulary 300" in made.out
        assert made.out.splitlines()[-1].endswith(f"myllm train {Path('data/corpus')}")
        Path("story.txt").unlink()
        result = run("train", "data/corpus", *TINY)
        assert result.code == 0 and "vocabulary 300" in result.out
        assert Path("checkpoints/corpus/config.toml").is_file()
        assert run("train", "--resume", "corpus", "--max-steps", "7").code == 0
        assert run("evaluate").code == 0

    def test_second_training_reuses_the_tokens(self, place, run, monkeypatch):
        """The same text is not prepared twice."""
        monkeypatch.setattr(
            "myllm.data.prepare._write_tokens", lambda *_: pytest.fail("prepared again")
        )
        assert run("train", "story.txt", *TINY).code == 0

    def test_train_on_standard_input_and_resume(self, folder, run, monkeypatch):
        """A text from a pipe trains, and the run goes on without the pipe."""
        pipe = SimpleNamespace(buffer=io.BytesIO(words().encode()))
        monkeypatch.setattr(sys, "stdin", pipe)
        assert run("train", "-", *TINY).code == 0
        (made,) = Path("checkpoints").iterdir()
        assert made.name.startswith("stdin")
        result = run("train", "--resume", made.name, "--max-steps", "8")
        assert result.code == 0 and "8/8" in result.out

    def test_train_without_a_path_takes_the_manual(self, folder, run, monkeypatch):
        """No path and no network: the text that ships with Python."""
        monkeypatch.setattr("myllm.data.corpora._docstrings", lambda: iter([words(3000)]))
        result = run("train", *TINY)
        assert result.code == 0
        assert Path("checkpoints/python-docs/config.toml").is_file()
        assert run("evaluate").code == 0

    def test_resume_goes_on(self, place, run):
        """The steps after the saved ones are done, and metrics continue."""
        result = run("train", "--resume", "story", "--max-steps", "9")
        assert result.code == 0
        assert "from step 6 to 9" in result.out
        metrics = Path("checkpoints/story/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in metrics] == [3, 6, 9]
        assert (Path("checkpoints/story/step-000009") / "model.safetensors").is_file()

    def test_resume_of_a_finished_run_changes_nothing(self, place, run):
        """Nothing is left to do: the result is told, the checkpoints stay."""
        before = hashes("checkpoints/story")
        result = run("train", "--resume", "story")
        assert result.code == 0 and "best validation loss" in result.out
        assert hashes("checkpoints/story") == before

    def test_copied_run_works_alone(self, place, run, tmp_path, monkeypatch):
        """A run folder elsewhere generates, chats and evaluates a text by its path."""
        alone = tmp_path / "another machine"
        shutil.copytree("checkpoints/story", alone / "my run")
        shutil.rmtree(tmp_path / "place")
        cwd = tmp_path / "cwd"
        cwd.mkdir()
        monkeypatch.chdir(cwd)
        Path("a.txt").write_text(words(2000))
        folder = alone / "my run"
        assert run("generate", "the", "--run", folder, "--max-new-tokens", "5").code == 0
        assert run("evaluate", "a.txt", "--run", folder).code == 0
        monkeypatch.setattr(sys, "stdin", io.StringIO("the\n"))
        assert run("write", "--run", folder, "--max-new-tokens", "5").code == 0
        assert run("generate", "the", "--run", "../another machine/my run").code == 0

    def test_copied_run_resumes_on_the_text_given_anew(self, place, run, tmp_path, monkeypatch):
        """On another machine the same text under another path goes on with the run."""
        cwd = tmp_path / "cwd"
        shutil.copytree("checkpoints/story", cwd / "checkpoints" / "story")
        shutil.copy("story.txt", cwd / "same.txt")
        monkeypatch.chdir(cwd)
        result = run("train", "same.txt", "--resume", "story", "--max-steps", "7")
        assert result.code == 0, result.err
        assert "7/7" in result.out

    def test_benchmark_prints_a_table(self, folder, run):
        """Speed, share of the measured peak and memory, for small settings."""
        result = run(
            "benchmark", "--d-model", "32", "--n-layers", "1", "--n-heads", "2",
            "--context-length", "16", "--batch-size", "2", "--iterations", "2", "--device", "cpu",
            "--dtype", "float32",
        )  # fmt: skip
        assert result.code == 0, result.err
        assert "tokens/s" in result.out and "GFLOP/s" in result.out and "%" in result.out
        assert "in float32 by plain kernels: " in result.out.replace("numba", "plain")

    @pytest.mark.parametrize("preset", ["gpt2", "modern", "llama"])
    def test_each_preset_trains(self, place, run, preset):
        """Every layout trains and writes."""
        result = run("train", "story.txt", "--preset", preset, "--run", preset, *TINY)
        assert result.code == 0, result.err
        assert run("generate", "the", "--run", preset, "--max-new-tokens", "20").code == 0

    def test_text_of_2000_characters_trains(self, folder, run):
        """A short text takes a smaller context, and that is announced."""
        Path("short.txt").write_text(words(2000)[:2000])
        args = [arg for arg in TINY if arg not in ("--context-length", "16")]
        result = run("train", "short.txt", "--context-length", "1000", *args)
        assert result.code == 0, result.err
        assert len(result.lines) == 1 and "1000" in result.lines[0]
        (context,) = map(int, re.findall(r"context (\d+)", result.out))
        assert context < 1000

    @pytest.mark.parametrize(
        "name, text",
        [
            ("chinese.txt", "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。\n" * 120),
            ("emoji.txt", "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 party 🎉🎉 🇩🇪!\n" * 120),
            ("code.py", 'def f(x):\n\treturn {"a": x ** 2}\r\n\n' * 120),
        ],
    )
    @pytest.mark.parametrize("kind", ["bpe", "char"])
    def test_other_scripts_train_and_write(self, folder, run, name, text, kind):
        """Chinese, emoji and source text go all the way."""
        Path(name).write_bytes(text.encode())
        assert run("train", name, "--tokenizer", kind, *TINY).code == 0
        assert run("generate", text[:9], "--max-new-tokens", "20").code == 0
        assert run("evaluate", name).code == 0

    def test_model_that_fits_nowhere(self, folder, run):
        """Exit 6, and which settings to make smaller."""
        Path("a.txt").write_text(words())
        huge = ["--d-model", "65536", "--n-heads", "4096", "--head-dim", "4096"]  # terabytes
        assert_refused(run("train", "a.txt", *huge, "--device", "cpu"), 6, "--d-model")

    def test_file_whose_name_is_not_utf8(self, folder, run):
        """A name that cannot be written down is refused, and no run is begun."""
        if sys.platform != "linux":
            pytest.skip("file names are Unicode here")
        name = os.fsdecode(b"caf\xe9.txt")
        Path(name).write_text(words())
        before = list(Path("checkpoints").glob("*"))
        assert_refused(run("train", name, *TINY), 2, "rename the file")
        assert list(Path("checkpoints").glob("*")) == before

    def test_config_file(self, place, run):
        """Settings from a TOML file are used."""
        Path("tiny.toml").write_text("[model]\nd_model = 48\n[train]\nmax_steps = 2\n")
        args = [arg for arg in TINY if arg not in ("--d-model", "32", "--max-steps", "6")]
        result = run("train", "story.txt", "--config", "tiny.toml", "--run", "toml", *args)
        assert result.code == 0, result.err
        assert "48 wide" in result.out and "2/2" in result.out
