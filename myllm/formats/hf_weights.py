"""Room: the files of weights of a Hugging Face folder → our weights, checked.

Names and shapes are compared before any weight is read, and no number may be NaN or infinite.
Executes nothing that it reads.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from myllm.config import GPTConfig
from myllm.errors import InputError
from myllm.formats.hf_folder import weight_files
from myllm.formats.layouts import Entry, Layout
from myllm.model.gpt import GPTModel
from myllm.system.device import shapes_only
from myllm.system.safetensors_adapter import read_tensors

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 1 << 24  # of a safetensors file: a hundred thousand tensors have less
DTYPES = ("F32", "BF16", "F16")  # of imported weights
HEAD, EMBEDDING = "lm_head.weight", "token_embedding.weight"

Described = dict[str, tuple[tuple[int, ...], str]]  # shape and dtype of each tensor of a file


def read_weights(
    folder: Path, layout: Layout, config: GPTConfig
) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Our weights by name, and the configuration that they are of.

    A configuration that ties the head to the embedding is wrong where the files have a head with
    other numbers; as in transformers the files are right, and the head is not tied.

    Raises:
        InputError: they cannot be read, are not those that the configuration describes, or hold
            numbers that are not finite.
    """
    try:
        files = {path: _tensors_in(path) for path in weight_files(folder)}
        tied, names = config.tie_weights, {name for found in files.values() for name in found}
        if tied and HEAD in names:
            config = dataclasses.replace(config, tie_weights=False)
        entries = _expected(folder, layout, config, files)
        weights = _read(files, entries)
        if tied and HEAD in weights:
            if torch.equal(weights[HEAD], weights[EMBEDDING]):
                del weights[HEAD]
                config = dataclasses.replace(config, tie_weights=True)
            else:
                log.warning(
                    "%s: config.json says that head and embedding are one, but the weights have "
                    "two; both are taken", folder
                )  # fmt: skip
        return config, weights
    except (SafetensorError, OSError, RuntimeError) as error:
        raise InputError(f"{folder}: the weights cannot be read: {error}") from None


def _read(files: Iterable[Path], entries: dict[str, Entry]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for path in files:
        for name, tensor in read_tensors(path):
            if (entry := entries.get(name)) is None:
                continue
            if n_wrong := int((~tensor.isfinite()).sum()):
                raise InputError(
                    f"{path}: {n_wrong:,} of the {tensor.numel():,} numbers of {name} are NaN or "
                    "infinite, and the model could compute nothing: get the file again, or "
                    "another version of the model"
                )
            weights |= dict(entry.inward(tensor))
    return weights


def _tensors_in(path: Path) -> Described:
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
    files: dict[Path, Described],
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
    with shapes_only():
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
        elif not _is_derived(name):
            raise InputError(f"{path}: {name} does not belong to {layout.architecture}")
    known = {entry.theirs for entry in entries.values()}
    if len(known) < len(entries):
        raise InputError(f"{folder}: a tensor comes twice, with {prefix}. and without")
    lacking = expected.keys() - known
    if lacking:
        raise InputError(f"{folder}: the weights lack {min(lacking)}")
    return entries


def _is_derived(name: str) -> bool:
    """What follows from the rest: masks and frequencies of old files."""
    return name.endswith((".masked_bias", ".inv_freq", ".attn.bias"))
