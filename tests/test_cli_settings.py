"""The command line: settings that cannot work, and how they are shown."""

import re
from pathlib import Path

import pytest
from cli_place import TINY, assert_refused, hashes, leftovers, words

pytestmark = pytest.mark.usefixtures("quiet_terminal")

SHAPE = [
    (["--d-model", "100", "--n-heads", "3"], ["100", "3", "--n-heads"]),
    (["--d-model", "30", "--n-heads", "2"], ["15", "odd", "learned"]),
    (["--n-heads", "4", "--n-kv-heads", "3"], ["n_heads 4", "n_kv_heads 3"]),
    (["--d-model", "-4"], ["-4", "1"]),
    (["--d-model", "9999999"], ["9999999", "65536"]),
    (["--n-layers", "0"], ["n_layers 0", "1"]),
    (["--dropout", "1.5"], ["1.5", "255/256"]),
    (["--learning-rate", "nan"], ["learning_rate nan", "10"]),
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

    def test_debug_shows_the_traceback(self, folder, run):
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

    def test_each_setting_and_its_layer(self, folder, run):
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
        assert [path.name for path in folder.iterdir()] == ["my.toml"]

    def test_of_runs(self, place, run):
        """A resumed run's settings are its own; one that is begun takes the model only."""
        before = hashes("checkpoints")
        rows = self.rows(run("train", "--resume", "story", "--max-steps", "9", "--show-settings"))
        assert rows["max_steps"] == ("9", "flag") and rows["d_model"] == ("32", "run story")
        rows = self.rows(run("train", "--from", "story", "--show-settings"))
        assert rows["d_model"] == ("32", "run story") and rows["learning_rate"][1] == "fine-tuning"
        assert hashes("checkpoints") == before

    def test_what_cannot_work_is_refused(self, folder, run):
        """As training would."""
        assert_refused(run("train", "--d-model", "7", "--show-settings"), 2, "d_model 7")
        assert_refused(run("train", "--schedule", "cosin", "--show-settings"), 2, "cosine")

    def test_plan(self, folder, run):
        """With a time the machine is measured; without a text nothing is extracted."""
        rows = self.rows(run("train", "--minutes", "1", "--show-settings"))
        assert {rows[name][1] for name in ("d_model", "max_steps", "dropout")} == {"plan"}
        assert not list(folder.iterdir())
        Path("story.txt").write_text(words())
        flags = ["--minutes", "1", "--d-model", "32", "--n-heads", "2", "--max-steps", "9"]
        rows = self.rows(run("train", "story.txt", *flags, "--show-settings"))
        assert rows["batch_size"][1] == "plan" and rows["d_model"] == ("32", "flag")
        assert not Path("checkpoints").exists()
