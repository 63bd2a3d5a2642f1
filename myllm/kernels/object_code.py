"""Room: a function that Numba can translate → machine code that is kept on disk, and called.

Knows nothing of what it computes. Numba only translates, once for each user and version: it takes
0.6 s to import, as long as a text takes. What it makes is kept as an object file in the user's
cache folder, which LLVM (`llvmlite`, 0.05 s) links into this process and later ones. The file is
named after all that the code depends on, and begins with its checksum: disks do damage files.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from myllm.system.atomic import write_file

SUFFIX, DIGEST_BYTES = ".o", 32
C_LIBRARY = {"memset", "memcpy", "memmove", "logf", "sqrtf"}
MOST_S = 300.0  # of translating
MOST_KEPT = 8  # files: a home may be shared by processors of several kinds
_engines: list[Any] = []  # they own the code, which is called as long as the process lives


def machine_code(
    module: str, group: str, folder: Path, announce: Callable[[], None] = lambda: None
) -> Callable[[str], int]:
    """Functions of a module as machine code: C functions of 64-bit integers.

    Args:
        module: where the functions are; imported only if they must be translated.
        group: what the module calls a dictionary of them by their names; Numba's, of which each
            takes integers and returns nothing.
        folder: where the code is kept.
        announce: called before they are translated, which takes seconds.

    Returns:
        The address of the function of a name.

    Raises:
        Exception: whatever Numba, LLVM or the disk complain of.
    """
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    path = folder / f"{module.rpartition('.')[2]}.{group}-{_depends_on(llvm)}{SUFFIX}"
    code = _kept(path)
    if code is None:
        if importlib.util.find_spec("numba") is None:
            raise ImportError("No module named 'numba'")
        announce()
        try:
            code = _translated_elsewhere(module, group)
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
    find: Callable[[str], int] = engine.get_function_address
    return find


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


def _translated_elsewhere(module: str, group: str) -> bytes:
    """As `_translated`, in another process, which leaves neither Numba in this one nor its own
    faults: where LLVM fails, it ends the process. Ctrl-C is not meant for it."""
    own = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "NUMBA_OPT": "0",
    }  # it is optimised once, after
    words = [sys.executable, "-m", __name__, module, group]
    done = subprocess.run(
        words, env={**os.environ, **own}, capture_output=True, timeout=MOST_S,
        start_new_session=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError((done.stderr.decode().strip().splitlines() or ["no reason given"])[-1])
    return done.stdout


def _c_function(name: str, function: Any) -> Any:
    """A module with Numba's function, and one of C's kind that calls it by this name."""
    import llvmlite.binding as llvm
    from llvmlite import ir
    from numba import types

    n = len(inspect.signature(function.py_func).parameters)
    kinds = (types.int64,) * n
    if kinds not in function.overloads:
        function.compile(kinds)
    own = function.overloads[kinds].fndesc.llvm_func_name
    # Numba's takes where to put a result and an error, which there are none of
    number, pointer = ir.IntType(64), ir.IntType(8).as_pointer()
    module = ir.Module()
    inner = ir.Function(
        module, ir.FunctionType(ir.IntType(32), [pointer, pointer, *[number] * n]), own
    )
    outer = ir.Function(module, ir.FunctionType(ir.VoidType(), [number] * n), name)
    builder = ir.IRBuilder(outer.append_basic_block())
    places = [builder.bitcast(builder.alloca(number), pointer) for _ in range(2)]
    builder.call(inner, [*places, *outer.args])
    builder.ret_void()
    made = llvm.parse_assembly(function.inspect_llvm(kinds))
    wrapper = str(module).replace('target triple = "unknown-unknown-unknown"', "")
    made.link_in(llvm.parse_assembly(wrapper.replace('target datalayout = ""', "")))
    made.get_function(own).linkage = "internal"
    return made


def _translated(module: str, group: str) -> bytes:
    """The object file of some functions, which need nothing of Python or Numba to run."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    made = None
    for name, function in getattr(importlib.import_module(module), group).items():
        part = _c_function(name, function)
        if made is None:
            made = part
        else:
            made.link_in(part)
    assert made is not None
    name, features = _processor(llvm)
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(cpu=name, features=features, opt=3, jit=True)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(made, passes)
    needs = {f.name for f in made.functions if f.is_declaration and "llvm." not in f.name}
    if needs - C_LIBRARY:
        raise RuntimeError(f"{group} needs {', '.join(sorted(needs))}")
    code: bytes = machine.emit_object(made)
    return code


if __name__ == "__main__":
    sys.stdout.buffer.write(_translated(*sys.argv[1:]))
