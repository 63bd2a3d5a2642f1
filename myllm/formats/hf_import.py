"""Room: a Hugging Face folder → a run.

Executes nothing that it reads: no pickle, no code. Knows nothing of training.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from myllm.config import GPTConfig, RunConfig, with_values
from myllm.errors import InputError
from myllm.formats.hf_export import INDEX, WEIGHTS
from myllm.formats.layouts import LAYOUTS, Entry, Layout
from myllm.model.gpt import GPTModel
from myllm.runs.checkpoint import Checkpoint
from myllm.runs.folder import RunFolder
from myllm.system.atomic import Damaged, discard, read_file
from myllm.system.safetensors_adapter import read_tensors
from myllm.tokenizer.imported import ImportedTokenizer
from myllm.train.state import TrainState

MAX_HEADER_BYTES = 1 << 24  # of a safetensors file: a hundred thousand tensors have less
DTYPES = ("F32", "BF16", "F16")  # of imported weights


def import_huggingface(folder: Path, runs_dir: Path, name: str) -> RunFolder:
    """Makes a run from a local Hugging Face folder of a known layout.

    Names and shapes are checked before any weight is read.

    Args:
        folder: with `config.json`, `tokenizer.json` and safetensors.
        runs_dir: the folder of runs.
        name: of the new run.

    Raises:
        InputError: something is missing, contradicts, or is not known here.
    """
    settings = _read_json(folder / "config.json")
    layout = LAYOUTS.get(str(settings.get("model_type")))
    if layout is None:
        raise InputError(
            f"{folder}: model_type {settings.get('model_type')!r} is not known here: "
            f"{', '.join(LAYOUTS)} are"
        )
    model_config = _model_config(folder, layout, settings)
    tokenizer = ImportedTokenizer.read(folder / "tokenizer.json", *_end_and_template(folder))
    if tokenizer.vocab_size > model_config.vocab_size:
        raise InputError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} ids, its model "
            f"{model_config.vocab_size}"
        )
    weights = _read_weights(folder, layout, model_config)
    run = RunFolder.create(
        runs_dir, name, RunConfig(preset="modern", model=model_config), tokenizer
    )
    state = {"progress": TrainState().to_json(), "scaler": {}}
    metadata = {"tokenizer": tokenizer.content_hash, "imported_from": folder.name}
    checkpoint = Checkpoint(0, weights, {}, state, metadata, run.small_files())
    try:
        run.checkpoints.save(checkpoint, is_best=True, keep=2)
    except BaseException:
        discard(run.path)
        raise
    return run


def _model_config(folder: Path, layout: Layout, settings: dict[str, Any]) -> GPTConfig:
    try:
        values = {
            **layout.shape,
            **layout.read(settings),
            "vocab_size": settings["vocab_size"],
            # where a file does not say: what transformers takes for the layout
            "tie_weights": settings.get("tie_word_embeddings", layout.model_type == "gpt2"),
            "dropout": 0.0,
        }
        return with_values(RunConfig(), values).model.validate()
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{folder / 'config.json'}: {what}") from None


def _read_weights(folder: Path, layout: Layout, config: GPTConfig) -> dict[str, Tensor]:
    """Our weights by name. All names and shapes are compared before anything is read."""
    try:
        files = {path: _tensors_in(path) for path in _weight_files(folder)}
        entries = _expected(folder, layout, config, files)
        weights: dict[str, Tensor] = {}
        for path in files:
            for name, tensor in read_tensors(path):
                if entry := entries.get(name):
                    weights |= dict(entry.inward(tensor))
        return weights
    except (SafetensorError, OSError, RuntimeError) as error:
        raise InputError(f"{folder}: the weights cannot be read: {error}") from None


def _tensors_in(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each tensor of a file."""
    _check_header(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_slice(name) for name in file.keys()}
        return {name: (tuple(t.get_shape()), t.get_dtype()) for name, t in tensors.items()}


