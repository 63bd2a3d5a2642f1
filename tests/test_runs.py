"""`myllm runs` and its like: what is told of runs, and what is removed of them."""

import io
import json
import os
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_place import TINY, assert_refused, hashes, leftovers, words
from rich.cells import cell_len

import myllm
from myllm.errors import InputError
from myllm.runs.folder import RunFolder
from myllm.runs.remove import delete_run, prune_run
from myllm.system import atomic

pytestmark = pytest.mark.usefixtures("quiet_terminal")


def names():
    return {path.name for path in Path("checkpoints").iterdir() if not path.name.startswith(".")}


@pytest.fixture
def many(place):
    """The two runs, and copies of them: one with a long name, one with wide characters."""
    for i in range(2, 30):
        shutil.copytree("checkpoints/story", f"checkpoints/story-{i}")
    shutil.copytree("checkpoints/chars", "checkpoints/" + "a-long-name-" * 8 + "7")
    shutil.copytree("checkpoints/chars", "checkpoints/你好的故事")
    return place


class TestTable:
    @pytest.mark.parametrize("width", [40, 60, 80, 120])
    def test_fits_the_screen(self, many, run, monkeypatch, width):
        """A line for each run; columns go, names get shorter, numbers never."""
        monkeypatch.setenv("COLUMNS", str(width))
        result = run("runs")
        title, *rows, last = result.out.splitlines()
        assert result.code == 0 and result.err == ""
        assert len(rows) == 32 and all(cell_len(row) <= width for row in rows)
        assert title.startswith("run") and all("6/6" in row for row in rows)
        assert ("text" in title) == (width >= 80) and ("size" in title) == (width == 120)
        assert any(row.startswith("a-long") and "…" in row and "-7 " in row for row in rows)
        assert "without --run, the newest is used" in last

    def test_the_newest_is_last_and_it_is_the_one_that_is_used(self, place, run):
        """As `find_run` has it; whole names where no terminal limits them."""
        manifest = Path("checkpoints/chars/step-000006/manifest.json")
        os.utime(manifest, (4e9, 4e9))
        *_, row, last = run("runs").out.splitlines()
        assert row.split()[0] == "chars" and last.endswith(": chars")
        assert "story.txt" in row and "6/6" in row
        best = min(record["val_loss"] for record in myllm.load("chars").metrics())
        assert f"{best:.4f}" in row

    def test_damaged_runs_are_marked(self, place, run):
        """Whatever is damaged in one, the others are told of."""
        Path("checkpoints/story/config.toml").write_text("[[nonsense")
        os.truncate("checkpoints/chars/step-000006/model.safetensors", 100)
        shutil.copytree("checkpoints/chars", "checkpoints/third")
        Path("checkpoints/third/metrics.jsonl").write_text(
            '{"step": 3, "val_loss": 1%s}\n' % "0" * 400
        )
        Path("checkpoints/no run").mkdir()
        result = run("runs")
        assert result.code == 0
        assert re.findall(r"^(\w+) is damaged: myllm verify", result.out, re.M) == [
            found for found in re.findall(r"^(\w+) \(damaged\)", result.out, re.M)
        ]
        assert {"story", "chars"} <= set(re.findall(r"^(\w+) \(damaged\)", result.out, re.M))
        assert "no run" not in result.out

    def test_without_runs(self, folder, run):
        result = run("runs")
        assert result.code == 0 and "myllm train FILE" in result.out

    def test_unknown_second_word(self, place, run):
        assert_refused(run("runs", "shwo"), 2, "did you mean runs show?")


class TestShow:
    def test_all_of_one(self, place, run):
        """Text, model, training, figures, each checkpoint with its size, commands that work."""
        out = run("runs", "show", "story").out
        characters = len(Path("story.txt").read_text())
        assert f"story.txt ({characters:,} characters, 1 document)" in out
        assert "1 layer, 32 wide, 2 heads, context 16" in out and "6 of 6 steps" in out
        assert "bits per byte, at step" in out and "took" in out
        assert re.search(r"checkpoints +step 3  [\d.]+ kB\n +step 6  [\d.]+ kB  best, last\n", out)
        commands = [line.split()[1:] for line in out.splitlines() if line.startswith("  myllm ")]
        assert run(*commands[1]).code == 0

    def test_the_summary_in_python(self, place):
        summary = myllm.load("story").summary
        assert (summary.text, summary.step, summary.max_steps) == ("story.txt", 6, 6)
        assert summary.n_parameters == myllm.load("story").model.count_parameters()
        assert [run.summary.damage for run in myllm.runs()] == [None, None]

    @pytest.mark.slow  # imports transformers
    def test_an_imported_run(self, place, run, foreign):
        myllm.import_model(foreign("gpt2"), run="imported")
        assert "imported" in run("runs", "show", "imported").out
        assert run("runs").code == 0 and run("runs", "compare", "story", "imported").code == 0


