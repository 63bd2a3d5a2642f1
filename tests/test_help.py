"""What help says: of every flag what it is, on one screen what most people need."""

import dataclasses
import io
import re
import shlex
from pathlib import Path

import pytest
from cli_place import TINY, words

from myllm import kinds
from myllm.cli import help as page
from myllm.cli.choices import CHOICES
from myllm.cli.main import VERBS, main
from myllm.cli.parse import Flag, flags_of
from myllm.config import DataConfig, GPTConfig, RunConfig, SamplingConfig, TrainConfig, flat_values
from myllm.presets import default_config

EXAMPLES = [
    (verb, example) for verb in VERBS for example in getattr(VERBS[verb].options, "EXAMPLES", ())
]


@pytest.fixture
def shown(run, monkeypatch):
    """What a command line prints on a terminal of so many columns."""

    def call(line, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        result = run(*shlex.split(line))
        assert result.code == 0 and result.err == ""
        return result.out

    return call


def row_of(flag: Flag, text: str) -> str:
    """What help says of a flag, in one line; nothing where it does not show it."""
    begin = f"  {flag.flag.upper()} " if flag.positional else f"  --{flag.flag}"
    found = re.search(rf"^{re.escape(begin)}(?![-\w]).*\n(?: {{20,}}.*\n)*", text, re.MULTILINE)
    return " ".join(found[0].split()) if found else ""


class TestVerbs:
    @pytest.mark.parametrize("verb", VERBS)
    def test_every_flag_is_explained(self, verb, shown):
        """None is empty, none shows how Python writes that there is no value."""
        text = shown(f"{verb} --help-all")
        for flag in flags_of(VERBS[verb].options):
            row = row_of(flag, text)
            words = re.sub(r"^(--\S+,? (--no-\S+ )?)?([A-Z]+ )?", "", row)
            assert len(words) > 8, f"{flag.owner.__name__}.{flag.name}: {row!r} has no comment"
            assert not re.search(r"\bNone\b|\{|\|(?!endoftext|>)", row), row
            for choice in CHOICES.get(flag.name, ()):
                assert choice in row, f"{choice} is no choice in {row}"

    @pytest.mark.parametrize("verb", ["train", "benchmark"])
    @pytest.mark.parametrize("preset", ["modern", "gpt2"])
    def test_defaults_are_those_in_effect(self, verb, preset, shown):
        """Of the preset and the size, not those of the dataclasses, which are GPT-2's."""
        text = shown(f"{verb} --preset {preset} --help-all", 98)
        values = flat_values(default_config(preset))
        checked = 0
        for flag in flags_of(VERBS[verb].options):
            value = values.get(flag.name)
            if flag.owner in (GPTConfig, TrainConfig) and type(value) in (int, float, str):
                row = row_of(flag, text)
                assert f"(default: {value})" in row or f"(default {value}: " in row, row
                checked += 1
        assert checked > 10 and f"--preset {preset} --size cpu" in text

    @pytest.mark.parametrize("verb", VERBS)
    @pytest.mark.parametrize("columns", [60, 80, 98, 400])
    def test_fits_the_terminal(self, verb, columns, shown):
        """It begins with a usage line, and no line is broken by the terminal."""
        for flag in ("--help", "--help-all"):
            lines = shown(f"{verb} {flag}", columns).splitlines()
            assert lines[0].startswith(f"usage: myllm {verb}") and "[OPTIONS]" in lines[0]
            assert max(map(len, lines)) <= min(98, columns)

    @pytest.mark.parametrize("verb", VERBS)
    def test_is_one_screen(self, verb, shown):
        """What people need; all flags are one word away."""
        few, everything = shown(f"{verb} --help"), shown(f"{verb} --help-all")
        flags = flags_of(VERBS[verb].options)
        missing = [flag.flag for flag in flags if not row_of(flag, few)]
        assert len(few.splitlines()) <= 60
        assert all(row_of(flag, everything) for flag in flags)
        assert len(flags) - len(missing) <= 30
        assert (f"--help-all shows {len(missing)} more" in few) == bool(missing)

    def test_a_new_field_is_an_advanced_one(self, shown, monkeypatch):
        """Until it is named among the basic ones, which all exist."""
        known = {flag.name for verb in VERBS for flag in flags_of(VERBS[verb].options)}
        named = [name for names in page.BASIC.values() for name in names]
        assert set(named) <= known and len(set(named)) == len(named)
        monkeypatch.setattr(page, "BASIC", {"time": ("minutes",)})
        assert "--max-steps N" not in shown("train --help")
        assert "--max-steps N" in shown("train --help-all")

    @pytest.mark.parametrize("kind", kinds.TABLES)
    def test_what_is_put_into_a_table_is_listed(self, kind, shown, monkeypatch):
        """And no comment lists names, which would lack it."""
        verb = "export" if kind == "to" else "train"
        (flag,) = (f for f in flags_of(VERBS[verb].options) if f.name == kind)
        comment = set(re.findall(r"[\w-]+", page.comment_of(flag.owner, flag.name)))
        assert len(set(kinds.TABLES[kind]) & comment) < 2
        monkeypatch.setitem(kinds.TABLES[kind], "mine", None)
        assert "mine" in row_of(flag, shown(f"{verb} --help-all"))

    def test_groups_have_their_titles(self, shown):
        """By what they are for; the advanced ones are named so."""
        titles = re.findall(r"^(\w.*):$", shown("train --help"), re.MULTILINE)
        assert titles == ["text", "size", "time", "training", "run"]
        more = re.findall(r"^(\w.*):$", shown("train --help-all"), re.MULTILINE)
        assert more[:5] == titles and all(title.startswith("advanced") for title in more[5:])

    def test_names_are_unique(self):
        """Flags can be flat because no name is used twice."""
        parts = (RunConfig, GPTConfig, DataConfig, TrainConfig, SamplingConfig)
        names = [f.name for part in parts for f in dataclasses.fields(part)]
        assert len(set(names)) == len(names)


class TestExamples:
    @pytest.mark.parametrize("verb", [verb for verb in VERBS if " " not in verb])
    def test_there_are_three(self, verb):
        """Of a verb of two words, the first has them."""
        assert len(getattr(VERBS[verb].options, "EXAMPLES", ())) >= 3

    def test_they_run_as_printed(self, folder, run, monkeypatch):
        """One after the other, with a smaller model."""
        for name in ("novel.txt", "novel2.txt", "notes/a.txt"):
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(words(6000), encoding="utf-8")
        Path("start.txt").write_text("the king", encoding="utf-8")
        assert main(["train", "novel.txt", "--run", "mine", *TINY]) == 0
        smaller = {
            "train": TINY,
            "generate": ["--max-new-tokens", "2"],
            "benchmark": [*TINY[:10], "--device", "cpu", "--iterations", "1"],
            "export": ["--no-verify"],
        }
        order = sorted(EXAMPLES, key=lambda pair: pair[0] in ("train", "import"))
        for verb, example in order:
            if verb.startswith("runs"):
                continue  # they name runs that are not made here
            for option in ("--minutes", "--max-steps"):  # a plan takes seconds to be made
                example = re.sub(rf"{option} \d+", "--max-steps 7", example)
            args = shlex.split(re.findall(r"myllm [^)|]*", example)[0])[1:]
            more = smaller.get(verb, []) if "--" not in args else []
            if "--resume" in args:
                more = ["--device", "cpu"]
            monkeypatch.setattr("sys.stdin", io.StringIO("/quit\n"))
            result = run(*args, *more)
            assert result.code == 0, f"{example}: {result.err}"


class TestOverview:
    @pytest.mark.parametrize("line", ["", "--help", "-h", "help", "--help-all"])
    def test_shows_how_to_begin_and_every_verb(self, line, shown):
        """Three lines to begin with; what is used most comes first."""
        text = shown(line)
        for start in page.QUICK_START:
            assert f"\n  {start}\n" in text
        verbs = re.findall(r"^  ([a-z-]+)  +[A-Z]", text, re.MULTILINE)
        assert set(verbs) == {verb for verb in VERBS if " " not in verb}
        assert verbs[0] == "train" and len(set(verbs)) == len(verbs)

    @pytest.mark.parametrize("columns", [60, 80, 120])
    def test_fits_the_terminal(self, columns, shown):
        assert max(map(len, shown("--help", columns).splitlines())) <= columns

    def test_each_group_names_verbs(self):
        """No verb is in two of them."""
        names = [name for names in page.OVERVIEW.values() for name in names]
        assert len(set(names)) == len(names)

    @pytest.mark.parametrize("verb", ["train", "generate", "inspect-batch"])
    def test_help_before_the_verb_is_help_behind_it(self, verb, shown):
        assert shown(f"help {verb}") == shown(f"{verb} --help")
