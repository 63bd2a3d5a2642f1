"""Room: a run → a file or folder for other programs, read back by one of them and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from myllm.checkpoint import RunFolder
from myllm.errors import ConfigError, InputError
from myllm.export_check import READERS, Comparison, ExportError, compare
from myllm.gguf_file import export_gguf
from myllm.huggingface import export_huggingface
from myllm.onnx_folder import export_onnx
from myllm.registry import Registry


@dataclass(frozen=True)
class ExportResult:
    """What was written, and what its reader made of it.

    Attributes:
        path: the file or folder.
        comparison: both sides; None if it was not read back.
        missing_package: what to install so that it can be.
    """

    path: Path
    comparison: Comparison | None = None
    missing_package: str | None = None


# name → what is added to the run's name, the writer
FORMATS: Registry[tuple[str, Callable[..., None]]] = Registry("to", {
    "hf": ("-hf", export_huggingface),
    "gguf": (".gguf", export_gguf),
    "onnx": ("-onnx", export_onnx),
})  # fmt: skip


def export(
    run: RunFolder,
    format: str,
    out: Path | None = None,
    quantize: str | None = None,
    verify: bool = True,
) -> ExportResult:
    """Writes the best model of a run, and reads it back.

    Args:
        run: whose.
        format: hf, gguf or onnx.
        out: what to make; by default it is named after the run.
        quantize: a type of GGUF.
        verify: read it back with the independent program, where that is installed.

    Raises:
        ExportError: the other program computes something else.
        InputError, ConfigError: `out` exists; an unknown format, or an option that it has not.
    """
    suffix, write = FORMATS[format]
    if quantize and format != "gguf":
        raise ConfigError("--quantize is a choice of --to gguf: the other formats are exact")
    path = out or Path(f"{run.name}{suffix}")
    if path.exists():
        raise InputError(f"{path} exists: name another --out, or remove it")
    if format == "gguf":
        export_gguf(run, path, quantize or "f32")
    else:
        write(run, path)
    if not verify:
        return ExportResult(path)
    found = compare(run, path, format)
    if found is None:
        return ExportResult(path, None, READERS[format][0].replace("_cpp", "-cpp-python"))
    if not found.equal and quantize in (None, "f32"):
        raise ExportError(f"{path} does not compute what run {run.name} computes: do not use it")
    return ExportResult(path, found)