class TestCompare:
    def test_shows_what_differs(self, place, run):
        """Settings that are the same are left out."""
        assert run("train", "story.txt", "--run", "other", *TINY, "--seed", "7").code == 0
        out = run("runs", "compare", "story", "other").out
        assert re.search(r"^seed +1 +7$", out, re.M) and "d_model" not in out
        assert out.splitlines()[-1].endswith("losses and bits per byte can be compared")

    @pytest.mark.parametrize(
        "flags, said",
        [
            (["--tokenizer", "char"], "compare bits per byte, not losses"),
            (["--val-split", "end"], "other parts of the text were held out"),
            ([], "their texts are not the same"),
        ],
        ids=["tokenizer", "split", "text"],
    )
    def test_says_what_does_not_compare(self, place, run, flags, said):
        Path("new.txt").write_text(words(3000, seed=3))
        text = "story.txt" if flags else "new.txt"
        assert run("train", text, "--run", "other", *TINY, *flags).code == 0
        assert said in run("runs", "compare", "story", "other").out.splitlines()[-1]

    def test_needs_two(self, place, run):
        assert_refused(run("runs", "compare"), 2, "myllm runs compare RUN RUN")
        assert_refused(run("runs", "compare", "story", "story"), 2, "another")


class TestPlot:
    def test_in_the_terminal(self, place, run, monkeypatch):
        """Plain characters, within the width, each curve with its name."""
        monkeypatch.setenv("COLUMNS", "60")
        one, two = run("runs", "plot", "story").out, run("runs", "plot", "story", "chars").out
        assert one.isascii() and all(len(line) <= 60 for line in (one + two).splitlines())
        assert "* training" in one and "+ validation" in one and "6 steps" in one
        assert "* story" in two and "+ chars" in two and "bits per byte" in two

    def test_as_an_image(self, place, run):
        """SVG, whole and with the names in it, whatever these are."""
        shutil.copytree("checkpoints/story", "checkpoints/<a & b")
        assert run("runs", "plot", "<a & b", "chars", "--out", "curves.svg").code == 0
        tree = ElementTree.parse("curves.svg")
        assert {"<a & b", "chars"} <= {element.text for element in tree.iter()}
        assert_refused(run("runs", "plot", "--out", "curves.png"), 2, ".svg")

    def test_of_nothing(self, place, run):
        Path("checkpoints/story/metrics.jsonl").write_text("")
        assert_refused(run("runs", "plot", "story"), 2, "not been evaluated")


