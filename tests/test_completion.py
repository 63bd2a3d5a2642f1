"""Completion in shells: the script that is printed, read by the shells themselves."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_place import ENV

from myllm.cli.choices import CHOICES
from myllm.cli.completion import script
from myllm.cli.main import VERBS, main
from myllm.errors import ConfigError

PROGRAM = """
source script.bash
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_myllm
((${#COMPREPLY[@]})) && printf '%s\\n' "${COMPREPLY[@]}"
"""
needs = pytest.mark.skipif


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Runs, a folder with more of them, and a text."""
    monkeypatch.chdir(tmp_path)
    for name in ("checkpoints/novel", "checkpoints/my run", "checkpoints/$(touch x)", "old/first"):
        Path(name).mkdir(parents=True)
    Path("novel.txt").write_text("text", encoding="utf-8")
    for shell in ("bash", "zsh", "fish"):
        Path(f"script.{shell}").write_text(script(shell, VERBS), encoding="utf-8")


def output(*args):
    done = subprocess.run(args, capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert done.stderr == "", done.stderr
    return done.stdout.splitlines()


@needs(sys.platform == "win32" or shutil.which("bash") is None, reason="no bash")
@pytest.mark.usefixtures("place")
class TestBash:
    def complete(self, *words):
        found = output("bash", "--norc", "-c", PROGRAM, "bash", "myllm", *words)
        assert not Path("x").exists()  # a run's name is never a command
        return found

    def test_verbs(self):
        single = {verb for verb in VERBS if " " not in verb}
        assert set(self.complete("")) == single | {"help"}
        assert self.complete("tr") == ["train"]
        assert self.complete("help", "exp") == ["export"]

    def test_flags_of_the_verb(self):
        assert self.complete("train", "--max-s") == ["--max-steps"]
        assert self.complete("train", "novel.txt", "--seed", "1", "--no-bi") == ["--no-bias"]
        assert self.complete("generate", "--max") == ["--max-new-tokens"]
        assert "--help-all" in self.complete("train", "--")

    @pytest.mark.parametrize("words", [["--preset", ""], ["--preset", "="]])
    def test_choices(self, words):
        assert set(self.complete("train", *words)) == set(CHOICES["preset"])
        assert self.complete("train", *words[:1], "=", "gp") == ["gpt2"]
        assert self.complete("completion", "z") == ["zsh"]

    @pytest.mark.parametrize("words", ["generate --run", "train --resume", "verify", "export"])
    def test_runs(self, words):
        found = self.complete(*words.split(), "")
        assert {"novel", "my\\ run", "\\$\\(touch\\ x\\)"} <= set(found)
        assert self.complete(*words.split(), "no") == ["novel"]

    def test_runs_in_another_folder(self):
        assert self.complete("generate", "--runs-dir", "old", "--run", "") == ["first"]
        assert self.complete("train", "--runs-dir", "o") == ["old"]

    def test_anything_else_is_a_file(self):
        """Left to the shell, which knows how to write its name."""
        assert self.complete("train", "no") == []
        assert "complete -o default -F _myllm myllm" in script("bash", VERBS)


@pytest.mark.usefixtures("place")
class TestOtherShells:
    @needs(shutil.which("zsh") is None, reason="no zsh")
    def test_zsh_understands_it(self):
        assert output("zsh", "-n", "script.zsh") == []
        assert output("zsh", "-fc", "source script.zsh; whence -w _myllm") == ["_myllm: function"]

    @needs(shutil.which("fish") is None, reason="no fish")
    @pytest.mark.parametrize(
        "line, answers",
        [
            ("myllm tr", {"train"}),
            ("myllm train --max-s", {"--max-steps"}),
            ("myllm train --preset ", {"gpt2", "llama", "modern"}),
            ("myllm generate --run ", {"novel", "my run", "$(touch x)"}),
            ("myllm verify no", {"novel"}),
            ("myllm generate --runs-dir old --run ", {"first"}),
        ],
    )
    def test_fish_completes(self, line, answers):
        found = output("fish", "-Nc", f"source script.fish; complete -C '{line}'")
        assert answers <= {row.split("\t")[0] for row in found}

    def test_another_shell(self):
        with pytest.raises(ConfigError, match="unknown shell 'bosh': did you mean bash"):
            script("bosh", VERBS)


class TestScript:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_the_program_prints_it(self, shell, capsys):
        assert main(["completion", shell]) == 0
        assert capsys.readouterr().out == script(shell, VERBS)

    def test_it_is_printed_at_once(self):
        code = "import sys; from myllm.cli import main; main(['completion']); print(sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=ENV
        )
        assert "'torch'" not in done.stdout and "'numpy'" not in done.stdout


class TestChoices:
    @pytest.mark.parametrize("name", sorted(set(CHOICES) - {"data", "to", "quantize", "shell"}))
    def test_are_those_that_an_error_lists(self, name, tmp_path, monkeypatch, capsys):
        """Help names tables that it must not import once more: here they are compared."""
        monkeypatch.chdir(tmp_path)
        Path("t.txt").write_text("Once upon a time. " * 60, encoding="utf-8")
        flag = name.replace("_", "-")
        assert main(["train", "t.txt", f"--{flag}", "zzz"]) == 2
        listed = capsys.readouterr().err.partition("choices: ")[2].strip().rstrip(")")
        assert sorted(listed.split(", ")) == sorted(CHOICES[name])

    def test_of_formats_and_corpora(self):
        from myllm.data.corpora import CORPORA
        from myllm.formats import FORMATS
        from myllm.formats.gguf import QUANTIZATIONS

        assert set(CHOICES["to"]) == set(FORMATS)
        assert set(CHOICES["quantize"]) == set(QUANTIZATIONS)
        assert set(CHOICES["data"]) == set(CORPORA)
