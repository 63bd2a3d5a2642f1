"""Room: a format by name → how it is written, and read back by the program that it is for.

To add a format: a `Format` here, and its line in `kinds.FORMATS`.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from myllm.errors import ConfigError
from myllm.formats.compare import Comparison, compare
from myllm.formats.gguf import QUANTIZATIONS, export_gguf
from myllm.formats.hf_export import export_huggingface
from myllm.formats.onnx import export_onnx
from myllm.formats.place import check_free
from myllm.formats.readers import (
    ExportError,
    Opener,
    with_llama_cpp,
    with_onnxruntime,
    with_transformers,
)
from myllm.kinds import FORMATS
from myllm.registry import check_choice
from myllm.runs.folder import RunFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """One that other programs read.

    Attributes:
        suffix: of a name that is made from the run's.
        write: run, path, options → nothing; the path is then whole or not there.
        reader_package: what `pip install` knows the reader as, and Python imports.
        reader: opens what was written.
        options: the names of its options and what each may be, the one that leaves all numbers
            as they are first: it is the default.
        least_context: the shortest context of a model that the reader opens.
    """

    suffix: str
    write: Callable[[RunFolder, Path, Mapping[str, str]], None]
    reader_package: str
    reader: Opener
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    least_context: int = 1


HUGGING_FACE = Format("-hf", export_huggingface, "transformers", with_transformers)
GGUF = Format(".gguf", export_gguf, "xllamacpp", with_llama_cpp, {"quantize": QUANTIZATIONS}, 2)
ONNX = Format("-onnx", export_onnx, "onnxruntime", with_onnxruntime)


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        path: where.
        compared: how the program it is for reads it; None if it was not asked.
        missing: the package that reads it back, if that is not installed.
    """

    path: Path
    compared: Comparison | None = None
    missing: str | None = None


def export(
    run: RunFolder,
    to: str,
    out: Path | None = None,
    options: Mapping[str, str | None] | None = None,
    verify: bool = True,
) -> ExportResult:
    """Writes the best model of a run for other programs, and has one of them read it back.

    Args:
        run: the run.
        to: a name in `FORMATS`.
        out: the file or folder to make; None: named after the run, in the current folder.
        options: of the format, by name; None is its default.
        verify: whether it is read back, where the program for it is installed.

    Raises:
        ConfigError: no such format, or it has no such option.
        InputError: `out` exists or cannot be written, or the format cannot express the model.
        DiskFullError: there is no room for it.
        ExportError: what was written computes something else, though its numbers are exact.
    """
    format, given = FORMATS[to], {n: v for n, v in (options or {}).items() if v is not None}
    for name, value in given.items():
        if name not in format.options:
            having = ", ".join(n for n, other in FORMATS.items() if name in other.options)
            raise ConfigError(f"--{name} {value} is an option of --to {having}, not of --to {to}")
        check_choice(name, value, format.options[name])
    out = out or Path(f"{run.name}{format.suffix}")
    check_free(out)
    defaults = {name: choices[0] for name, choices in format.options.items()}
    format.write(run, out, {**defaults, **given})
    if verify and run.config.model.context_length < format.least_context:
        log.warning("not read back: its reader needs a context of %d", format.least_context)
        verify = False
    if not verify:
        return ExportResult(out)
    found = read_back(run, to, out)
    if found is None:
        return ExportResult(out, missing=format.reader_package)
    if not found.equal and {**defaults, **given} == defaults:
        same = sum(ours == theirs for ours, theirs in zip(found.ours, found.theirs))
        raise ExportError(
            f"{out} does not compute what run {run.name} computes: normalised logits differ by "
            f"{found.difference:.1e} (the largest is {found.scale:.1f}), {same} of "
            f"{len(found.ours)} tokens written greedily are the same; do not use it"
        )
    return ExportResult(out, found)


def read_back(run: RunFolder, to: str, path: Path) -> Comparison | None:
    """Compares what was written with the run; None if the reader's package is not installed.

    Raises:
        ExportError: it cannot be read, or its tokenizer gives other ids.
    """
    format = FORMATS[to]
    if importlib.util.find_spec(format.reader_package) is None:
        return None
    return compare(run, path, format.reader)
