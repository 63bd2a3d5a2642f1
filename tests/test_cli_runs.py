"""The command line: folders of runs, what a run allows when it is resumed."""

import shlex
import shutil
from pathlib import Path

import pytest
from cli_place import TINY, assert_refused, hashes, words

pytestmark = pytest.mark.usefixtures("quiet_terminal")


class TestFolderOfRuns:
    def test_hints_work_as_printed(self, folder, run):
        """Also with blanks in the names of run and folder."""
        Path("story.txt").write_text(words())
        result = run("train", "story.txt", "--run", "my run", "--runs-dir", "old runs", *TINY)
        hints = [line.strip() for line in result.out.splitlines() if line.startswith("  myllm ")]
        assert len(hints) == 3
        args = shlex.split(hints[0])[1:]
        assert run(*args, "--max-new-tokens", "3").code == 0

    @pytest.mark.parametrize("args", [["evaluate"], ["verify"]])
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
    def test_no_run_yet(self, folder, run, args):
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
