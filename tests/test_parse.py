"""The command line's arguments: how they are understood, what help says of them."""

import dataclasses
import inspect
import re
import shlex
from pathlib import Path

import pytest
from cli_place import parsed

from myllm import kinds
from myllm.cli.main import VERBS
from myllm.cli.parse import _choices, flags_of, parse
from myllm.cli.train import TrainOptions
from myllm.config import DataConfig, GPTConfig, RunConfig, SamplingConfig, TrainConfig, flat_values
from myllm.errors import ConfigError
from myllm.presets import PRESETS, SIZES, resolve


class TestArguments:
    @pytest.mark.parametrize("switch, value", [("--compile", True), ("--no-compile", False)])
    def test_switch_with_a_third_state(self, switch, value):
        """--compile and --no-compile are switches; without them the program chooses."""
        assert parsed(switch).train.compile is value
        assert parsed().train.compile is None

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
            (["--d-modle", "32"], r"--d-modle.*--d-model"),
            (["--learning-rat", "1"], r"--learning-rat.*--learning-rate"),
            (["--d-model", "abc"], r"d-model.*abc"),
            (["--d-model", "1.5"], r"d-model.*1\.5"),
            (["--learning-rate", "fast"], r"learning-rate.*fast"),
            (["--d-model"], r"d-model"),
            (["--compile=maybe"], r"--compile=maybe: .*--no-compile"),
            (["--d-model", "1.5"], r"--d-model 1\.5: must be a whole number"),
            (["--n-kv-heads", "x"], r"--n-kv-heads x: must be a whole number or None"),
            (["--run", "--seed", "1"], r"--run needs a value: a text"),
            (["--learn", "1"], r"unknown option --learn: "),
            (["-x"], r"unknown option -x: .*goes behind --"),
        ],
    )
    def test_flags_that_cannot_be_understood(self, args, message):
        """One line that names the flag, and the nearest one where there is none."""
        with pytest.raises(ConfigError, match=message) as caught:
            parsed(*args)
        assert "\n" not in str(caught.value) and "│" not in str(caught.value)


class TestHelp:
    def help_text(self, verb, capsys, monkeypatch, columns="400"):
        monkeypatch.setenv("COLUMNS", columns)
        with pytest.raises(SystemExit) as exit:
            parse(VERBS[verb].options, verb, ["--help"])
        assert not exit.value.code
        return capsys.readouterr().out

    @pytest.mark.parametrize("verb", VERBS)
    def test_every_field_has_its_comment_and_default(self, verb, capsys, monkeypatch):
        """Each knob's flag is shown with the comment of its line and a default."""
        flat = " ".join(self.help_text(verb, capsys, monkeypatch).split())
        for flag in flags_of(VERBS[verb].options):
            comment = comment_of(flag.owner, flag.name)
            assert len(comment) > 4, f"{flag.owner.__name__}.{flag.name} has no comment"
            assert comment in flat, f"{flag.name}: {comment}"
            if not flag.positional:
                pattern = rf"--{flag.flag}\b.*?{re.escape(comment)}(: .*?)? "
                assert re.search(pattern + r"\((default: .*?|repeatable)\)", flat), flag.name

    @pytest.mark.parametrize("verb", VERBS)
    @pytest.mark.parametrize("columns", ["60", "90", "400"])
    def test_fits_the_terminal(self, verb, columns, capsys, monkeypatch):
        """It begins with a usage line, and no line is broken by the terminal."""
        lines = self.help_text(verb, capsys, monkeypatch, columns).splitlines()
        assert lines[0].startswith(f"usage: myllm {verb}") and "[OPTIONS]" in lines[0]
        explained = [line for line in lines if not re.match("  myllm |  -|usage:", line)]
        assert max(map(len, explained)) <= min(98, int(columns))

    @pytest.mark.parametrize("verb", ["train", "generate"])
    def test_examples_are_understood(self, verb):
        """Three commands to copy."""
        examples = VERBS[verb].options.EXAMPLES
        assert len(examples) == 3
        for example in examples:
            program, name, *args = shlex.split(example)
            assert (program, name) == ("myllm", verb)
            parse(VERBS[verb].options, verb, args)

    def test_choices_are_listed(self, capsys, monkeypatch):
        """What a table knows is shown, and what is put into it."""
        tables = {"preset": PRESETS, "size": SIZES}
        tables |= {
            name: getattr(kinds, f"{name.replace('-', '_').upper()}S")
            for name in ("tokenizer", "attention", "norm", "feed-forward", "optimizer", "schedule")
        }
        for table in tables.values():
            monkeypatch.setitem(table, "mine", None)
        out = self.help_text("train", capsys, monkeypatch)
        for name, table in tables.items():
            assert f"--{name} {'|'.join(table)} " in out.replace("\n", " "), name

    def test_comments_do_not_list_what_a_table_lists(self):
        """A name more in a table would not be in them."""
        for flag in flags_of(TrainOptions):
            table = _choices().get(flag.name, ())
            if not isinstance(table, tuple):  # which holds all that there can be
                words = set(re.findall(r"[\w-]+", comment_of(flag.owner, flag.name)))
                assert len(set(table) & words) < 2, flag.name

    def test_names_are_unique(self):
        """Flags can be flat because no name is used twice."""
        parts = (RunConfig, GPTConfig, DataConfig, TrainConfig, SamplingConfig)
        names = [f.name for part in parts for f in dataclasses.fields(part)]
        assert len(set(names)) == len(names)

    def test_defaults_are_those_of_the_chosen_preset(self, capsys, monkeypatch):
        """--preset gpt2 --help shows that preset's values."""
        monkeypatch.setenv("COLUMNS", "400")
        with pytest.raises(SystemExit):
            parse(TrainOptions, "train", ["--preset", "gpt2", "--help"])
        out = " ".join(capsys.readouterr().out.split())
        assert re.search(r"--position [^(]*\(default: learned\)", out)
        assert re.search(r"--optimizer \S+ .*?\(default: adamw\)", out)


def comment_of(owner, field):
    """The comment on the field's line in the source."""
    found = re.search(rf"^    {field}: .*?  # (.*)$", inspect.getsource(owner), re.MULTILINE)
    return found[1] if found else ""
