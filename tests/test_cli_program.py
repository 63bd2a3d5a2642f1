"""The command line: help, version, the program as a process of its own."""

import re
import subprocess
import sys

import pytest
from cli_place import ENV, TINY

import myllm

pytestmark = pytest.mark.usefixtures("quiet_terminal")


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

    @pytest.mark.skipif(sys.platform == "win32", reason="no figures of child processes")
    @pytest.mark.parametrize("args, limit_s", [(["--help"], 1.0), (["train", "--help"], 1.0)])
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
