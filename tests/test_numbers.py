"""Every number of every verb at its edges and beyond: it works, or it is one line, no change."""

import io
from pathlib import Path

import pytest
from cli_place import TINY, assert_refused, hashes

import myllm
from myllm.checks import DEVICES, MAX_NAME_BYTES
from myllm.cli.main import VERBS
from myllm.cli.parse import flags_of
from myllm.errors import InputError
from myllm.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("quiet_terminal")
VALUES = [
    "0", "-1", "1e-40", "1e40", "nan", "inf", "", str(2**31), str(2**32), str(2**63),
    str(10**23), str(-(10**30)), "1" * 5000,
]  # fmt: skip
SMALL = "--d-model 8 --n-heads 2 --n-layers 1 --context-length 8 --batch-size 1".split()
USUAL = {
    "train": ["story.txt", *TINY, *SMALL, "--max-steps", "1", "--kernels", "plain"],
    "prepare": ["story.txt"],
    "generate": ["the", "--max-new-tokens", "2"],
    "write": ["--max-new-tokens", "2"],
    "chat": ["--max-new-tokens", "2"],
    "inspect-batch": ["story"],
    "benchmark": [*SMALL, "--iterations", "1"],
}
NUMBERS = [
    (verb, flag.flag)
    for verb, what in VERBS.items()
    for flag in flags_of(what.options)
    if {int, float} & set(flag.kinds)
    and verb != "chat"  # which has the options of write
    and (verb != "benchmark" or flag.owner is what.options)  # and this those of train
]


def arguments(verb, flag, value):
    if flag == "step":  # of inspect-batch: by its place
        return ["inspect-batch", "story", "--", value] if value else None
    return [verb, *USUAL.get(verb, []), f"--{flag}={value}"]


@pytest.mark.parametrize("verb, flag", NUMBERS, ids=lambda value: value)
def test_odd_numbers(place, run, monkeypatch, verb, flag):
    """0, negative, tiny, huge, not a number: nothing but one line, and nothing is written."""
    monkeypatch.setattr("sys.stdin", io.StringIO("the moon\n"))
    before = hashes("checkpoints")
    for value in VALUES:
        if (args := arguments(verb, flag, value)) is None:
            continue
        result = run(*args)
        if result.code:
            assert_refused(result, 2, announced=len(result.lines) - 1)
            assert len(result.lines[-1]) < 400
            assert hashes("checkpoints") == before, args
        else:
            before = hashes("checkpoints")
            assert all(
                RunFolder(path).checkpoints.newest_good() is not None
                for path in Path("checkpoints").iterdir()
            )


ODD_NAMES = [
    "", " ", ".", "..", "../x", "a/b", "/abs", "a\\b", ".hidden", "-dash", "dot.", "blank ",
    "con", "aux.txt", "Com1", "a:b", "a*", "a?", 'a"b', "a<b", "a|b", "a\nb", "a\x1bb", "\udcff",
    "n" * 300, "你" * 100,
]  # fmt: skip


class TestNames:
    def test_names_that_not_every_system_can_have(self, place, run):
        """Refused before anything is prepared, whoever makes the run."""
        before = hashes(".")
        for name in ODD_NAMES:
            assert_refused(run("train", "story.txt", *TINY, f"--run={name}"), 2, "name")
            with pytest.raises(InputError, match="name"):
                myllm.import_model(".", run=name)
        assert hashes(".") == before

    @pytest.mark.parametrize("name", ["my run (2)", "你好", "null", "a.b", "x" * MAX_NAME_BYTES])
    def test_other_names_work(self, place, run, name):
        assert run("train", "story.txt", *TINY, "--max-steps", "1", "--run", name).code == 0
        assert run("generate", "--run", name, "--max-new-tokens", "1").code == 0

    def test_a_text_of_a_device_name(self, place, run):
        """The run that is named after it has one that works."""
        Path("aux.txt").write_bytes(Path("story.txt").read_bytes())
        assert run("train", "aux.txt", *TINY, "--max-steps", "1").code == 0
        assert Path("checkpoints/run-aux").is_dir() and "aux" in DEVICES

    @pytest.mark.parametrize("verb", ["generate", "evaluate", "verify", "export", "inspect-batch"])
    def test_runs_that_cannot_be(self, place, run, verb):
        """One line, not longer than it has to be."""
        for name in ("n" * 300, "\udcff", "", "a\nb", "x" * 5000):
            named = ["--run", name] if verb in ("generate", "evaluate") else ["--", name]
            found = run(verb, *named)
            assert_refused(found, 2, "no run")
            assert len(found.lines[-1]) < 300
