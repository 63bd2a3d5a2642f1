"""Room: a run → a Hugging Face folder: configuration, weights, tokenizer, card.

Knows nothing of training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from myllm.config import GPTConfig, SamplingConfig
from myllm.formats.layouts import Layout, layout_of, to_foreign
from myllm.formats.model_card import model_card
from myllm.formats.place import export_place
from myllm.runs.folder import RunFolder
from myllm.system.atomic import finished_folder
from myllm.system.safetensors_adapter import write_tensors
from myllm.tokenizer import Tokenizer

SHARD_BYTES = 5 * 10**9  # what the Hub asks for
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def export_huggingface(
    run: RunFolder, out: Path, options: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Writes the best model of a run as a folder that `transformers` loads.

    Args:
        run: the run.
        out: the folder to make.
        options: none; all formats are called alike.

    Raises:
        InputError: the layout is one that no other program knows, or `out` cannot be written.
        DiskFullError: there is no room for it.
        CheckpointError: no good checkpoint.
    """
    checkpoint = run.checkpoints.load(run.checkpoints.chosen, with_optimizer=False)
    config, tokenizer = run.config, run.tokenizer
    layout = layout_of(config.model)
    n_bytes = sum(t.numel() * t.element_size() for t in checkpoint.model.values())
    dtype = str(checkpoint.model["token_embedding.weight"].dtype).removeprefix("torch.")
    card = model_card(run.name, config, checkpoint, layout.architecture)
    with export_place(out, n_bytes), finished_folder(out) as folder:
        _write_json(folder / "config.json", _settings(layout, config.model, tokenizer, dtype))
        _write_json(folder / "generation_config.json", _generation(tokenizer))
        write_tokenizer(tokenizer, folder, config.model.context_length)
        (folder / "README.md").write_text(card, encoding="utf-8")
        _write_weights(layout, checkpoint.model, folder)


def _settings(
    layout: Layout, config: GPTConfig, tokenizer: Tokenizer, dtype: str
) -> dict[str, Any]:
    return {
        "architectures": [layout.architecture],
        "model_type": layout.model_type,
        **layout.settings(config),
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_weights,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": _ends(tokenizer),
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def _generation(tokenizer: Tokenizer) -> dict[str, Any]:
    defaults = SamplingConfig()
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": _ends(tokenizer),
        "pad_token_id": tokenizer.eos_token_id,
        "do_sample": True,
        "temperature": defaults.temperature,
        "top_p": defaults.top_p,
        # no max_new_tokens: it would go before the max_length of programs that ask for less
    }


def _ends(tokenizer: Tokenizer) -> int | list[int]:
    """The id that ends a text, or the ids if there are several."""
    ends = tokenizer.end_ids
    return list(ends) if len(ends) > 1 else ends[0]


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


def _write_weights(layout: Layout, weights: dict[str, Tensor], folder: Path) -> None:
    """One file, or above 5 GB several and an index."""
    total, held = 0, 0
    shard: dict[str, Tensor] = {}
    placed: list[tuple[list[str], Path]] = []

    def flush() -> None:
        path = folder / f"shard-{len(placed)}"
        write_tensors(shard, path, metadata={"format": "pt"})
        placed.append((list(shard), path))
        shard.clear()

    for name, tensor in to_foreign(layout, weights):
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


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
