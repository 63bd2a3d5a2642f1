"""File systems that lack something, and what others leave in our folders."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pytest
from cli_place import assert_refused

import myllm
from myllm.system import locks

pytestmark = pytest.mark.usefixtures("quiet_terminal")
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX calls")


@posix
@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_without_locks_it_goes_on(place, run, monkeypatch, name):
    """One warning, and no mark that outlives the process."""
    import fcntl

    def refuse(*args):
        raise OSError(getattr(errno, name), "no locks")

    locks._warn_once.cache_clear()
    monkeypatch.setattr(fcntl, "flock", refuse)
    result = run("train", "--resume", "story", "--max-steps", "7")
    assert result.code == 0
    assert result.err.count("no locks") == 1
    assert not (Path("checkpoints/story/.lock")).read_bytes()


class TestSync:
    @pytest.fixture
    def refuse(self, monkeypatch):
        def on(name, only_folders=True):
            real = os.fsync

            def fsync(descriptor):
                if not only_folders or stat.S_ISDIR(os.fstat(descriptor).st_mode):
                    raise OSError(getattr(errno, name), "refused")
                real(descriptor)

            monkeypatch.setattr(os, "fsync", fsync)

        return on

    @posix
    @pytest.mark.parametrize("name", ["EINVAL", "ENOTSUP", "EACCES", "ENOSYS"])
    def test_a_folder_that_cannot_be_synced(self, place, run, refuse, name):
        refuse(name)
        assert run("train", "--resume", "story", "--max-steps", "7").code == 0
        assert run("verify", "story").code == 0

    @posix
    def test_a_disk_that_fails_does_not_pass_for_that(self, place, run, refuse):
        refuse("EIO")
        result = run("train", "--resume", "story", "--max-steps", "7")
        assert_refused(result, 4, "the disk fails", announced=len(result.lines) - 1)

    def test_files_that_cannot_be_synced(self, place, run, refuse):
        refuse("EINVAL", only_folders=False)
        assert run("train", "--resume", "story", "--max-steps", "7").code == 0


CLUTTER = [".DS_Store", "Desktop.ini", "Thumbs.db", "._config.toml", ".nfs0000000000a1"]


class TestClutter:
    @pytest.fixture(params=["lost+found", *CLUTTER])
    def strew(self, request):
        def into(*folders):
            for folder in folders:
                path = Path(folder, request.param)
                path.mkdir() if request.param == "lost+found" else path.write_bytes(b"\0")

        return into

    def test_it_is_no_damage_and_no_run(self, place, run, strew):
        before = [found.name for found in myllm.runs()]
        strew("checkpoints", "checkpoints/story", "checkpoints/story/step-000006", "data")
        strew(*(path.parent for path in Path("data").glob("*/tokens.json")))
        assert run("verify", "story").code == 0
        assert [found.name for found in myllm.runs()] == before
        result = run("train", "--resume", "story")
        assert result.code == 0 and "damaged" not in result.err

    def test_a_folder_that_holds_nothing_else_is_empty(self, place, run, strew, request):
        Path("tokens").mkdir()
        strew("tokens")
        result = run("prepare", "story.txt", "--out", "tokens")
        if (Path("tokens") / "lost+found").exists():  # nothing can be renamed to a mount point
            assert_refused(result, 2, "not empty")
        else:
            assert result.code == 0 and Path("tokens/tokens.npy").is_file()

    def test_other_files_still_are(self, place, run):
        Path("checkpoints/story/step-000006/extra.bin").touch()
        assert run("verify", "story").code == 3
        Path("tokens").mkdir()
        Path("tokens/mine.txt").touch()
        assert run("prepare", "story.txt", "--out", "tokens").code == 2


def test_files_that_cannot_be_mapped_are_read(place, run, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENODEV, "No such device")

    expected = run("generate", "the", "--run", "story", "--sample-seed", "1").out
    monkeypatch.setattr("mmap.mmap", refuse)
    monkeypatch.setattr("myllm.system.safetensors_adapter.safe_open", refuse)
    assert run("generate", "the", "--run", "story", "--sample-seed", "1").out == expected
    assert run("evaluate", "--run", "story").code == 0


@posix
def test_names_that_are_patterns_elsewhere(place, run):
    """Only what is left of the very same folder is removed."""
    others = [Path(".tmp-x-1"), Path(".tmp-[x]-2-1")]
    for left in (*others, Path(".tmp-[x]-1")):
        left.mkdir()
    assert run("prepare", "story.txt", "--out", "[x]").code == 0
    assert run("prepare", "story.txt", "--out", "*").code == 0
    assert not Path(".tmp-[x]-1").exists() and all(left.exists() for left in others)


def test_a_checkpoint_is_no_run(place, run):
    """It has the same files as one, and must not be written into."""
    checkpoint = "checkpoints/story/step-000006"
    for args in (["train", "--resume"], ["generate", "the", "--run"], ["verify"]):
        assert_refused(run(*args, checkpoint), 2, checkpoint, "checkpoint", "checkpoints/story")
    assert run("verify", "story").code == 0
