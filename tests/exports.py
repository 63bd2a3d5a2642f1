"""What tests of several formats share: texts, runs of random models, tokenizers of others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from myllm.config import RunConfig
from myllm.model import GPTModel
from myllm.presets import default_config
from myllm.runs.checkpoint import Checkpoint
from myllm.runs.folder import RunFolder
from myllm.runs.weights import model_tensors
from myllm.system.device import host_copies
from myllm.tokenizer import Tokenizer
from myllm.train.state import TrainState

NASTY = [
    "你好，世界", "नमस्ते दुनिया", "👩‍👩‍👧‍👦 family 🏳️‍🌈", "e\u0301 n\u0303 Å", "a\tb\t\t c",
    "     runs   of  ", "line\r\nnext\r\n\r\n", "0123456789 3.14 1,000,000",
    "<|endoftext|> <|im_start|> </s> <unk> <s>", "", "\n\n\n", "don't we'll I'M",
    "\u200bzero\ufeff", "ﬁ ligature ½ ﷺ", "\x07bell",
]  # fmt: skip
TEXT = "the king rides to the old city, and sings of the river: 你好 naïve 12.\n" * 30


def make_run(folder: Path, tokenizer: Tokenizer, preset: str = "modern", **changes) -> RunFolder:
    """A run of a small random model, saved as training would."""
    shape: dict[str, Any] = dict(
        context_length=128, d_model=48, n_layers=3, n_heads=6, d_ff=80, dropout=0.0
    )
    shape = {**shape, "vocab_size": tokenizer.vocab_size, **changes}
    model_config = dataclasses.replace(default_config(preset).model, **shape)
    torch.manual_seed(1)
    model = GPTModel(model_config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    run = RunFolder.create(folder, "run", RunConfig(preset=preset, model=model_config), tokenizer)
    state = {"progress": TrainState(best_loss=2.0, best_bits_per_byte=1.0).to_json(), "scaler": {}}
    weights = host_copies(model_tensors(model))
    run.checkpoints.save(
        Checkpoint(7, weights, {}, state, {"text": "ab"}, run.small_files()), True, 2
    )
    return run


LAYOUTS = [
    ("gpt2", {}), ("gpt2", {"tie_weights": False}), ("modern", {}),
    ("modern", {"n_kv_heads": 2}), ("modern", {"tie_weights": False, "head_dim": 10}),
    ("llama", {}), ("llama", {"n_kv_heads": 3}), ("llama", {"tie_weights": True}),
    ("llama", {"rope_factor": 8.0, "rope_original_context": 32, "rope_theta": 500.0}),
]  # fmt: skip


def odd_models():
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    rotary: dict[str, Any] = dict(
        vocab_size=311, hidden_size=36, intermediate_size=52, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=2, head_dim=10, max_position_embeddings=96,
    )  # fmt: skip
    llama3: dict[str, Any] = dict(
        rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=24,
    )  # fmt: skip
    gpt2 = GPT2Config(vocab_size=311, n_positions=96, n_embd=36, n_layer=3, n_head=6, n_inner=50)
    return {
        "gpt2": GPT2LMHeadModel(gpt2),
        "llama": LlamaForCausalLM(LlamaConfig(**rotary)),
        "llama3": LlamaForCausalLM(LlamaConfig(**rotary, rope_parameters=llama3)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**rotary, tie_word_embeddings=True)),
    }


WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def engine_of(name: str) -> Engine:
    """A tokenizer built as those of published models are: SmolLM2, Llama 3, Qwen3, TinyLlama."""
    if name in SPACES:
        return sentencepiece_engine(name)
    engine = Engine(models.BPE())
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def cut(pattern: str) -> Any:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        return pre_tokenizers.Sequence([split, parts])

    engine.pre_tokenizer = {
        "gpt-2": lambda: whole,
        "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(True), whole]),
        "llama-bpe": lambda: cut(WORDS + r"\p{N}{1,3}" + REST),
        "qwen2": lambda: cut(WORDS + r"\p{N}" + REST),
    }[name]()
    engine.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    engine.train_from_iterator([TEXT], trainer)
    if name == "qwen2":
        engine.normalizer = normalizers.NFC()
    if name == "llama-bpe":
        engine.post_processor = processors.TemplateProcessing(
            "<|begin|> $A", None, [("<|begin|>", 0)]
        )
        content = json.loads(engine.to_str())
        content["model"]["ignore_merges"] = True
        engine = Engine.from_str(json.dumps(content))
    return engine


REPLACE = normalizers.Replace(" ", "▁")


# how spaces are treated: as they are, one put before a text, and the newer way to write the first
SPACES: dict[str, tuple[Any, Any]] = {
    "sentencepiece": (REPLACE, None),
    "tinyllama": (normalizers.Sequence([normalizers.Prepend("▁"), REPLACE]), None),
    "metaspace": (None, pre_tokenizers.Metaspace("▁", "never", split=False)),
}


def sentencepiece_engine(name: str) -> Engine:
    """Pieces, the better the earlier; each is joined from any two that it consists of."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    pieces += list("▁athekingrdsovclbf") + ["<0xZZ>"]
    pieces += ["▁t", "he", "▁a", "ing", "in", "▁the", "ki", "king", "▁king", "nd", "▁and"]
    vocab = {piece: id for id, piece in enumerate(dict.fromkeys(pieces))}
    merges = [
        (piece[:i], piece[i:])
        for piece in pieces[278:]
        for i in range(1, len(piece))
        if piece[:i] in vocab and piece[i:] in vocab
    ]
    engine = Engine(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    normalizer, pre_tokenizer = SPACES[name]
    if normalizer is not None:
        engine.normalizer = normalizer
    if pre_tokenizer is not None:
        engine.pre_tokenizer = pre_tokenizer
    engine.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    engine.add_special_tokens(["<unk>", "<s>", "</s>"])
    return engine


def their_folder(place: Path, tokenizer: Tokenizer, preset: str = "llama", **changes) -> Path:
    """A tiny Hugging Face folder, to be changed into what a test wants."""
    from myllm.formats.hf_export import export_huggingface

    tiny: dict[str, Any] = dict(d_model=16, n_layers=1, n_heads=2, d_ff=24, context_length=32)
    run = make_run(place / "origin", tokenizer, preset, **{**tiny, **changes})
    export_huggingface(run, place / "theirs")
    return place / "theirs"


def edit_json(path: Path, *without: str, **changes: Any) -> None:
    """Changes a JSON file, or makes it."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content = {name: value for name, value in content.items() if name not in without}
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")
