"""The safetensors library's error texts, by its behaviour: a new version that words them otherwise
fails here."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors import SafetensorError, safe_open

from myllm.system.safetensors_adapter import read_tensors, write_tensors


def test_round_trip(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(1, dtype=torch.bfloat16)}
    write_tensors(tensors, tmp_path / "x", {"format": "pt"})
    found = dict(read_tensors(tmp_path / "x"))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(OSError) as caught:
        write_tensors({"a": torch.ones(1)}, tmp_path / "missing" / "x")
    assert caught.value.errno == errno.ENOENT


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_disk_that_is_full(tmp_path):
    """By the system's own limit on the size of a file; in a process of its own, as it stays."""
    program = """
        import resource, sys
        from pathlib import Path
        import torch
        from myllm.system.safetensors_adapter import write_tensors
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            write_tensors({"a": torch.ones(100_000)}, Path(sys.argv[1]))
        except OSError as error:
            print(error.errno)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(errno.EFBIG)], done.stderr


def test_a_file_of_another_format(tmp_path):
    (tmp_path / "x").write_bytes(b"not tensors")
    with pytest.raises(SafetensorError):
        dict(read_tensors(tmp_path / "x"))


def test_it_does_not_load_torch():
    """Preparing a text stays light, though it knows the adapter's neighbours."""
    imports = "import sys, myllm.system.safetensors_adapter, myllm.data.prepare"
    program = f"{imports}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
