"""Standard streams that are closed, full or left: no traceback, and a documented exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_place import ENV, TINY

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a POSIX shell, /dev/full"),
    pytest.mark.usefixtures("quiet_terminal"),
]
CLOSED = [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"]
FULL = [">/dev/full", "2>/dev/full", ">/dev/full 2>/dev/full"]
NOISE = ("Traceback", "Exception ignored", "Logging error")
TRAIN = ["train", "story.txt", "--run", "new", *TINY]
# verb → exit code with streams as usual
QUICK = {("--version",): 0, ("generate", "--nonsense"): 2}
WALK = {
    (): 0,
    ("--help",): 0,
    ("train", "--help"): 0,
    tuple(TRAIN): 0,
    ("generate", "the", "--max-new-tokens", "5"): 0,
    ("write",): 0,
    ("chat",): 0,
    ("evaluate",): 0,
    ("evaluate", "missing.txt"): 2,
    ("prepare", "story.txt"): 0,
    ("export", "--no-verify"): 0,
    ("import", "missing"): 2,
    ("verify",): 0,
    ("inspect-batch", "story", "0"): 0,
    ("benchmark", "--iterations", "1", "--d-model", "16", "--n-layers", "1", "--n-heads", "2"): 0,
}


def call(args, streams):
    """Exit code, and what came out of the streams that were left as they are."""
    command = f'exec "$0" -m myllm "$@" {streams}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, *args],
        capture_output=True, text=True, env={**ENV, "PYTHONUNBUFFERED": ""}, timeout=120,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def check(args, streams, usual):
    code, text = call(args, streams)
    assert not [noise for noise in NOISE if noise in text], text
    trains = args[:2] == ("train", "story.txt")
    lost = usual == 0 and ">/dev/full" in streams.split() and not trains
    assert code == (4 if lost else usual), text
    if lost and streams == ">/dev/full":
        assert text == "myllm: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize("streams", [*CLOSED, *FULL])
@pytest.mark.parametrize("args, usual", QUICK.items(), ids=lambda value: str(value))
def test_of_what_answers_at_once(args, usual, streams):
    check(args, streams, usual)


def test_training_goes_on_without_its_log(place):
    check(tuple(TRAIN), ">/dev/full 2>/dev/full", 0)
    assert Path("checkpoints/new/step-000006/manifest.json").is_file()


@pytest.mark.slow
def test_files_do_not_become_the_output(place):
    """The first file that is opened would be number 1, and what is printed would go into it."""
    check(("verify",), ">&-", 0)
    assert call(["verify"], "")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("streams", [*CLOSED, *FULL])
@pytest.mark.parametrize("args, usual", WALK.items(), ids=lambda value: str(value)[:40])
def test_of_every_verb(place, args, usual, streams):
    check(args, streams, usual)


@pytest.mark.slow
@pytest.mark.parametrize("args", WALK, ids=str)
def test_a_reader_of_errors_that_leaves(place, args):
    """A pipe on standard error that nobody reads."""
    code, text = call([*args], "2>&1 >/dev/null | true")
    assert not [noise for noise in NOISE if noise in text], text
