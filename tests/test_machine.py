"""Cores and memory as a container grants them."""

from __future__ import annotations

import os

import pytest

from myllm.system import machine


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine of 16 cores and 8 GB; writes the files of its container."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that it is put back afterwards
    monkeypatch.delenv("OMP_NUM_THREADS")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 8000000 kB\n")

    def write(**files: str) -> None:
        for name, content in files.items():
            (tmp_path / name.replace("_", ".")).write_text(content)

    return write


@pytest.mark.parametrize(
    "quota, cores",
    [("max 100000", 12), ("200000 100000", 2), ("150000 100000", 2), ("9900000 100000", 12)],
)
def test_cores(system, quota, cores):
    """Affinity and quota, whichever is less; a part of a core counts as one."""
    system(cpu_max=quota)
    assert machine.available_cores() == cores
    machine.use_available_cores()
    assert os.environ["OMP_NUM_THREADS"] == str(cores)


def test_the_user_decides_on_threads(system, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    system(cpu_max="200000 100000")
    machine.use_available_cores()
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_threads_do_not_keep_cores_busy_while_they_wait(system, monkeypatch):
    """Unless the user has said how they should wait, in any of the ways that there are."""
    for name in machine.WAITING:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    machine.use_available_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    assert int(os.environ["GOMP_SPINCOUNT"]) <= 1000
    for name in machine.WAITING:
        for other in machine.WAITING:
            monkeypatch.delenv(other, raising=False)
        monkeypatch.setenv(name, "7")
        machine.use_available_cores()
        assert [os.environ.get(other) for other in machine.WAITING if other != name] == [None] * 2


def test_nothing_is_set_where_all_cores_are_granted(system, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    machine.use_available_cores()
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize(
    "files, free",
    [
        ({}, 8_192_000_000),
        ({"memory_max": "max", "memory_current": "5"}, 8_192_000_000),
        ({"memory_max": "2000000000", "memory_current": "500000000"}, 1_500_000_000),
    ],
)
def test_memory(system, files, free):
    system(**files)
    assert machine.available_memory_bytes() == free


def test_memory_that_is_not_known(system, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "none")
    assert machine.available_memory_bytes() is None
