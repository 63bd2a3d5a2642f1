"""Room: a function that Numba can translate → machine code that is kept on disk, and called.

Knows nothing of what it computes. Numba only translates, once for each user and version: it takes
0.6 s to import, as long as a text takes. What it makes is kept as an object file in the user's
cache folder, which LLVM (`llvmlite`, 0.05 s) links into this process and later ones. The file is
named after all that the code depends on, and begins with its checksum: disks do damage files.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from myllm.system.atomic import write_file

SUFFIX, DIGEST_BYTES = ".o", 32
MOST_S = 300.0  # of translating
MOST_KEPT = 8  # files: a home may be shared by processors of several kinds
_engines: list[Any] = []  # they own the code, which is called as long as the process lives


def machine_code(
    module: str, function: str, n_arguments: int, folder: Path, announce: Callable[[], None]
) -> Callable[..., None]:
    """The function of a module as machine code; it takes 64-bit integers and releases the GIL.

    Args:
        module: where the function is; imported only if it must be translated.
        function: decorated by `numba_tools.translatable`.
        n_arguments: that it takes.
        folder: where the code is kept.
        announce: called before it is translated, which takes seconds.

    Raises:
        Exception: whatever Numba, LLVM or the disk complain of.
    """
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    path = folder / f"{function}-{_depends_on(llvm)}{SUFFIX}"
    code = _kept(path)
    if code is None:
        if importlib.util.find_spec("numba") is None:
            raise ImportError("No module named 'numba'")
        announce()
        try:
            code = _translated_elsewhere(module, function, n_arguments)
        except Exception:
            _keep(path, b"")
            raise
        _keep(path, code)
    if not code:
        raise RuntimeError(f"it failed before; to try again, remove {path}")
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    address = engine.get_function_address(function)
    integers = [ctypes.c_int64] * n_arguments
    call = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *integers)(address)
    result, error = ctypes.c_int64(), ctypes.c_void_p()  # Numba's own arguments: not used
    first = ctypes.addressof(result), ctypes.addressof(error)
    _engines.append((result, error))
    return lambda *arguments: call(*first, *arguments)


def _depends_on(llvm: Any) -> str:
    """A name for what the code follows from: the sources of this wing, compiler, processor."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    version = importlib.import_module("llvmlite").__version__  # each Numba wants one of its own
    here = (version, llvm.get_process_triple(), *_processor(llvm))
    return hashlib.sha256(digest.digest() + repr(here).encode()).hexdigest()[:16]


def _processor(llvm: Any) -> tuple[str, str]:
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


def _keep(path: Path, code: bytes) -> None:
    """Writes the file as a whole; those of older versions go."""
    write_file(path, hashlib.sha256(code).digest() + code)
    pattern = f"{path.name.partition('-')[0]}-*{SUFFIX}"
    with contextlib.suppress(OSError):  # another process may be at it, too
        by_age = sorted(path.parent.glob(pattern), key=lambda p: p.stat().st_mtime)
        for old in by_age[:-MOST_KEPT]:
            old.unlink()


def _kept(path: Path) -> bytes | None:
    """The code in a file, if it is there and whole; empty where it could not be made."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def _translated_elsewhere(module: str, function: str, n_arguments: int) -> bytes:
    """As `_translated`, in another process, which leaves neither Numba in this one nor its own
    faults: where LLVM fails, it ends the process."""
    own = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "NUMBA_OPT": "0",
    }  # it is optimised once, after
    words = [sys.executable, "-m", __name__, module, function, str(n_arguments)]
    done = subprocess.run(words, env={**os.environ, **own}, capture_output=True, timeout=MOST_S)
    if done.returncode:
        raise RuntimeError((done.stderr.decode().strip().splitlines() or ["no reason given"])[-1])
    return done.stdout


def _translated(module: str, function: str, n_arguments: int) -> bytes:
    """The object file of a function, which needs nothing of Python or Numba to run."""
    import llvmlite.binding as llvm
    import numba

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    dispatcher = getattr(importlib.import_module(module), function)
    made = llvm.parse_assembly(dispatcher.inspect_llvm((numba.types.int64,) * n_arguments))
    for f in list(made.functions):
        if not f.is_declaration and f"{function}B" in f.name:
            f.name = function
    name, features = _processor(llvm)
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(cpu=name, features=features, opt=3, jit=True)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(made, passes)
    needs = {f.name for f in made.functions if f.is_declaration and "llvm." not in f.name}
    if needs - {"memset", "memcpy", "memmove"}:
        raise RuntimeError(f"{function} needs {', '.join(sorted(needs))}")
    code: bytes = machine.emit_object(made)
    return code


if __name__ == "__main__":
    sys.stdout.buffer.write(_translated(sys.argv[1], sys.argv[2], int(sys.argv[3])))
