"""Room: a run ↔ a Hugging Face folder: configuration, weights, tokenizer, card.

Knows nothing of training. Executes nothing that it reads: no pickle, no code.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from myllm import __version__
from myllm.atomic import Damaged, finished_folder, read_file, write_errors
from myllm.checkpoint import Checkpoint
from myllm.config import GPTConfig, RunConfig, SamplingConfig, with_values
from myllm.errors import InputError
from myllm.families import FAMILIES, Entry, Family, family_of, to_foreign
from myllm.imported_tokenizer import ImportedTokenizer
from myllm.model import GPTModel
from myllm.run_folder import RunFolder
from myllm.safetensors_adapter import read_tensors, write_tensors
from myllm.state import TrainState
from myllm.tokenizer import Tokenizer

SHARD_BYTES = 5 * 10**9  # what the Hub asks for
MOST_HEADER_BYTES = 1 << 24  # of a safetensors file: a hundred thousand tensors have less
DTYPES = ("F32", "BF16", "F16")  # of imported weights
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def export_huggingface(run: RunFolder, out: Path) -> None:
    """Writes the best model of a run as a folder that `transformers` loads.

    Raises:
        InputError: the layout is one that no other program knows, or `out` cannot be written.
        CheckpointError: no good checkpoint.
    """
    checkpoint = run.checkpoints.load("best", with_optimizer=False)
    config, tokenizer = run.config, run.tokenizer
    family = family_of(config.model)
    n_bytes = sum(t.numel() * t.element_size() for t in checkpoint.model.values())
    dtype = str(checkpoint.model["token_embedding.weight"].dtype).removeprefix("torch.")
    card = _card(run.name, config, checkpoint, family)
    out.parent.mkdir(parents=True, exist_ok=True)
    with write_errors("export", out.parent, n_bytes), finished_folder(out) as folder:
        _write_json(folder / "config.json", _settings(family, config.model, tokenizer, dtype))
        _write_json(folder / "generation_config.json", _generation(tokenizer))
        write_tokenizer(tokenizer, folder, config.model.context_length)
        (folder / "README.md").write_text(card, encoding="utf-8")
        _write_weights(family, checkpoint.model, folder)
        for path in folder.glob("*.safetensors"):  # its library lets only the owner read them
            shutil.copymode(folder / "config.json", path)


def _settings(
    family: Family, config: GPTConfig, tokenizer: Tokenizer, dtype: str
) -> dict[str, Any]:
    end = tokenizer.eos_token_id
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **family.settings(config),
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_weights,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": end,
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def _generation(tokenizer: Tokenizer) -> dict[str, Any]:
    defaults, end = SamplingConfig(), tokenizer.eos_token_id
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": end,
        "pad_token_id": end,
        "do_sample": True,
        "temperature": defaults.temperature,
        "top_p": defaults.top_p,
        # no max_new_tokens: it would go before the max_length of programs that ask for less
    }


def write_tokenizer(tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """Writes `tokenizer.json` and what `transformers` reads beside it."""
    (folder / "tokenizer.json").write_text(tokenizer.to_engine().to_str(), encoding="utf-8")
    end = tokenizer.eos_token
    begin = tokenizer.to_engine().id_to_token(tokenizer.bos_token_id)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin,
        "eos_token": end,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        # a text that contains the name of a special token is text, as it is here; but a chat
        # template writes such names
        "split_special_tokens": tokenizer.chat_template is None,
    }
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(folder / "special_tokens_map.json", {"bos_token": begin, "eos_token": end})


def _write_weights(family: Family, weights: dict[str, Tensor], folder: Path) -> None:
    """One file, or above 5 GB several and an index."""
    total, held = 0, 0
    shard: dict[str, Tensor] = {}
    placed: list[tuple[list[str], Path]] = []

    def flush() -> None:
        path = folder / f"shard-{len(placed)}"
        write_tensors(shard, path, metadata={"format": "pt"})
        placed.append((list(shard), path))
        shard.clear()

    for name, tensor in to_foreign(family, weights):
        n_bytes = tensor.numel() * tensor.element_size()
        if shard and held + n_bytes > SHARD_BYTES:
            flush()
            held = 0
        shard[name] = tensor
        held, total = held + n_bytes, total + n_bytes
    flush()
    if len(placed) == 1:
        placed[0][1].rename(folder / WEIGHTS)
        return
    where: dict[str, str] = {}
    for i, (names, path) in enumerate(placed, 1):
        final = f"model-{i:05d}-of-{len(placed):05d}.safetensors"
        path.rename(folder / final)
        where |= dict.fromkeys(names, final)
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _card(name: str, config: RunConfig, checkpoint: Checkpoint, family: Family) -> str:
    """The README of the model: what is known of it."""
    progress, shape = checkpoint.state.get("progress", {}), config.model
    n = sum(t.numel() for t in checkpoint.model.values())
    loss, bits = progress.get("best_loss"), progress.get("best_bits_per_byte")
    measured = (
        f"{loss:.4f} nats per token, {bits:.4f} bits per byte"
        if loss is not None and bits is not None
        else "not measured"
    )
    came_from = checkpoint.metadata.get("imported_from")
    if came_from is not None:
        origin = f"imported from {came_from}"
    elif config.from_run:
        origin = f"trained further from {Path(config.from_run).name}"
    else:
        origin = "trained from nothing"
    facts = {
        "shape": f"{shape.n_layers} layers, {shape.d_model} wide, {shape.n_heads} heads, context "
        f"{shape.context_length}",
        "vocabulary": f"{shape.vocab_size:,}",
    }
    if came_from is None:
        train = config.train
        facts |= {
            "text": f"SHA-256 {checkpoint.metadata.get('text', 'not known')}",
            "steps": f"{checkpoint.step:,}",
            "validation loss": measured,
            "trained with": f"{train.optimizer}, {train.schedule}, learning rate "
            f"{train.learning_rate:g}",
        }
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "license: other  # fill in",
        "---",
        "",
        f"# {name}",
        "",
        f"A language model of {n:,} parameters ({family.architecture}), {origin} with MyLLM "
        f"{__version__}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {value} |" for what, value in facts.items()),
        "",
        "It goes on with a text. What it writes need not be true. Licence and origin of the "
        "text: fill in.",
        "",
    ]
    return "\n".join(lines)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


# ------------------------------------------------------------------------------ import


def import_huggingface(folder: Path, out: Path, name: str) -> RunFolder:
    """Makes a run from a local Hugging Face folder of a known layout.

    Names and shapes are checked before any weight is read.

    Args:
        folder: with `config.json`, `tokenizer.json` and safetensors.
        out: the folder of runs.
        name: of the new run.

    Raises:
        InputError: something is missing, contradicts, or is not known here.
    """
    settings = _read_json(folder / "config.json")
    family = FAMILIES.get(str(settings.get("model_type")))
    if family is None:
        raise InputError(
            f"{folder}: model_type {settings.get('model_type')!r} is not known here: "
            f"{', '.join(FAMILIES)} are"
        )
    model_config = _model_config(folder, family, settings)
    tokenizer = ImportedTokenizer.read(folder / "tokenizer.json", *_end_and_template(folder))
    if tokenizer.vocab_size > model_config.vocab_size:
        raise InputError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} ids, its model "
            f"{model_config.vocab_size}"
        )
    weights = _read_weights(folder, family, model_config)
    run = RunFolder.create(out, name, RunConfig(preset="modern", model=model_config), tokenizer)
    state = {"progress": TrainState().to_json(), "scaler": {}}
    facts = {"tokenizer": tokenizer.content_hash, "imported_from": folder.name}
    run.checkpoints.save(
        Checkpoint(0, weights, {}, state, facts, run.small_files()), is_best=True, keep=2
    )
    return run


def _model_config(folder: Path, family: Family, settings: dict[str, Any]) -> GPTConfig:
    try:
        values = {
            **family.shape,
            **family.read(settings),
            "vocab_size": settings["vocab_size"],
            # where a file does not say: what transformers takes for the layout
            "tie_weights": settings.get("tie_word_embeddings", family.model_type == "gpt2"),
            "dropout": 0.0,
        }
        return with_values(RunConfig(), values).model.validate()
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{folder / 'config.json'}: {what}") from None


def _read_weights(folder: Path, family: Family, config: GPTConfig) -> dict[str, Tensor]:
    """Our weights by name. All names and shapes are compared before anything is read."""
    try:
        files = {path: _tensors_in(path) for path in _weight_files(folder)}
        entries = _expected(folder, family, config, files)
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
        if size > MOST_HEADER_BYTES:
            raise InputError(f"{path}: its table of contents has {size:,} bytes: no weights")
        text = file.read(size)
    try:
        json.loads(text, object_pairs_hook=once)
    except InputError:
        raise
    except (ValueError, RecursionError):
        raise InputError(f"{path}: the weights have no table of contents") from None


def _expected(
    folder: Path,
    family: Family,
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
    prefix, _, block = family.block.split("{i}")[0].partition(".")  # some files lack the prefix
    pattern = re.compile(rf"(?:{prefix}\.)?{re.escape(block)}(\d+)\.")
    layers = {match[1] for name in found if (match := pattern.match(name))}
    if len(layers) != config.n_layers:
        raise InputError(
            f"{folder}: the weights have {len(layers)} layers, config.json says {config.n_layers}"
        )
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in GPTModel(config).named_parameters()}
    expected = {entry.theirs: entry for entry in family.table(shapes)}
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
            raise InputError(f"{path}: {name} does not belong to {family.architecture}")
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
        raise InputError(f"{path} is no valid JSON") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is no JSON object")
    return content
