"""The command line: what each verb does, and what it says when it cannot."""

import hashlib
import io
import json
import logging
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import myllm
from myllm.cli import main
from myllm.display import TrainingDisplay

TINY = (
    "--d-model 32 --n-layers 1 --n-heads 2 --context-length 16 --batch-size 4 --max-steps 6 "
    "--eval-interval 3 --device cpu --dtype float32"
).split()
WORDS = "moon river lamp door walks sings and the a of over under green old new sea".split()
ROOT = Path(myllm.__file__).parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def words(n_characters=20_000, seed=1):
    """About so many characters of random words in lines."""
    rng = random.Random(seed)
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(3, 10))) for _ in range(n_characters // 30)]
    return "\n".join(lines) + "\n"


@pytest.fixture(autouse=True)
def _quiet_terminal(monkeypatch):
    """No variable that makes a pipe look like a terminal; one thread; the log as it was."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    handlers, level = logging.getLogger("myllm").handlers[:], logging.getLogger("myllm").level
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    logging.getLogger("myllm").handlers[:] = handlers
    logging.getLogger("myllm").setLevel(level)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A place with a text and two trained runs: `chars` and, newer, `story`."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        Path("story.txt").write_text(words(), encoding="utf-8")
        assert main(["train", "story.txt", "--tokenizer", "char", "--run", "chars", *TINY]) == 0
        assert main(["train", "story.txt", *TINY]) == 0
    return place


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def place(trained, tmp_path, monkeypatch, capsys):
    """A copy of the trained place to work in."""
    shutil.copytree(trained, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    capsys.readouterr()
    return Path(".")


class Result(SimpleNamespace):
    """Exit code, standard output, lines of standard error."""


@pytest.fixture
def run(capsys):
    """Runs the program in this process."""

    def call(*args):
        code = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        assert "\x1b" not in err
        return Result(code=code, out=out, err=err, lines=err.splitlines())

    return call


def assert_refused(result, code, *words, announced=0):
    """One line on stderr (after so many announcements), no traceback, with these words."""
    assert result.code == code, result.err
    assert "Traceback" not in result.err + result.out
    assert len(result.lines) == 1 + announced, result.err
    assert result.lines[-1].startswith("myllm: ")
    for word in words:
        assert word in result.lines[-1], result.lines[-1]


def hashes(folder):
    """Path → SHA-256 of every file in a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def leftovers():
    """Files and folders that were never finished."""
    return [path for path in Path(".").rglob(".tmp*")]


class TestHappyPaths:
    def test_train_tells_plan_evaluations_and_result(self, place, run):
        """Five lines of plan, a line per evaluation, the result, two commands to try."""
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
        assert lines[-2].strip().startswith("myllm generate ")
        assert lines[-1].strip() == "myllm write --run told"
        assert len(lines) == 5 + 2 + 4

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
        assert len(result.out.splitlines()) == 4

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
        """Each text has a line with its name."""
        Path("other.txt").write_text(words(3000, seed=2))
        result = run("evaluate", "other.txt", "story.txt", "--run", "chars")
        assert result.code == 0
        assert [line.split(":")[0] for line in result.out.splitlines()] == [
            "other.txt",
            "story.txt",
        ]

    def test_prepare_then_train_on_the_folder(self, here, run):
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

    def test_train_on_standard_input_and_resume(self, here, run, monkeypatch):
        """A text from a pipe trains, and the run goes on without the pipe."""
        pipe = SimpleNamespace(buffer=io.BytesIO(words().encode()))
        monkeypatch.setattr(sys, "stdin", pipe)
        assert run("train", "-", *TINY).code == 0
        (made,) = Path("checkpoints").iterdir()
        assert made.name.startswith("stdin")
        result = run("train", "--resume", made.name, "--max-steps", "8")
        assert result.code == 0 and "8/8" in result.out

    def test_train_without_a_path_takes_the_manual(self, here, run, monkeypatch):
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

    def test_benchmark_prints_a_table(self, here, run):
        """Speed, share of the measured peak and memory, for small settings."""
        result = run(
            "benchmark", "--d-model", "32", "--n-layers", "1", "--n-heads", "2",
            "--context-length", "16", "--batch-size", "2", "--iterations", "2", "--device", "cpu",
            "--dtype", "float32",
        )  # fmt: skip
        assert result.code == 0, result.err
        assert "tokens/s" in result.out and "GFLOP/s" in result.out and "%" in result.out

    @pytest.mark.parametrize("preset", ["gpt2", "modern", "llama"])
    def test_each_preset_trains(self, place, run, preset):
        """Every layout trains and writes."""
        result = run("train", "story.txt", "--preset", preset, "--run", preset, *TINY)
        assert result.code == 0, result.err
        assert run("generate", "the", "--run", preset, "--max-new-tokens", "20").code == 0

    def test_text_of_2000_characters_trains(self, here, run):
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
    def test_other_scripts_train_and_write(self, here, run, name, text, kind):
        """Chinese, emoji and source text go all the way."""
        Path(name).write_bytes(text.encode())
        assert run("train", name, "--tokenizer", kind, *TINY).code == 0
        assert run("generate", text[:9], "--max-new-tokens", "20").code == 0
        assert run("evaluate", name).code == 0

    def test_model_that_fits_nowhere(self, here, run):
        """Exit 6, and which settings to make smaller."""
        Path("a.txt").write_text(words())
        huge = ["--d-model", "65536", "--n-heads", "4096", "--head-dim", "4096"]  # terabytes
        assert_refused(run("train", "a.txt", *huge, "--device", "cpu"), 6, "--d-model")

    def test_file_whose_name_is_not_utf8(self, here, run):
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


class TestTexts:
    def test_no_such_file(self, here, run):
        """Exit 2, names it, makes nothing."""
        for verb in ("train", "prepare"):
            assert_refused(run(verb, "missing.txt"), 2, "missing.txt")
        assert not list(Path(".").glob("checkpoints/*"))

    def test_no_such_file_to_evaluate(self, place, run):
        """evaluate names what is not there."""
        assert_refused(run("evaluate", "missing.txt"), 2, "missing.txt")

    def test_empty_file(self, here, run):
        """Exit 2, names it."""
        Path("void.txt").touch()
        assert_refused(run("train", "void.txt", *TINY), 2, "void.txt", "empty")

    def test_empty_folder(self, here, run):
        """Exit 2, names it."""
        Path("corpus").mkdir()
        assert_refused(run("train", "corpus", *TINY), 2, "corpus")

    def test_folder_of_binaries(self, here, run):
        """Exit 2, names it."""
        Path("corpus").mkdir()
        Path("corpus/a.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
        assert_refused(run("train", "corpus", *TINY), 2, "corpus", "binary")

    def test_not_utf8(self, here, run):
        """Exit 2 with file and byte offset; the flags it names help."""
        Path("old.txt").write_bytes(b"plain " * 1000 + "café ".encode("latin-1") * 300)
        result = run("train", "old.txt", *TINY)
        assert_refused(result, 2, "old.txt", "6003", "--encoding latin-1", "--encoding-errors")
        assert run("train", "old.txt", "--encoding", "latin-1", *TINY).code == 0
        assert run("train", "old.txt", "--encoding-errors", "replace", *TINY).code == 0
        assert run("train", "old.txt", "--encoding", "klingon", *TINY).code == 2

    def test_null_characters(self, here, run):
        """Exit 2 with file and offset, whichever the tokenizer."""
        Path("zero.txt").write_bytes(b"plain " * 1000 + b"\0" + b"more " * 100)
        for kind in ("bpe", "char"):
            result = run("train", "zero.txt", "--tokenizer", kind, *TINY)
            assert_refused(result, 2, "zero.txt", "null characters", "6000")

    def test_too_short(self, here, run):
        """Exit 2 with the number and the least."""
        Path("short.txt").write_text("too short")
        assert_refused(run("train", "short.txt", *TINY), 2, "64")
        assert not list(Path(".").glob("checkpoints/*")) and not leftovers()

    def test_prepare_without_a_text(self, here, run):
        """Exit 2, says what to give."""
        assert_refused(run("prepare"), 2, "myllm prepare")


SHAPE = [
    (["--d-model", "100", "--n-heads", "3"], ["100", "3", "--n-heads"]),
    (["--d-model", "30", "--n-heads", "2"], ["15", "odd", "learned"]),
    (["--n-heads", "4", "--n-kv-heads", "3"], ["n_heads 4", "n_kv_heads 3"]),
    (["--d-model", "-4"], ["-4", "1"]),
    (["--d-model", "9999999"], ["9999999", "65536"]),
    (["--n-layers", "0"], ["n_layers 0", "1"]),
    (["--dropout", "1.5"], ["1.5", "255/256"]),
    (["--learning-rate", "nan"], ["learning_rate nan", "finite"]),
    (["--learning-rate", "1000"], ["1000", "10"]),
    (["--learning-rate", "fast"], ["learning-rate", "fast"]),
    (["--batch-size", "0"], ["batch_size 0", "1"]),
    (["--max-steps", "-1"], ["max_steps -1", "1"]),
    (["--context-length", "0"], ["context_length 0", "1"]),
    (["--vocab-size", "100"], ["100", "257"]),
    (["--seed", "-1"], ["seed -1"]),
    (["--n-layers", "two"], ["n-layers", "two"]),
    (["--warmup-steps"], ["warmup-steps"]),
]
UNKNOWN = [
    (["--preset", "gpt3"], ["gpt3", "gpt2", "modern"]),
    (["--size", "huge"], ["huge", "cpu", "gpu"]),
    (["--schedule", "cosin"], ["cosin", "did you mean cosine", "wsd"]),
    (["--optimizer", "moun"], ["moun", "did you mean muon", "adamw"]),
    (["--tokenizer", "chars"], ["chars", "did you mean char", "bpe"]),
    (["--attention", "flesh"], ["flesh", "did you mean flash", "manual"]),
    (["--dtype", "float8"], ["float8", "float16", "bfloat16"]),
    (["--device", "gpu"], ["gpu", "cpu", "cuda"]),
    (["--device", "cuda:99"], ["cuda:99", "cpu"]),
    (["--data", "shakespear"], ["shakespear", "did you mean shakespeare"]),
    (["--d-modell", "32"], ["--d-modell", "--d-model"]),
    (["--learning_rat", "1"], ["--learning-rat", "--learning-rate"]),
    (["--config", "none.toml"], ["none.toml"]),
]


class TestSettings:
    @pytest.mark.parametrize("args, parts", SHAPE, ids=lambda value: " ".join(value))
    def test_values_that_cannot_work(self, place, run, args, parts):
        """Exit 2 with the value, the limit, the remedy; no run is made."""
        before = hashes("checkpoints")
        assert_refused(run("train", "story.txt", *TINY, *args), 2, *parts)
        assert hashes("checkpoints") == before and not leftovers()

    @pytest.mark.parametrize("args, parts", UNKNOWN, ids=lambda value: " ".join(value))
    def test_unknown_names(self, place, run, args, parts):
        """Exit 2 with the choices and the nearest."""
        text = [] if "--data" in args else ["story.txt"]
        dropped = {"--dtype": "float32", "--device": "cpu"}
        tiny = [a for a in TINY if a not in (args[0], dropped.get(args[0]))]
        assert_refused(run("train", *text, *tiny, *args), 2, *parts)

    @pytest.mark.parametrize(
        "args, parts",
        [
            (["generate", "x", "--temperatur", "1"], ["--temperatur", "--temperature"]),
            (["generate", "x", "--temperature", "-1"], ["-1", "0"]),
            (["generate", "x", "--top-p", "1.5"], ["top_p 1.5"]),
            (["generate", "x", "--top-k", "0"], ["top_k 0"]),
            (["generate", "x", "--max-new-tokens", "many"], ["many"]),
            (["write", "--min-p", "7"], ["min_p 7"]),
            (["evaluate", "--runs", "x"], ["--runs", "--run"]),
            (["prepare", "story.txt", "--tokeniser", "bpe"], ["--tokeniser", "--tokenizer"]),
            (["benchmark", "--iterations", "0"], ["iterations 0", "1"]),
            (["benchmark", "--optimizer", "sgd"], ["sgd", "adamw"]),
            (["trian"], ["trian", "did you mean train"]),
            (["--d-model", "32"], ["--d-model"]),
        ],
        ids=lambda value: " ".join(value),
    )
    def test_other_verbs(self, place, run, args, parts):
        """Unknown and impossible flags of each verb are refused alike."""
        assert_refused(run(*args), 2, *parts)

    def test_debug_shows_the_traceback(self, here, run):
        """--debug shows where an error comes from, and the line all the same."""
        result = run("train", "missing.txt", "--debug")
        assert result.code == 2
        assert "Traceback" in result.err and "InputError" in result.err
        assert result.lines[-1].startswith("myllm: ")

    def test_out_that_is_a_file(self, place, run):
        """A folder of runs that cannot be made is refused before training."""
        Path("taken").touch()
        assert_refused(run("train", "story.txt", "--runs-dir", "taken", *TINY), 2, "taken")


class TestShowSettings:
    def rows(self, result):
        """Setting → its value and where it came from."""
        assert result.code == 0 and result.err == ""
        rows = [re.split(r" {2,}", line) for line in result.out.splitlines()]
        return {name: (value, where) for name, value, where in rows}

    def test_each_setting_and_its_layer(self, here, run):
        """Every setting is shown once; nothing is trained or written."""
        Path("my.toml").write_text("n_heads = 5\nseed = 4\n")
        args = [
            "a.txt",
            "--size",
            "cpu",
            "--preset",
            "llama",
            "--config",
            "my.toml",
            "--seed",
            "7",
        ]
        rows = self.rows(run("train", *args, "--show-settings"))
        assert rows["seed"] == ("7", "flag") and rows["paths"] == ("('a.txt',)", "flag")
        assert rows["n_heads"] == ("5", "file my.toml")
        assert rows["d_model"] == ("160", "size cpu")
        assert rows["tie_weights"] == ("False", "preset llama")
        assert rows["optimizer"] == ("muon", "default")
        assert {"preset", "size", "from_run", "context_length", "minutes"} <= set(rows)
        assert [path.name for path in here.iterdir()] == ["my.toml"]

    def test_of_runs(self, place, run):
        """A resumed run's settings are its own; one that is begun takes the model only."""
        before = hashes("checkpoints")
        rows = self.rows(run("train", "--resume", "story", "--max-steps", "9", "--show-settings"))
        assert rows["max_steps"] == ("9", "flag") and rows["d_model"] == ("32", "run story")
        rows = self.rows(run("train", "--from", "story", "--show-settings"))
        assert rows["d_model"] == ("32", "run story") and rows["learning_rate"][1] == "fine-tuning"
        assert hashes("checkpoints") == before

    def test_what_cannot_work_is_refused(self, here, run):
        """As training would."""
        assert_refused(run("train", "--d-model", "7", "--show-settings"), 2, "d_model 7")
        assert_refused(run("train", "--schedule", "cosin", "--show-settings"), 2, "cosine")

    def test_plan(self, here, run):
        """With a time the machine is measured; without a text nothing is extracted."""
        rows = self.rows(run("train", "--minutes", "1", "--show-settings"))
        assert {rows[name][1] for name in ("d_model", "max_steps", "dropout")} == {"plan"}
        assert not list(here.iterdir())
        Path("story.txt").write_text(words())
        flags = ["--minutes", "1", "--d-model", "32", "--n-heads", "2", "--max-steps", "9"]
        rows = self.rows(run("train", "story.txt", *flags, "--show-settings"))
        assert rows["batch_size"][1] == "plan" and rows["d_model"] == ("32", "flag")
        assert not Path("checkpoints").exists()


class TestFolderOfRuns:
    def test_hints_work_as_printed(self, here, run):
        """Also with blanks in the names of run and folder."""
        Path("story.txt").write_text(words())
        result = run("train", "story.txt", "--run", "my run", "--runs-dir", "old runs", *TINY)
        hints = [line.strip() for line in result.out.splitlines() if line.startswith("  myllm ")]
        assert len(hints) == 2
        args = shlex.split(hints[0])[1:]
        assert run(*args, "--max-new-tokens", "3").code == 0

    @pytest.mark.parametrize("args", [["generate", "x"], ["evaluate"], ["verify"]])
    def test_the_old_spelling_is_accepted_with_a_hint(self, place, run, args):
        """--out was the folder of runs; one line says what it is now."""
        shutil.move("checkpoints", "runs")
        result = run(*args, "--out", "runs")
        assert result.code == 0 and result.lines == ["--out is now --runs-dir"]

    def test_the_old_spelling_of_export(self, place, run):
        """There --out is the folder to make, and --runs was the folder of runs."""
        result = run("export", "--runs", "checkpoints", "--out", "there", "--no-verify")
        assert result.code == 0 and result.lines == ["--runs is now --runs-dir"]
        assert Path("there").is_dir()


class TestRuns:
    def test_existing_run_is_never_overwritten(self, place, run):
        """A second run of a text gets a new name, which is announced."""
        before = hashes("checkpoints/story")
        result = run("train", "story.txt", *TINY)
        assert result.code == 0
        assert len(result.lines) == 1
        assert "story" in result.lines[0] and "story-2" in result.lines[0]
        assert hashes("checkpoints/story") == before
        assert "--run story-2" in result.out
        assert "story-3" in run("train", "story.txt", "--run", "story", *TINY).err

    @pytest.mark.parametrize(
        "flags, parts",
        [
            (["--d-model", "64"], ["d_model", "32", "64"]),
            (["--n-layers", "2"], ["n_layers", "1", "2"]),
            (["--context-length", "8"], ["context_length", "16", "8"]),
            (["--vocab-size", "300"], ["vocab_size", "300"]),
            (["--tokenizer", "char"], ["tokenizer", "bpe", "char"]),
            (["--position", "learned"], ["position", "rotary", "learned"]),
            (["--preset", "gpt2"], ["preset", "gpt2"]),
            (["--config", "other.toml"], ["d_model", "32", "64"]),
        ],
        ids=lambda value: " ".join(value),
    )
    def test_resume_with_another_shape_or_tokenizer(self, place, run, flags, parts):
        """Exit 2, says what differs; the run is as it was."""
        Path("other.toml").write_text("d_model = 64\n")
        before = hashes("checkpoints/story")
        result = run("train", "--resume", "story", "--max-steps", "8", *flags)
        assert result.code == 2, result.out + result.err
        assert_refused(result, 2, *parts, announced=len(result.lines) - 1)
        assert "Traceback" not in result.err
        assert hashes("checkpoints/story") == before

    def test_resume_with_changed_text(self, place, run):
        """Exit 2, says that it is the text; the run is as it was."""
        with open("story.txt", "a") as file:
            file.write("one more line\n")
        before = hashes("checkpoints/story")
        assert_refused(run("train", "--resume", "story"), 2, "story", "text")
        assert hashes("checkpoints/story") == before
        shutil.copy("story.txt", "new.txt")
        assert_refused(run("train", "new.txt", "--resume", "story"), 2, "text")

    def test_resume_with_changed_tokenizer_file(self, place, run):
        """A tokenizer.json from elsewhere is not trained on."""
        shutil.copy("checkpoints/chars/tokenizer.json", "checkpoints/story/tokenizer.json")
        result = run("train", "--resume", "story", "--max-steps", "8")
        assert_refused(result, 2, "tokenizer", announced=len(result.lines) - 1)

    def test_resume_without_its_text(self, place, run):
        """Exit 2, names the file that is gone."""
        Path("story.txt").unlink()
        assert_refused(run("train", "--resume", "story"), 2, "story.txt")

    def test_resume_of_no_run(self, place, run):
        """Exit 2, with the runs that there are."""
        assert_refused(run("train", "--resume", "stroy"), 2, "stroy", "chars", "story")

    @pytest.mark.parametrize("args", [["generate", "x"], ["write"], ["chat"], ["evaluate"]])
    def test_no_run_yet(self, here, run, args):
        """Exit 2, says how to make one."""
        assert_refused(run(*args), 2, "myllm train")

    @pytest.mark.parametrize("verb", ["generate", "write", "chat", "evaluate"])
    def test_no_such_run(self, place, run, verb):
        """Exit 2, with the runs that there are."""
        assert_refused(run(verb, "--run", "nobody"), 2, "nobody", "story")

    def test_changed_schedule_is_announced(self, place, run):
        """What may change on resuming does, and is said."""
        result = run("train", "--resume", "story", "--max-steps", "7", "--learning-rate", "1e-4")
        assert result.code == 0
        assert any("learning_rate" in line and "0.0001" in line for line in result.lines)


class TestPrompts:
    def test_unknown_characters_are_announced_once(self, place, run):
        """A character model takes any prompt; what it does not know is said on one line."""
        result = run("generate", "the 你好 Ω moon", "--run", "chars", "--max-new-tokens", "20")
        assert result.code == 0
        assert result.out.startswith("the 你好 Ω moon")
        assert len(result.lines) == 1 and "3" in result.lines[0]

    def test_unknown_characters_in_write_are_announced_once(self, place, run, monkeypatch):
        """Going on with the same text does not repeat what was said."""
        monkeypatch.setattr(sys, "stdin", io.StringIO("the Ω moon\n\n\n"))
        result = run("write", "--run", "chars", "--max-new-tokens", "3")
        assert result.code == 0
        assert len(result.lines) == 1, result.err

    @pytest.mark.parametrize("kind", ["chars", "story"])
    @pytest.mark.parametrize("prompt", [[], [""], ["the old sea and " * 50]])
    def test_empty_and_long_prompts_work(self, place, run, kind, prompt):
        """No prompt begins a text; of a long one the end is read. Nothing is announced."""
        result = run(
            "generate", *prompt, "--run", kind, "--max-new-tokens", "40", "--ignore-end",
            "--sample-seed", "1",
        )  # fmt: skip
        assert result.code == 0 and result.err == ""
        assert result.out.startswith("".join(prompt))
        assert len(result.out) > len("".join(prompt)) + 1


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

    def test_while_preparing(self, here, run, monkeypatch):
        """No room for the tokens is exit 4, too, and leaves nothing."""
        Path("story.txt").write_text(words())

        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("myllm.data.prepare._batches", full)
        assert_refused(run("train", "story.txt", *TINY), 4, "space")
        assert not leftovers()


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


class TestProgram:
    def python(self, *args, **settings):
        return subprocess.run(
            [sys.executable, *args],
            capture_output=True,
            text=True,
            env=ENV,
            timeout=60,
            **settings,
        )

    @pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["help"]])
    def test_help_lists_the_verbs(self, run, args):
        """myllm alone and its help list every verb with what it does."""
        result = run(*args)
        assert result.code == 0
        for verb in "train generate write chat evaluate prepare benchmark".split():
            assert re.search(rf"^  {verb} +\w+", result.out, re.MULTILINE)

    @pytest.mark.parametrize(
        "args", ["--help", "train --help", "generate --help", "evaluate -h", "benchmark --help"]
    )
    def test_help_imports_no_torch(self, args):
        """Help answers without torch, and with exit code 0."""
        program = (
            "import sys; from myllm.cli import main; code = main(sys.argv[1:]); "
            "print('torch' in sys.modules, code)"
        )
        done = self.python("-c", program, *args.split())
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "False 0"

    @pytest.mark.skipif(sys.platform == "win32", reason="no figures of child processes")
    @pytest.mark.parametrize("args, limit_s", [(["--help"], 0.3), (["train", "--help"], 1.0)])
    def test_help_answers_at_once(self, args, limit_s):
        """The best of three calls takes no more of a core, however busy the machine is."""
        import resource

        seconds = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert self.python("-m", "myllm", *args).returncode == 0
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert min(seconds) < limit_s

    def test_version(self, run):
        """--version tells the package's version."""
        assert run("--version").out == f"myllm {myllm.__version__}\n"

    def test_python_m_myllm(self, tmp_path):
        """python -m myllm is myllm, exit code included."""
        done = self.python("-m", "myllm", "train", "missing.txt", cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("myllm: ") and done.stderr.count("\n") == 1

    def test_python_m_myllm_train(self, tmp_path):
        """python -m myllm.train is myllm train; nothing warns."""
        done = self.python("-m", "myllm.train", "--help", cwd=tmp_path)
        assert done.returncode == 0 and done.stderr == ""
        assert "--d-model" in done.stdout

    def test_reader_that_leaves(self, place):
        """`myllm generate | head` ends without noise."""
        process = subprocess.Popen(
            [sys.executable, "-m", "myllm", "generate", "the", "--max-new-tokens", "3000",
             "--ignore-end"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV,
        )  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        err = process.stderr.read()
        process.stderr.close()
        assert process.wait(timeout=60) == 0
        assert err == b""

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform == "win32", reason="no pseudo terminal")
    def test_on_a_terminal_there_are_a_bar_and_samples(self, place):
        """A terminal sees steps, losses, speed, time left, and the model's writing."""
        import pexpect

        args = [*TINY[:-4], "--device", "cpu", "--dtype", "float32"]
        env = {**ENV, "TERM": "xterm", "COLUMNS": "120"}
        out, code = pexpect.run(
            f"{sys.executable} -m myllm train story.txt --run shown {' '.join(args)}",
            env=env, withexitstatus=True, timeout=120,
        )  # fmt: skip
        text = out.decode()
        assert code == 0, text
        assert "\x1b[" in text
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
        assert "tokens/s" in plain and " left" in plain and "validation" in plain
        after = plain.split("step 3/6", 1)[1].split("step 6/6", 1)[0]
        assert any(word in after for word in ("o", "e", "a"))