class TestDelete:
    def test_deletes_what_is_named(self, many, run):
        before = names()
        result = run("runs", "delete", "story-2", "checkpoints/story-3", "--yes")
        assert result.code == 0 and "story-2: deleted" in result.out
        assert names() == before - {"story-2", "story-3"}
        assert not leftovers() and not list(Path("checkpoints").glob(".*"))
        assert myllm.load("story-4").delete() > 0 and "story-4" not in names()

    @pytest.mark.parametrize("answer, is_gone", [("y\n", True), ("\n", False), ("", False)])
    def test_asks_at_a_terminal(self, place, run, monkeypatch, answer, is_gone):
        stdin = io.StringIO(answer)
        monkeypatch.setattr(stdin, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        result = run("runs", "delete", "chars")
        assert (result.code == 0) == is_gone == ("chars" not in names())

    def test_needs_yes_where_nobody_can_be_asked(self, place, run, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
        assert_refused(run("runs", "delete", "story"), 2, "--yes")
        assert "story" in names()

    def test_all_or_none(self, place, run):
        """One name that is wrong, and nothing is deleted."""
        before = hashes("checkpoints")
        assert_refused(run("runs", "delete", "story", "chras", "--yes"), 2, "did you mean chars")
        assert hashes("checkpoints") == before

    @pytest.mark.parametrize("what", ["file", "folder", "in step", "link", "bare", "dots"])
    def test_what_is_not_just_a_run_stays(self, place, run, monkeypatch, what):
        """Foreign files, links, folders that only look like runs, `.` and `..`."""
        path, name = Path("checkpoints/story"), "story"
        if what == "file":
            (path / "notes.txt").write_text("mine")
        elif what == "folder":
            (path / "notes").mkdir()
        elif what == "in step":
            (path / "step-000006/notes.txt").write_text("mine")
        elif what == "link":
            Path("checkpoints/link").symlink_to("story")
            name = "link"
        elif what == "bare":
            Path("project").mkdir()
            Path("project/config.toml").write_text("a = 1\n")
            name = "project"
        else:
            monkeypatch.chdir("checkpoints/story")
            name = "."
        before = hashes(".")
        assert_refused(run("runs", "delete", name, "--yes"), 2)
        assert hashes(".") == before
        if what != "dots":
            assert_refused(run("runs", "prune", name, "--yes"), 2)
            assert hashes(".") == before

    def test_a_run_in_use_stays(self, place, run):
        held = RunFolder("checkpoints/story")
        held.lock()
        assert_refused(run("runs", "delete", "story", "--yes"), 2, "in use")
        assert_refused(run("runs", "prune", "story", "--yes"), 2, "in use")
        held.unlock()
        assert myllm.load("story").verify()

    def test_a_crash_leaves_a_run_or_none(self, place, run, monkeypatch):
        """The run is whole, or it is none; what is left of it goes later."""

        class Crash(BaseException):
            pass

        real = atomic.disk.remove

        def crash(path):
            if "story" in path.name and path.is_dir():
                shutil.rmtree(path / "step-000006")
                raise Crash
            real(path)

        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(atomic.disk, "remove", crash)
            delete_run(RunFolder("checkpoints/story"))
        assert [found.name for found in myllm.runs()] == ["chars"]
        assert leftovers()
        assert run("runs", "delete", "chars", "--yes").code == 0
        assert not leftovers()


class TestPrune:
    def test_keeps_what_is_needed_to_use_it(self, place, run):
        """Best and last; without the optimizer's state, as the run is finished. What it computes
        stays the same, and it is still the newest."""
        before, newest = run("evaluate", "--run", "story").out, run("runs").out.splitlines()[-1]
        dry = run("runs", "prune", "story")
        assert dry.code == 0 and "step-000003" in dry.out and "--yes" in dry.out
        assert (Path("checkpoints/story/step-000003")).is_dir()
        result = run("runs", "prune", "story", "--yes")
        assert result.code == 0 and "cannot be resumed" in result.out
        assert not Path("checkpoints/story/step-000003").exists()
        assert not Path("checkpoints/story/step-000006/optimizer.safetensors").exists()
        assert run("evaluate", "--run", "story").out == before
        assert run("runs").out.splitlines()[-1].split(": ")[-1] == newest.split(": ")[-1]
        assert run("verify", "story").code == 0
        assert run("train", "story.txt", "--from", "story", "--max-steps", "2").code == 0
        assert "nothing to remove" in run("runs", "prune", "story", "--yes").out

    def test_a_pruned_run_says_so_when_it_is_resumed(self, place, run):
        assert myllm.load("story").prune() > 0
        result = run("train", "--resume", "story", "--max-steps", "9")
        assert_refused(result, 2, "pruned", "--from story", announced=len(result.lines) - 1)

    def test_an_unfinished_run_can_still_be_resumed(self, place, run):
        """It keeps the optimizer's state."""
        flags = ["--max-steps", "6", "--eval-interval", "2", "--keep", "3"]
        assert run("train", "story.txt", "--run", "half", *TINY, *flags).code == 0
        half = RunFolder("checkpoints/half")
        config = half.config
        text = Path("checkpoints/half/config.toml").read_text()
        Path("checkpoints/half/config.toml").write_text(
            text.replace("max_steps = 6", "max_steps = 9")
        )
        assert config.train.max_steps == 6 and len(half.checkpoints.steps()) == 3
        assert run("runs", "prune", "half", "--yes").code == 0
        assert half.checkpoints.steps() == [6]
        assert run("train", "--resume", "half").code == 0

    def test_a_crash_leaves_it_whole(self, place, monkeypatch):
        """Cut off before any operation on the disk, the model can be used."""
        for operation in range(1, 12):
            shutil.copytree("checkpoints/story", f"checkpoints/cut-{operation}")
            left = SimpleNamespace(n=operation)
            with monkeypatch.context() as patch:
                for name in ("write", "rename", "remove"):
                    patch.setattr(atomic.disk, name, _until(left, getattr(atomic.disk, name)))
                try:
                    prune_run(RunFolder(f"checkpoints/cut-{operation}"))
                except KeyboardInterrupt:
                    pass
            run = myllm.load(f"cut-{operation}")
            assert run.folder.checkpoints.best_step() == 6
            assert run.folder.checkpoints.load("best", with_optimizer=False).step == 6
            run.prune()
            assert not any(found.damage for found in run.verify())


def _until(left, operation):
    def cut(*args):
        left.n -= 1
        if left.n < 0:
            raise KeyboardInterrupt
        return operation(*args)

    return cut


class TestNames:
    def test_resume_alone_takes_the_newest(self, place, run):
        """Which one is announced."""
        result = run("train", "--resume", "--max-steps", "7")
        assert result.code == 0 and "7/7" in result.out
        assert result.lines[0] == "continuing story, the newest run"
        shown = run("train", "--show-settings", "--resume").out
        assert f"run {Path('checkpoints/story')}" in shown
        assert myllm.train(resume=True, max_steps=8, quiet=True).name == "story"

    @pytest.mark.parametrize("args", [["--resume="], ["--resume", ""]])
    def test_an_empty_name_is_none(self, place, run, args):
        """As of a variable of the shell that is not set."""
        assert_refused(run("train", *args), 2, "no run ''")

    def test_resume_alone_without_runs(self, folder, run):
        assert_refused(run("train", "--resume"), 2, "myllm train FILE")

    @pytest.mark.parametrize("args", [["generate", "--run"], ["train", "--resume"], ["verify"]])
    def test_the_nearest_name_is_proposed(self, many, run, args):
        """Of many runs, some are listed, and how many there are besides."""
        found = run(*args, "stori")
        assert_refused(found, 2, "did you mean story?")
        assert_refused(run(*args, "quite other"), 2, "and 22 more")

    @pytest.mark.parametrize("verb", ["generate", "evaluate", "export"])
    def test_which_checkpoint(self, place, run, verb):
        """best, last, or a step that is kept; else those that are."""
        flags = ["--no-verify", "--out"] if verb == "export" else []
        for number, which in enumerate(("best", "last", "3")):
            out = [*flags, f"out-{number}"] if flags else []
            assert run(verb, *out, "--checkpoint", which).code == 0
        for which in ("4", "bets", "", "-3", "9" * 400):
            assert_refused(run(verb, f"--checkpoint={which}"), 2, "3, 6 are kept")

    def test_the_checkpoint_is_the_one_that_is_used(self, place, run):
        records = {r["step"]: r["val_loss"] for r in myllm.load("story").metrics()}
        for step, loss in records.items():
            run = myllm.load("story", device="cpu", checkpoint=step)
            assert run.evaluate().loss == pytest.approx(loss, abs=1e-6)

    def test_no_other_takes_the_place_of_a_damaged_one(self, place, run):
        os.truncate("checkpoints/story/step-000003/model.safetensors", 10)
        assert_refused(run("generate", "--checkpoint", "3"), 3, "step-000003", "--checkpoint last")


def test_a_damaged_manifest_of_a_checkpoint_is_no_reason_to_keep_a_run(place, run):
    """What cannot be used any more can be deleted."""
    Path("checkpoints/story/step-000006/manifest.json").write_text(json.dumps({}))
    assert run("runs", "delete", "story", "--yes").code == 0


def test_deleting_needs_the_run(place):
    gone = myllm.load("story")
    gone.delete()
    with pytest.raises(InputError, match="no run 'story'"):
        myllm.load("story")


@pytest.mark.parametrize("where", ["checkpoints/story", "checkpoints/story/step-000003"])
def test_no_run_gets_into_another(place, run, where):
    """Nor into a checkpoint of it, which would be damaged by that."""
    before = hashes("checkpoints")
    assert_refused(run("train", "story.txt", *TINY, "--runs-dir", where), 2, where, "name another")
    assert hashes("checkpoints") == before


def test_show_tells_what_the_losses_say(place, run):
    """And its commands have a line of the run's own text."""
    out = run("runs", "show", "story").out
    beginning = RunFolder("checkpoints/story").checkpoints.metadata()["beginning"]
    assert "\nverdict " in out and f"myllm generate '{beginning}'" in out
