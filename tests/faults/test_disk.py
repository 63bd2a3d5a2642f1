"""Full, failing and read-only disks: what was saved stays, and the message says what is needed."""

from __future__ import annotations

import errno
import time

import pytest

from myllm.config import RunConfig
from myllm.errors import DiskFullError
from myllm.runs.checkpoint import Checkpoint
from myllm.runs.folder import RunFolder
from myllm.system.atomic import disk
from myllm.train import saver as saver_module
from myllm.train.saver import BackgroundSaver


@pytest.fixture
def run(tmp_path, tokenizer, model_config) -> RunFolder:
    return RunFolder.create(tmp_path, "run", RunConfig(model=model_config), tokenizer)


def contents(run: RunFolder) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(run.path.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("operation", ["write", "sync", "rename", "make_folder"])
def test_a_save_that_fails_changes_nothing(run, monkeypatch, number, operation):
    run.checkpoints.save(Checkpoint(1, {}, {}, {}, {}, run.small_files()), True, 2)
    before, real = contents(run), getattr(disk, operation)
    calls = [0]

    def fail(path, *rest):
        calls[0] += 1
        if "step-000002" in str(path) and calls[0] > 1:
            raise OSError(number, "the disk")
        real(path, *rest)

    monkeypatch.setattr(disk, operation, fail)
    calls[0] = 0 if operation in ("write", "sync") else 1
    with pytest.raises(DiskFullError, match=r"step 2.*[\d,]+ bytes are needed.*intact.*--resume"):
        run.checkpoints.save(Checkpoint(2, {}, {}, {}, {}, run.small_files()), True, 2)
    assert contents(run) == before


class TestBackgroundSaver:
    def test_an_error_reaches_the_loop(self, run, monkeypatch):
        def fail(path, *rest):
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(disk, "make_folder", fail)
        saver = BackgroundSaver(run, 2)
        saver.save(Checkpoint(1, {}, {}, {}), True)
        with pytest.raises(DiskFullError):
            saver.join()
        saver.join()  # told once

    def test_waits_for_room(self, run, monkeypatch, caplog):
        real, full = disk.make_folder, [True]

        def fail(path, *rest):
            if full[0]:
                raise OSError(errno.ENOSPC, "full")
            real(path, *rest)

        monkeypatch.setattr(disk, "make_folder", fail)
        monkeypatch.setattr(saver_module, "RETRY_SECONDS", 0.01)
        saver = BackgroundSaver(run, 2, wait_for_room=True)
        saver.save(Checkpoint(1, {}, {}, {}), True)
        time.sleep(0.1)
        assert run.checkpoints.steps() == []
        full[0] = False
        saver.join()
        assert run.checkpoints.steps() == [1]
        assert caplog.text.count("trying again until there is room") == 1
        assert "there is room again: step 1 is saved" in caplog.text

    def test_a_signal_ends_the_wait(self, run, monkeypatch):
        def fail(path, *rest):
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(disk, "make_folder", fail)
        saver = BackgroundSaver(run, 2, wait_for_room=True)
        saver.save(Checkpoint(1, {}, {}, {}), True)
        saver.give_up()
        with pytest.raises(DiskFullError):
            saver.join()
