"""Room: `myllm export` and `myllm import`: runs ↔ other programs' files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from myllm.cli.parse import Common, Trained
from myllm.cli.verb import Verb, generate_command, run_flags, runs_dir_flag
from myllm.config import positional
from myllm.system.importing import quick_imports

if TYPE_CHECKING:
    from myllm.formats.compare import Comparison
    from myllm.run import Run

SHOWN = 40  # characters of what was written for a comparison


@dataclass(frozen=True)
class ExportOptions(Trained):
    """Write a trained model for other programs: Hugging Face, GGUF, ONNX."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "myllm export",
        "myllm export --to gguf --quantize q8_0",
        "myllm export mine --to hf --out novel-hf",
    )

    run: str | None = positional(None)  # the run's name or folder (None: the newest)
    to: str = "hf"  # the format to write
    out: str | None = None  # the folder or file to make (None: named after the run)
    quantize: str | None = None  # of gguf: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0
    verify: bool = True  # read it back with the independent program, where that is installed


def export(options: ExportOptions) -> None:
    """Writes the model, tells what its reader made of it."""
    with quick_imports():
        from myllm import api
    from myllm.system.terminal import say

    run = api.load(options.run, options.runs_dir, checkpoint=options.checkpoint)
    made = run.export(options.to, options.out, options.quantize, options.verify)
    say(f"{made.path}: written")
    if made.compared is not None:
        _print_comparison(run, made.compared)
    elif made.missing is not None:
        package = made.missing
        say(f"not read back and compared: that takes {package} (pip install {package})")


def _print_comparison(run: Run, found: Comparison) -> None:
    from myllm.system.terminal import say

    say(
        f"read back with {found.reader}: normalised logits differ by {found.difference:.1e} at "
        f"most (the largest is {found.scale:.1f}); {len(found.ours)} tokens written greedily are "
        + ("the same" if found.ours == found.theirs else "not the same")
    )
    width = 2 + max(len("myllm"), len(found.reader))
    for name, ids in (("myllm", found.ours), (found.reader, found.theirs)):
        text = json.dumps(run.folder.tokenizer.decode(ids[:20]), ensure_ascii=False)
        text = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
        say(f"{name:{width}}{text}", indent=width)


@dataclass(frozen=True)
class ImportOptions(Common):
    """Make a run from a local Hugging Face folder (GPT-2, Llama, Qwen3), to use or train on."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "myllm import novel-hf",
        "myllm import novel-hf --run base",
        "myllm import novel-hf --run base --runs-dir old",
    )

    path: str = positional("")  # the folder: config.json, tokenizer.json, safetensors
    run: str | None = None  # the run's name (None: that of the folder)


def import_model(options: ImportOptions) -> None:
    """Makes a run, tells what can be done with it."""
    with quick_imports():
        from myllm import api
    from myllm.errors import InputError
    from myllm.system.shell import quoted
    from myllm.system.terminal import say

    if not options.path:
        raise InputError("no folder is named: myllm import FOLDER")
    run = api.import_model(options.path, options.run, options.runs_dir)
    flags = run_flags(run.name, options.runs_dir)
    say(
        f"{run.path}: imported; try",
        f"  {generate_command(None, flags)}",
        f"  myllm write {flags}",
        f"  myllm train FILE --from {quoted(run.name)}{runs_dir_flag(options.runs_dir)}",
    )


VERB = Verb(ExportOptions, export)
IMPORT = Verb(ImportOptions, import_model)
