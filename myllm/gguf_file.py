"""Room: a run → a GGUF file, for llama.cpp, Ollama, LM Studio. Knows nothing of training.

The names of tensors and of settings are those of the `gguf` package.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from myllm.checkpoint import RunFolder
from myllm.config import GPTConfig, SamplingConfig
from myllm.errors import InputError, lookup
from myllm.families import Entry, Family, family_of
from myllm.storage import TEMPORARY, discard, disk, write_errors
from myllm.tokenizer import BPETokenizer, CharTokenizer, Tokenizer

QUANTIZATIONS = ("f32", "f16", "bf16", "q8_0")
NAMES = {
    "token_embedding": "token_embd",
    "position_embedding": "position_embd",
    "ln_final": "output_norm",
    "lm_head": "output",
    "ln1": "attn_norm",
    "ln2": "ffn_norm",
    "attention.W_q": "attn_q",
    "attention.W_k": "attn_k",
    "attention.W_v": "attn_v",
    "attention.W_o": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.linear1": "ffn_up",
    "feed_forward.linear2": "ffn_down",
}
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space


def export_gguf(run: RunFolder, out: Path, quantization: str) -> None:
    """Writes the best model of a run, and beside it an Ollama `Modelfile`.

    Args:
        run: the run.
        out: the file.
        quantization: of the matrices; vectors stay float32.

    Raises:
        InputError: llama.cpp does not know the layout or the tokenizer, or the `gguf` package is
            missing.
    """
    lookup("quantize", quantization, QUANTIZATIONS)
    try:
        import gguf
    except ImportError:
        raise InputError("--to gguf needs the package of that name: pip install gguf") from None
    if out.exists():
        raise InputError(f"{out} exists: name another --out, or remove it")
    checkpoint = run.load("best", with_optimizer=False)
    config, tokenizer = run.config.model, run.tokenizer
    family = family_of(config)
    if quantization == "q8_0":
        _check_blocks(config)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f"{TEMPORARY}{out.name}-{os.getpid()}")
    n_bytes = sum(4 * tensor.numel() for tensor in checkpoint.model.values())
    with write_errors("export", out.parent, n_bytes):
        try:
            writer = gguf.GGUFWriter(unfinished, family.model_type)
            writer.add_name(run.name)
            _add_shape(writer, config)
            _add_tokenizer(writer, tokenizer)
            for name, tensor in _tensors(family, config, checkpoint.model):
                _add_tensor(writer, name, tensor, quantization)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            disk.sync(unfinished)
            disk.rename(unfinished, out)
        finally:
            if unfinished.exists():
                discard(unfinished)
        modelfile = out.with_suffix(".Modelfile")
        modelfile.write_text(_modelfile(out.name, tokenizer), encoding="utf-8")


def _check_blocks(config: GPTConfig) -> None:
    for what, size in (("d_model", config.d_model), ("d_ff", config.ff_size)):
        if size % 32:
            raise InputError(
                f"{what} {size} is no multiple of 32, of which q8_0 makes a block: --quantize f16"
            )


def _add_shape(writer: Any, config: GPTConfig) -> None:
    import gguf

    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.ff_size)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.position == "learned":
        writer.add_layer_norm_eps(config.norm_eps)
        return
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    if config.rope_factor != 1.0:
        from myllm.model import RotaryPosition

        factors = RotaryPosition(config).slowing()
        writer.add_tensor(gguf.MODEL_TENSOR.ROPE_FREQS.name.lower() + ".weight", factors.numpy())


def _add_tokenizer(writer: Any, tokenizer: Tokenizer) -> None:
    import gguf

    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    ids = range(tokenizer.vocab_size)
    end = tokenizer.end_of_text_id
    types = [control if id == end else normal for id in ids]
    if isinstance(tokenizer, BPETokenizer):
        names = {id: name for name, id in tokenizer.vocab.items()}
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([names[id] for id in ids])
        writer.add_token_types(types)
        writer.add_token_merges([" ".join(pair) for pair in tokenizer.merges])
    elif isinstance(tokenizer, CharTokenizer):
        if SPACE in tokenizer.char_to_id:
            raise InputError(f"the text has the character {SPACE}, which GGUF writes for a space")
        # a model of single pieces, each as likely as the next: the text falls into characters
        names = {0: "<unk>", end: tokenizer.end_of_text}
        names |= {id: SPACE if ch == " " else ch for id, ch in tokenizer.id_to_char.items()}
        types[0] = gguf.TokenType.UNKNOWN
        writer.add_tokenizer_model("t5")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([names[id] for id in ids])
        writer.add_token_scores([0.0 if id == 0 else -1.0 for id in ids])
        writer.add_token_types(types)
        writer.add_unk_token_id(0)
        writer.add_add_space_prefix(False)
        writer.add_remove_extra_whitespaces(False)
    else:
        raise InputError(
            "llama.cpp has to know how an imported tokenizer cuts texts, which is not written in "
            "its file: convert the original with llama.cpp's own script"
        )
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def _tensors(family: Family, config: GPTConfig, weights: dict[str, Tensor]) -> Any:
    """Their tensors by their names, in float32 or as saved."""
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    for entry in family.table(shapes):
        upright = Entry(entry.theirs, entry.ours, entry.rows, entry.shape)
        tensor = upright.outward(weights)
        module, _, kind = entry.ours[0].rpartition(".")
        if module.startswith("blocks."):
            _, i, part = module.split(".", 2)
            fused = "attn_qkv" if len(entry.ours) > 1 else NAMES[part]
            if family.model_type == "llama" and part in ("attention.W_q", "attention.W_k"):
                tensor = _interleaved(tensor, config.head_size)
            yield f"blk.{i}.{fused}.{kind}", tensor
        else:
            yield f"{NAMES[module]}.{kind}", tensor


def _interleaved(tensor: Tensor, head_size: int) -> Tensor:
    """Rows of queries and keys as llama.cpp turns them: features 2i and 2i + 1 together, where
    we pair i with i + D/2."""
    rows = tensor.unflatten(0, (-1, 2, head_size // 2))  # (H, 2, D/2, C)
    return rows.transpose(1, 2).flatten(0, 2)  # (H · D, C)


def _add_tensor(writer: Any, name: str, tensor: Tensor, quantization: str) -> None:
    import gguf

    kind = gguf.GGMLQuantizationType
    if tensor.ndim < 2 or quantization == "f32" or name == "position_embd.weight":
        writer.add_tensor(name, tensor.float().numpy())
    elif quantization == "f16":
        writer.add_tensor(name, tensor.to(torch.float16).numpy())
    else:
        wanted = kind.BF16 if quantization == "bf16" else kind.Q8_0
        data = gguf.quants.quantize(tensor.float().numpy(), wanted)
        writer.add_tensor(name, data, raw_dtype=wanted)


def _modelfile(name: str, tokenizer: Tokenizer) -> str:
    """What `ollama create` reads."""
    sampling = SamplingConfig()
    return (
        f"FROM ./{name}\n"
        'TEMPLATE """{{ .Prompt }}"""\n'
        f"PARAMETER temperature {sampling.temperature}\n"
        f"PARAMETER top_p {sampling.top_p}\n"
        f'PARAMETER stop "{tokenizer.end_of_text}"\n'
    )
