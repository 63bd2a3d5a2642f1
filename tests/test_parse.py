"""The command line's arguments: how they are understood."""

from pathlib import Path

import pytest
from cli_place import parsed

from myllm.cli.main import VERBS
from myllm.cli.parse import parse
from myllm.cli.train import TrainOptions
from myllm.config import flat_values
from myllm.errors import ConfigError
from myllm.presets import resolve


class TestArguments:
    @pytest.mark.parametrize("switch, value", [("--bias", True), ("--no-bias", False)])
    def test_switch(self, switch, value):
        """Each switch has its opposite."""
        assert parsed(switch).model.bias is value

    def test_every_flag_of_the_issue_is_there(self):
        """The flags that were promised exist under their names."""
        values = {
            "run": "r", "preset": "gpt2", "tokenizer": "char", "vocab-size": 300,
            "d-model": 48, "n-layers": 3, "n-heads": 6, "n-kv-heads": 2, "d-ff": 96,
            "context-length": 24, "dropout": 0.25, "batch-size": 3, "accumulation-steps": 2,
            "max-steps": 9, "optimizer": "adamw", "learning-rate": 0.01, "weight-decay": 0.2,
            "schedule": "one_cycle", "warmup-steps": 4, "grad-clip": 0.5, "eval-interval": 3,
            "patience": 2, "keep": 5, "dtype": "bfloat16", "device": "cpu", "seed": 42,
            "runs-dir": "runs",
        }  # fmt: skip
        args = [part for name, value in values.items() for part in (f"--{name}", str(value))]
        options = parse(TrainOptions, "train", ["a.txt", "notes/", *args])
        found = {**vars(options), **flat_values(resolve(flags=options.settings).config)}
        for name, value in values.items():
            assert found[name.replace("-", "_")] == value, name
        assert found["paths"] == ("a.txt", "notes/")

    def test_a_flag_wins_wherever_texts_stand(self):
        """Texts may stand before, between and behind flags."""
        options = parse(TrainOptions, "train", "a --seed 2 b --bias c --d-model 8 -- -d".split())
        assert options.settings == dict(paths=("a", "b", "c", "-d"), seed=2, bias=True, d_model=8)

    def test_standard_input_and_negative_numbers_are_no_flags(self):
        """- is a text; what looks like a number belongs to the flag before it."""
        options = parse(TrainOptions, "train", "- --min-learning-rate -1e-3 --seed -4".split())
        assert options.settings == dict(paths=("-",), min_learning_rate=-1e-3, seed=-4)

    def test_repeatable_flags_do_not_swallow_the_prompt(self):
        """--stop takes one string each time."""
        options = parse(VERBS["generate"].options, "generate", "--stop a --stop b c".split())
        assert options.sampling == dict(stop=("a", "b")) and options.prompt == ("c",)

    def test_parsing_touches_no_disk(self, monkeypatch):
        """Files and runs are opened later."""
        monkeypatch.setattr(Path, "open", lambda *args: pytest.fail("opened"))
        options = parse(TrainOptions, "train", "x --config none.toml --resume nothing".split())
        assert (options.config, options.resume) == ("none.toml", "nothing")

    def test_underscores_are_accepted_in_flags(self):
        """--d_model is --d-model."""
        assert parsed("--d_model", "32").model.d_model == 32

    @pytest.mark.parametrize(
        "args, message",
        [
            (["--d-model", "abc"], r"d-model.*abc"),
            (["--d-model", "1.5"], r"d-model.*1\.5"),
            (["--learning-rate", "fast"], r"learning-rate.*fast"),
            (["--d-model"], r"d-model"),
            (["--bias=maybe"], r"--bias=maybe: .*--no-bias"),
            (["--d-model", "1.5"], r"--d-model 1\.5: must be a whole number"),
            (["--n-kv-heads", "x"], r"--n-kv-heads x: must be a whole number or None"),
            (["--bias", "False"], r"--bias False: .* here it is --no-bias"),
            (["--bias=true"], r"--bias=true: .* here it is --bias"),
            (["--max-steps", "1,000"], r"--max-steps 1,000: must be a whole number, such as 1000"),
            (["--max-steps", "2k"], r"such as 2000"),
            (["--dropout", "10%"], r"--dropout 10%: must be a number, such as 0\.1"),
            (["--minutes", "1h"], r"--minutes 1h: must be a number, such as 60"),
            (["--run", "--seed", "1"], r"--run needs a value: a text"),
            (["--learn", "1"], r"unknown option --learn: "),
        ],
    )
    def test_flags_that_cannot_be_understood(self, args, message):
        """One line that names the flag (tests/test_advice.py: what there is instead)."""
        with pytest.raises(ConfigError, match=message) as caught:
            parsed(*args)
        assert "\n" not in str(caught.value) and "│" not in str(caught.value)
