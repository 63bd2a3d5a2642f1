"""Room: a Hugging Face folder → a run.

Executes nothing that it reads: no pickle, no code. Knows nothing of training.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from myllm.checks import run_name
from myllm.config import GPTConfig, RunConfig, with_values
from myllm.errors import InputError
from myllm.formats.hf_folder import CONFIG, find_folder, model_name, read_json
from myllm.formats.hf_tokenizer import read_tokenizer
from myllm.formats.hf_weights import read_weights
from myllm.formats.layouts import LAYOUTS, Layout
from myllm.runs.checkpoint import Checkpoint
from myllm.runs.folder import RunFolder
from myllm.system.atomic import discard
from myllm.train.state import TrainState


def import_huggingface(path: Path, runs_dir: Path, name: str | None = None) -> RunFolder:
    """Makes a run from a local Hugging Face folder of a known layout.

    Args:
        path: the folder, with `config.json`, safetensors and a tokenizer; a folder with that one
            folder in it; a model's place in the cache of the Hub; or a file of the model.
        runs_dir: the folder of runs.
        name: of the new run; by default the model's.

    Raises:
        InputError: something is missing, contradicts, or is not known here.
    """
    folder = find_folder(path)
    model = model_name(path, folder)
    settings = read_json(folder / CONFIG)
    layout = LAYOUTS.get(str(settings.get("model_type")))
    if layout is None:
        raise InputError(
            f"{folder}: model_type {settings.get('model_type')!r} is not known here: "
            f"{', '.join(LAYOUTS)} are"
        )
    config = _model_config(folder, layout, settings)
    tokenizer = read_tokenizer(folder, settings)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} ids, its model "
            f"{config.vocab_size}"
        )
    config, weights = read_weights(folder, layout, config)
    run = RunFolder.create(
        runs_dir, name or run_name(model), RunConfig(preset="modern", model=config), tokenizer
    )
    state = {"progress": TrainState().to_json(), "scaler": {}}
    metadata = {"tokenizer": tokenizer.content_hash, "imported_from": model}
    checkpoint = Checkpoint(0, weights, {}, state, metadata, run.small_files())
    try:
        run.checkpoints.save(checkpoint, is_best=True, keep=2)
    except BaseException:
        discard(run.path)
        raise
    return run


def _model_config(folder: Path, layout: Layout, settings: dict[str, Any]) -> GPTConfig:
    try:
        _check_kind(layout, settings)
        values = {
            **layout.shape,
            **layout.read(settings),
            "vocab_size": settings["vocab_size"],
            "dropout": 0.0,
        }
        return with_values(RunConfig(), values).model.validate()
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{folder / CONFIG}: {what}") from None


def _check_kind(layout: Layout, settings: dict[str, Any]) -> None:
    """Raises `InputError` if it is no language model with plain numbers."""
    heads = settings.get("architectures", [])
    for name in heads if isinstance(heads, list) else [heads]:
        if re.search(r"For(?!CausalLM)[A-Z]|DoubleHeads", str(name)):
            raise InputError(
                f"its architecture is {name}, which does not write: {layout.architecture} is "
                "what is known here"
            )
    if found := settings.get("quantization_config"):
        method = found.get("quant_method") if isinstance(found, dict) else found
        raise InputError(
            f"its weights are quantized ({method}): get the version in bfloat16 or float32"
        )