def _check_header(path: Path) -> None:
    """What the library lets through: a table of contents of 100 MB, names that come twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise InputError(f"{path}: a name comes twice in its table of contents")
        return dict(pairs)

    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER_BYTES:
            raise InputError(
                f"{path}: its table of contents has {size:,} bytes: not a file of weights"
            )
        text = file.read(size)
    try:
        json.loads(text, object_pairs_hook=once)
    except InputError:
        raise
    except (ValueError, RecursionError):
        raise InputError(f"{path}: the weights have no table of contents") from None


def _expected(
    folder: Path,
    layout: Layout,
    config: GPTConfig,
    files: dict[Path, dict[str, tuple[tuple[int, ...], str]]],
) -> dict[str, Entry]:
    """What the tensors of the files are to us, by their names.

    Raises:
        InputError: they are not those that the configuration describes.
    """
    found = {
        name: (path, *what) for path, tensors in files.items() for name, what in tensors.items()
    }
    if len(found) < sum(map(len, files.values())):
        raise InputError(f"{folder}: a name comes twice in its files of weights")
    prefix, _, block = layout.block.split("{i}")[0].partition(".")  # some files lack the prefix
    pattern = re.compile(rf"(?:{prefix}\.)?{re.escape(block)}(\d+)\.")
    layers = {match[1] for name in found if (match := pattern.match(name))}
    if len(layers) != config.n_layers:
        raise InputError(
            f"{folder}: the weights have {len(layers)} layers, config.json says {config.n_layers}"
        )
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in GPTModel(config).named_parameters()}
    expected = {entry.theirs: entry for entry in layout.table(shapes)}
    entries: dict[str, Entry] = {}
    for name, (path, size, dtype) in found.items():
        entry = expected.get(name) or expected.get(f"{prefix}.{name}")
        if entry is not None and entry.shape != size:
            raise InputError(
                f"{path}: {name} is {size}, by config.json it should be {entry.shape}"
            )
        if entry is not None and dtype not in DTYPES:
            raise InputError(
                f"{path}: {name} is stored as {dtype}: {', '.join(DTYPES)} are what is known here"
            )
        if entry is not None:
            entries[name] = entry
        elif not _is_derived(name, config):
            raise InputError(f"{path}: {name} does not belong to {layout.architecture}")
    lacking = {e.theirs for e in expected.values()} - {e.theirs for e in entries.values()}
    if lacking:
        raise InputError(f"{folder}: the weights lack {min(lacking)}")
    return entries


def _is_derived(name: str, config: GPTConfig) -> bool:
    """What follows from the rest: tied heads, masks and frequencies of old files."""
    tail = name.rsplit(".", 1)[-1]
    tied = config.tie_weights and name == "lm_head.weight"
    return tied or tail in ("masked_bias", "inv_freq") or name.endswith(".attn.bias")


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        where = _read_json(folder / INDEX).get("weight_map")
        names = sorted(set(map(str, where.values()))) if isinstance(where, dict) else []
        if not names or not all(re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
            raise InputError(f"{folder / INDEX} names files outside of its folder, or none")
        return [folder / name for name in names]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise InputError(
            f"{folder} has its weights as pickles, which can run any code when they are read: get "
            "the safetensors of this model, or convert it with its own program's save_pretrained"
        )
    raise InputError(f"{folder} has no {WEIGHTS}")


def _end_and_template(folder: Path) -> tuple[str | None, str | None]:
    """The token that ends a text, and the chat template, by what lies beside the tokenizer."""
    path = folder / "tokenizer_config.json"
    settings = _read_json(path) if path.is_file() else {}
    token = settings.get("eos_token")
    if isinstance(token, dict):
        token = token.get("content")
    template = settings.get("chat_template")
    path = folder / "chat_template.jinja"
    if path.is_file():
        template = _read(path)
    return (
        token if isinstance(token, str) else None,
        template if isinstance(template, str) and template else None,
    )


def _read(path: Path) -> str:
    try:
        return read_file(path)
    except Damaged as error:
        raise InputError(str(error)) from None


def _read_json(path: Path) -> dict[str, Any]:
    text = _read(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not valid JSON") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object")
    return content
