"""Room: a run → a GGUF file, for llama.cpp, Ollama, LM Studio. Knows nothing of training.

The names of tensors and of settings are those of the `gguf` package.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from myllm.config import GPTConfig, SamplingConfig
from myllm.errors import InputError
from myllm.formats.gguf_tokenizer import add_tokenizer
from myllm.formats.layouts import Entry, layout_of
from myllm.formats.place import check_free, export_place
from myllm.model.gpt import RotaryPosition
from myllm.registry import check_choice
from myllm.runs.folder import RunFolder
from myllm.system.atomic import TEMPORARY, discard, disk, write_file
from myllm.tokenizer import Tokenizer

QUANTIZATIONS = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
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


def export_gguf(
    run: RunFolder, out: Path, options: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Writes the best model of a run, and beside it an Ollama `Modelfile`.

    Args:
        run: the run.
        out: the file.
        options: `quantize`, how matrices are stored: one of `QUANTIZATIONS`, by default the first;
            vectors stay float32.

    Raises:
        InputError: llama.cpp does not know the layout or the tokenizer, or `out` cannot be
            written.
        DiskFullError: there is no room for it.
    """
    quantization = options.get("quantize", QUANTIZATIONS[0])
    check_choice("quantize", quantization, QUANTIZATIONS)
    import gguf

    checkpoint = run.checkpoints.load(run.checkpoints.chosen, with_optimizer=False)
    config, tokenizer = run.config.model, run.tokenizer
    tensors = _tensors(config, checkpoint.model, quantization)
    modelfile = out.with_suffix(".Modelfile")
    if modelfile == out:
        raise InputError(f"{out}: so the file for Ollama beside it is called; name another --out")
    check_free(modelfile)
    unfinished = out.with_name(f"{TEMPORARY}{out.name}-{os.getpid()}")
    with export_place(out, sum(tensor.n_bytes for tensor in tensors)):
        try:
            writer = gguf.GGUFWriter(unfinished, layout_of(config).model_type)
            writer.add_name(run.name)
            _add_shape(writer, config)
            add_tokenizer(writer, tokenizer, config.vocab_size)
            _write(writer, tensors)
            disk.sync(unfinished)
            write_file(modelfile, _modelfile(out.name, tokenizer))
            disk.rename(unfinished, out)
        except BaseException:
            discard(unfinished)
            discard(modelfile)
            raise


def _add_shape(writer: Any, config: GPTConfig) -> None:
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


@dataclass(frozen=True)
class _Tensor:
    """One of the file.

    Attributes:
        name: llama.cpp's.
        shape: of the numbers.
        kind: how they are stored, a `gguf.GGMLQuantizationType`.
        numbers: computes them, in float32 or as saved.
    """

    name: str
    shape: tuple[int, ...]
    kind: Any
    numbers: Callable[[], Tensor]

    @property
    def n_bytes(self) -> int:
        """In the file."""
        import gguf

        block_size, block_bytes = gguf.GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // block_size * block_bytes


def _tensors(config: GPTConfig, weights: dict[str, Tensor], quantization: str) -> list[_Tensor]:
    """What the file will hold; the numbers are computed one tensor at a time."""
    layout = layout_of(config)
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    tensors = []
    if config.rope_factor != 1.0:
        if layout.model_type != "llama":
            raise InputError(
                f"rope_factor {config.rope_factor}: llama.cpp stretches positions so in the llama "
                f"layout only, and this is {layout.model_type}"
            )
        factors = RotaryPosition(config).slowing()
        kind = _kind("rope_freqs.weight", tuple(factors.shape), quantization)
        tensors.append(_Tensor("rope_freqs.weight", tuple(factors.shape), kind, lambda: factors))
    for entry in layout.table(shapes):
        upright = Entry(entry.theirs, entry.ours, entry.rows, entry.shape)
        shape = entry.shape[::-1] if entry.transposed else entry.shape
        compute = partial(upright.outward, weights)
        module, _, suffix = entry.ours[0].rpartition(".")
        if module.startswith("blocks."):
            _, i, part = module.split(".", 2)
            fused = "attn_qkv" if len(entry.ours) > 1 else NAMES[part]
            if layout.model_type == "llama" and part in ("attention.W_q", "attention.W_k"):
                compute = partial(_interleaved, compute, config.head_size)
            name = f"blk.{i}.{fused}.{suffix}"
        else:
            name = f"{NAMES[module]}.{suffix}"
        tensors.append(_Tensor(name, shape, _kind(name, shape, quantization), compute))
    return tensors


def _kind(name: str, shape: tuple[int, ...], quantization: str) -> Any:
    """Vectors and positions stay float32, as llama.cpp adds them so. Rows that blocks do not fill
    are kept in f16, as its own program for it does."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    if len(shape) < 2 or name == "position_embd.weight":
        return kinds.F32
    wanted = kinds[quantization.upper()]
    return kinds.F16 if shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0] else wanted


def _interleaved(compute: Callable[[], Tensor], head_size: int) -> Tensor:
    """Rows of queries and keys as llama.cpp turns them: features 2i and 2i + 1 together, where
    we pair i with i + D/2."""
    rows = compute()  # (H · D, C)
    pairs = rows.view(-1, 2, head_size // 2, rows.shape[1])  # (H, 2, D/2, C)
    return pairs.transpose(1, 2).reshape(rows.shape)  # (H · D, C)


def _write(writer: Any, tensors: list[_Tensor]) -> None:
    import gguf

    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor.n_bytes, tensor.kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        numbers = tensor.numbers().float().numpy()
        writer.write_tensor_data(gguf.quants.quantize(numbers, tensor.kind))
    writer.close()


def _modelfile(name: str, tokenizer: Tokenizer) -> str:
    """What `ollama create` reads. A chat template is in the GGUF file, where Ollama finds it."""
    sampling = SamplingConfig()
    ends = [tokenizer.to_engine().id_to_token(id) for id in tokenizer.end_ids]
    stops = "".join(f'PARAMETER stop "{name}"\n' for name in ends)
    template = 'TEMPLATE """{{ .Prompt }}"""\n' if tokenizer.chat_template is None else ""
    return (
        f"FROM ./{name}\n"
        f"{template}"
        f"PARAMETER temperature {sampling.temperature}\n"
        f"PARAMETER top_p {sampling.top_p}\n"
        f"{stops}"
    )
