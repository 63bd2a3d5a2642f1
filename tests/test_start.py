"""How a command begins and ends: what it does not import, and that its end loses nothing."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from myllm.runs.checkpoint import is_finite
from myllm.system.importing import quick_imports

RUNS_DIR = str(Path(__file__).parent / "saved_run" / "runs")
SCREENS = {"rich.console", "rich.progress"}  # all that is drawn while training
COMPUTING = SCREENS | {"torch", "numpy", "tokenizers", "numba", "llvmlite", "transformers"}
NEEDLESS = SCREENS | {
    "numba",
    "transformers",
    "scipy",
    "torch._dynamo",
    "torch._inductor",
    "sympy",
}


def python(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "args, never",
    [
        ((), COMPUTING),
        (("--help",), COMPUTING),
        (("train", "--help"), COMPUTING),
        (("generate", "--help"), COMPUTING),
        (("benchmark", "--help"), COMPUTING),
        (("runs", "--runs-dir", RUNS_DIR), COMPUTING),
        (("runs", "show", "before", "--runs-dir", RUNS_DIR), COMPUTING),
        (("generate", "--runs-dir", RUNS_DIR, "--max-new-tokens", "1"), NEEDLESS),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_what_a_command_does_without(args, never):
    """Each of these takes longer to import than the command takes without it."""
    program = (
        "import json, sys; from myllm.cli import main; code = main(sys.argv[1:]); "
        "print(); print(json.dumps([code, list(sys.modules)]))"
    )
    done = python(program, *args)
    code, imported = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    assert not never & set(imported)


class TestEnd:
    PROGRAM = """
import atexit, sys
from myllm.cli.main import main
class Loud:
    def __del__(self):
        print("taken apart")
loud = Loud()
atexit.register(print, "last words")
sys.argv[0] = "myllm"
sys.exit(main())
"""

    @pytest.mark.parametrize("args, code", [(["--version"], 0), (["evalute"], 2)])
    def test_it_says_all_and_takes_nothing_apart(self, args, code):
        """The exit code is the program's; what others registered for the end has run."""
        done = python(self.PROGRAM, *args)
        assert done.returncode == code
        assert done.stdout.endswith("last words\n")  # and no more
        assert done.stdout.startswith("myllm") if code == 0 else "evaluate" in done.stderr

    def test_a_caller_from_python_lives_on(self):
        done = python("from myllm.cli import main; main(['--version']); print('on')")
        assert done.stdout.endswith("on\n")


class TestQuickImports:
    @pytest.fixture
    def collecting(self):
        gc.enable()
        yield
        gc.unfreeze()
        gc.enable()

    @pytest.mark.parametrize("is_on", [True, False])
    def test_garbage_is_looked_for_again_if_it_was(self, is_on, collecting, monkeypatch):
        """Also after an import that fails."""
        monkeypatch.delitem(sys.modules, "torch")
        if not is_on:
            gc.disable()
        with pytest.raises(ImportError), quick_imports():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == is_on

    @pytest.mark.parametrize("is_first", [True, False])
    def test_what_was_garbage_before_does_not_stay(self, is_first, collecting, monkeypatch):
        """A lock may hang on it: that of a run that could not be resumed, for one."""
        if is_first:
            monkeypatch.delitem(sys.modules, "torch")
        ring = Ring()
        ring.itself, gone = ring, weakref.ref(ring)
        del ring
        with quick_imports():
            pass
        gc.collect()
        assert gone() is None


class Ring:
    """Garbage that only Python's collector finds."""

    itself: Ring


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_not_finite_is_found(dtype, wrong):
    """Wherever it is; the largest numbers are finite, and so is nothing at all."""
    tensor = torch.full((5, 7), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(tensor) and is_finite(-tensor) and is_finite(tensor[:0])
    for place in range(tensor.numel()):
        damaged = tensor.clone()
        damaged.view(-1)[place] = wrong
        assert not is_finite(damaged)
