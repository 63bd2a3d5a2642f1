"""Every command that the program prints works as it is printed, whatever the names in it."""

import errno
import logging
import math
import os
import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest
from cli_place import TINY, words

import myllm
from myllm.model import GPTModel
from myllm.system.atomic import Disk
from myllm.system.shell import quoted
from myllm.train.observer import Observer

pytestmark = pytest.mark.usefixtures("quiet_terminal")
WORD = r"""(?:'[^']*'|"[^"]*"|[^\s;,'"])+"""


def hints(text, place="NEW-PATH"):
    """The commands in a text, as lists of arguments."""
    found = re.findall(rf"myllm (?:(?: ?){WORD})+", text)
    return [shlex.split(hint)[1:] for hint in found]


@pytest.fixture
def odd(folder, monkeypatch, capsys, run):
    """A run whose name, folder of runs and text have blanks; what training it printed."""
    Path("my text's.txt").write_text(words(), encoding="utf-8")
    made = run(
        "train", "my text's.txt", "--run", "my (1st) run", "--runs-dir", "old runs", *TINY
    )  # fmt: skip
    assert made.code == 0
    return made


def works(run, text, *more, fill=None, elsewhere=None):
    """Runs every hint of a text."""
    found = hints(text)
    assert found, text
    for args in found:
        args = [str((fill or {}).get(arg, arg)) for arg in args]
        result = run(*args, *more)
        assert result.code == 0, (args, result.err)


class TestHints:
    def test_of_a_result(self, odd, run, monkeypatch):
        """generate; write, which reads nothing here; the run goes on."""
        monkeypatch.setattr("sys.stdin", open(os.devnull, encoding="utf-8"))
        *writing, resume = hints(odd.out)
        assert [args[0] for args in writing] == ["generate", "write"]
        for args in writing:
            assert run(*args, "--max-new-tokens", "2").code == 0
        assert resume[:2] == ["train", "--resume"] and resume[-2] == "--max-steps"
        assert run(*resume[:-1], "8").code == 0

    def test_of_an_import(self, odd, run):
        made = run(
            "export", "my (1st) run", "--runs-dir", "old runs", "--out", "my hf", "--no-verify"
        )
        assert made.code == 0, made.err
        made = run("import", "my hf", "--runs-dir", "new runs")
        *writing, train = hints(made.out)
        assert [args[0] for args in writing] == ["generate", "write"]
        assert run(*writing[0], "--max-new-tokens", "2").code == 0
        train = ["my text's.txt" if word == "FILE" else word for word in train]
        assert run(*train, "--max-steps", "1", "--batch-size", "1", "--kernels", "plain").code == 0

    def test_of_prepared_texts(self, odd, run):
        made = run("prepare", "my text's.txt", "--out=-my tokens/a b")
        works(run, made.out, *TINY)
        works(run, run("prepare", "my text's.txt", "--out", "my tokens").out, *TINY)
        again = run("prepare", "my tokens")
        assert again.code == 2
        works(run, again.err, *TINY)

    def test_of_damage(self, odd, run):
        path = Path("old runs/my (1st) run/step-000006/model.safetensors")
        path.write_bytes(path.read_bytes()[:-4])
        found = run("verify", "my (1st) run", "--runs-dir", "old runs")
        assert found.code == 3
        works(run, found.err)

    def test_of_a_full_disk(self, odd, run, monkeypatch):
        """Also from another folder, where the folder of runs was told as a whole path."""
        args = ["--runs-dir", str(Path("old runs").absolute()), "--max-steps", "9"]
        text = str(Path("my text's.txt").absolute())
        with pytest.MonkeyPatch.context() as patch:

            def full(self, path, writer):
                raise OSError(errno.ENOSPC, "full")

            patch.setattr(Disk, "write", full)
            stopped = run("train", text, "--resume", "my (1st) run", *args)
        assert stopped.code == 4
        Path("elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
        resumed = [[*hint, text] for hint in hints(stopped.err.splitlines()[-1])]
        assert len(resumed) == 1 and run(*resumed[0]).code == 0

    def test_of_a_signal(self, odd, run):
        """continue with: …"""

        class Stop(Observer):
            def on_step(self, step, loss, tokens_per_second):
                if step == 7:
                    signal.raise_signal(signal.SIGINT)

        with pytest.raises(myllm.errors.Interrupted, match="continue with: ") as caught:
            myllm.train(
                resume="my (1st) run",
                runs_dir="old runs",
                max_steps=9,
                quiet=True,
                observer=Stop(),
            )
        works(run, str(caught.value))

    def test_of_a_loss_that_is_not_finite(self, odd, run, monkeypatch):
        """The batch is shown."""

        class Poisoned(GPTModel):
            def features(self, *args, **kwargs):
                x = super().features(*args, **kwargs)
                return x * math.nan if self.training else x

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("myllm.train.session.GPTModel", Poisoned)
            found = run(
                "train", "--resume", "my (1st) run", "--runs-dir", "old runs", "--max-steps", "9"
            )  # fmt: skip
        assert found.code == 5 and "inspect-batch" in found.err
        works(run, found.err)

    def test_of_a_text_that_was_moved(self, odd, run):
        """The run is told where its text is; and evaluate measures another text."""
        shutil.move("my text's.txt", "moved text.txt")
        for verb in (["evaluate", "--run"], ["inspect-batch"], ["train", "--resume"]):
            shutil.copytree("old runs", "kept runs")
            found = run(*verb, "my (1st) run", "--runs-dir", "old runs")
            assert found.code == 2 and "text of my (1st) run is missing" in found.err
            fill = {"NEW-PATH": "moved text.txt", "PATH": "moved text.txt"}
            works(run, found.err, fill=fill)
            again = run(*verb, "my (1st) run", "--runs-dir", "old runs")
            assert again.code == 0
            shutil.rmtree("old runs")
            shutil.move("kept runs", "old runs")

    def test_of_another_text(self, odd, run):
        """A model is trained on it by --from, not by --resume."""
        Path("new text.txt").write_text(words(seed=2), encoding="utf-8")
        args = ["--resume", "my (1st) run", "--runs-dir", "old runs"]
        found = run("train", "new text.txt", *args)
        assert found.code == 2
        works(run, found.err, "--max-steps", "1", "--batch-size", "1", "--kernels", "plain")

    def test_of_an_option_that_was_meant_as_text(self, odd, run):
        """The line names --, and with it the text is one."""
        for text in ("-item", "-hi", "- item", "--item"):
            found = run("generate", text, "--run", "my (1st) run", "--runs-dir", "old runs")
            assert found.code == 2 and "behind --" in found.err and len(found.lines) == 1
            args = ["--run", "my (1st) run", "--runs-dir", "old runs", "--max-new-tokens", "1"]
            assert run("generate", *args, "--", text).out.startswith(text)


def test_quotes_of_two_systems():
    assert quoted("a b", windows=False) == "'a b'" and quoted("a b", windows=True) == '"a b"'
    assert quoted("r", windows=True) == "r" == quoted("r", windows=False)
    assert quoted(r"C:\runs\a b", windows=True) == r'"C:\runs\a b"'
    assert quoted("-x", windows=False) == "./-x"


def test_stop_at_a_line_end(place, run, caplog):
    """A shell hands on two characters for it."""
    caplog.set_level(logging.ERROR)
    args = "generate the --run chars --sample-seed 1 --max-new-tokens 200 --ignore-end".split()
    whole = run(*args).out.removeprefix("the")
    assert "\n" in whole.rstrip("\n")
    assert run(*args, "--stop", r"\n").out == "the" + whole.partition("\n")[0] + "\n"
