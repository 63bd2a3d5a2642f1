"""Room: our model ↔ the layouts that other programs know: settings, names, shapes of weights.

Knows nothing of files. One table per layout is read in both directions.

To add a layout: a `Layout` in `LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from myllm.config import GPTConfig
from myllm.errors import InputError
from myllm.kinds import ATTENTIONS


@dataclass(frozen=True)
class Entry:
    """One of their tensors, and those of ours that it holds.

    Attributes:
        theirs: its name.
        ours: our names; several are stacked along the rows.
        rows: the rows of each of ours.
        shape: of theirs.
        transposed: whether theirs is stored with rows and columns exchanged.
    """

    theirs: str
    ours: tuple[str, ...]
    rows: tuple[int, ...]
    shape: tuple[int, ...]
    transposed: bool = False

    def outward(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Their tensor, from our weights."""
        parts = [weights[name] for name in self.ours]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole.T.contiguous() if self.transposed and whole.ndim == 2 else whole

    def inward(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Our weights by name, from their tensor."""
        whole = tensor.T if self.transposed and tensor.ndim == 2 else tensor
        for name, part in zip(self.ours, torch.split_with_sizes(whole, self.rows)):
            yield name, part.contiguous()


@dataclass(frozen=True)
class Layout:
    """A layout that other programs know.

    Attributes:
        model_type: its name in a Hugging Face `config.json`.
        architecture: the class of `transformers`.
        shape: what the configuration must have to be of this layout.
        settings: configuration → the settings of `config.json`.
        read: the settings of `config.json` → values of `GPTConfig`.
        names: our module → theirs, for modules that a model has once.
        block: their name of block `{i}`.
        block_names: our module in a block → theirs; several of ours share one.
        transposed: whether linear layers in blocks are stored with rows and columns exchanged.
    """

    model_type: str
    architecture: str
    shape: dict[str, Any]
    settings: Callable[[GPTConfig], dict[str, Any]]
    read: Callable[[dict[str, Any]], dict[str, Any]]
    names: dict[str, str]
    block: str
    block_names: dict[str, str]
    transposed: bool = False

    def table(self, shapes: Mapping[str, torch.Size]) -> list[Entry]:
        """How the weights of a model correspond to theirs.

        Args:
            shapes: of our weights, by name; tied ones once.
        """
        grouped: dict[tuple[str, bool], list[str]] = {}
        for name in shapes:
            module, _, kind = name.rpartition(".")
            if module.startswith("blocks."):
                _, i, part = module.split(".", 2)
                theirs = f"{self.block.format(i=i)}.{self.block_names[part]}.{kind}"
                flipped = self.transposed and "ln" not in part
            else:
                theirs, flipped = f"{self.names[module]}.{kind}", False
            grouped.setdefault((theirs, flipped), []).append(name)
        order = {part: i for i, part in enumerate(self.block_names)}
        entries = []
        for (theirs, flipped), ours in grouped.items():
            if len(ours) > 1:  # queries, keys, values
                ours.sort(key=lambda name: order[name.split(".", 2)[2].rpartition(".")[0]])
            rows = tuple(shapes[name][0] for name in ours)
            shape = (sum(rows), *shapes[ours[0]][1:])
            shape = shape[::-1] if flipped else shape
            entries.append(Entry(theirs, tuple(ours), rows, shape, flipped))
        return entries


def layout_of(config: GPTConfig) -> Layout:
    """The layout that a configuration has.

    Raises:
        InputError: no other program has it; the message names the settings that differ.
    """
    standard = ATTENTIONS[config.attention or "flash"].is_standard
    differences = {}
    for layout in LAYOUTS.values():
        wrong = {n: v for n, v in layout.shape.items() if getattr(config, n) != v}
        if not standard:
            wrong["attention"] = "flash"
        if not wrong:
            return layout
        differences[layout.model_type] = wrong
    nearest = min(differences, key=lambda name: len(differences[name]))
    lacking = ", ".join(
        f"{name} {getattr(config, name)!r} (not {value!r})"
        for name, value in differences[nearest].items()
    )
    raise InputError(
        f"no other program knows this layout; the nearest is {nearest}, but for {lacking} (--to "
        "onnx takes any)"
    )


def to_foreign(layout: Layout, weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Their tensors by name. Takes ours out of `weights`, so that memory holds no second model."""
    for entry in layout.table({name: tensor.shape for name, tensor in weights.items()}):
        yield entry.theirs, entry.outward(weights)
        for name in entry.ours:
            del weights[name]


# --- settings. A value that we cannot compute with is refused by its name.


def _gpt2_settings(config: GPTConfig) -> dict[str, Any]:
    return {
        "n_positions": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.ff_size,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
    }


# names of the same function: the tanh form of GELU, to the ten digits that one of them writes out
_GELUS = ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate", "gelu_fast")
_SILUS = ("silu", "swish")
# other names that transformers takes for settings of GPT-2
_GPT2_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def _gpt2_read(settings: dict[str, Any]) -> dict[str, Any]:
    settings = {_GPT2_NAMES.get(name, name): value for name, value in settings.items()}
    _require(settings, "activation_function", *_GELUS)
    _require(settings, "scale_attn_weights", True)
    _require(settings, "scale_attn_by_inverse_layer_idx", False)
    _require(settings, "add_cross_attention", False)
    return {
        "context_length": settings.get("n_positions", 1024),
        "d_model": settings.get("n_embd", 768),
        "n_layers": settings.get("n_layer", 12),
        "n_heads": settings.get("n_head", 12),
        "d_ff": settings.get("n_inner") or 4 * settings.get("n_embd", 768),
        "norm_eps": settings.get("layer_norm_epsilon", 1e-5),
        "tie_weights": settings.get("tie_word_embeddings", True),
    }


def _rotary_settings(config: GPTConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_factor != 1.0:
        rope |= {
            "rope_type": "llama3",
            "factor": config.rope_factor,
            "low_freq_factor": config.rope_low_freq_factor,
            "high_freq_factor": config.rope_high_freq_factor,
            "original_max_position_embeddings": config.rope_original_context,
        }
    return {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.ff_size,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": config.dropout,
        "rope_parameters": rope,
        # what readers before transformers 5 look for
        "rope_theta": config.rope_theta,
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
    }


def _rotary_read(settings: dict[str, Any]) -> dict[str, Any]:
    _require(settings, "hidden_act", *_SILUS)
    _require(settings, "attention_bias", False)
    _require(settings, "mlp_bias", False)
    _require_full_attention(settings)
    heads = settings["num_attention_heads"]
    return {
        "context_length": settings["max_position_embeddings"],
        "d_model": settings["hidden_size"],
        "n_layers": settings["num_hidden_layers"],
        "n_heads": heads,
        "n_kv_heads": settings.get("num_key_value_heads", heads),
        "head_dim": settings.get("head_dim") or settings["hidden_size"] // heads,
        "d_ff": settings["intermediate_size"],
        "norm_eps": settings.get("rms_norm_eps", 1e-6),
        "tie_weights": settings.get("tie_word_embeddings", False),
        **_rope_read(settings),
    }


def _qwen3_read(settings: dict[str, Any]) -> dict[str, Any]:
    """With what transformers takes where a Qwen3 configuration does not say."""
    return _rotary_read({"num_key_value_heads": 32, "head_dim": 128, **settings})


def _rope_read(settings: dict[str, Any]) -> dict[str, Any]:
    """Positions, as transformers 5 writes them and as those before did, whose names go first."""
    rope = {**(settings.get("rope_scaling") or settings.get("rope_parameters") or {})}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "llama3"):
        raise InputError(f"rope_type {kind!r} is not known here: default and llama3 are")
    if any(isinstance(value, dict) for value in rope.values()):
        raise InputError("its rope_parameters differ between layers: here they are one for all")
    _require({**settings, **rope}, "partial_rotary_factor", 1.0)
    values = {"rope_theta": float(rope.get("rope_theta") or settings.get("rope_theta", 10000.0))}
    if kind == "llama3":
        context = settings["max_position_embeddings"]
        values |= {
            "rope_factor": float(rope["factor"]),
            "rope_low_freq_factor": float(rope["low_freq_factor"]),
            "rope_high_freq_factor": float(rope["high_freq_factor"]),
            "rope_original_context": rope.get("original_max_position_embeddings") or context,
        }
    return values


def _require_full_attention(settings: dict[str, Any]) -> None:
    """Raises `InputError` if layers see only the nearest tokens."""
    kinds = settings.get("layer_types")
    if kinds is None:
        first = settings.get("max_window_layers", 28)  # the first layer that has a window
        windows = (
            bool(settings.get("use_sliding_window")) and first < settings["num_hidden_layers"]
        )
    else:
        windows = any(kind != "full_attention" for kind in kinds)
    if windows:
        raise InputError("some of its layers see a sliding window only: here all see the context")


def _require(settings: dict[str, Any], name: str, *known: Any) -> None:
    """Raises `InputError` if a setting is given and is not one of the values known."""
    if name in settings and settings[name] not in known:
        raise InputError(
            f"its {name} is {settings[name]!r}: this program computes with "
            f"{' or '.join(map(repr, known))} only"
        )


_ROTARY_SHAPE = dict(position="rotary", norm="rmsnorm", feed_forward="swiglu", bias=False)
_ROTARY_NAMES = {
    "token_embedding": "model.embed_tokens",
    "ln_final": "model.norm",
    "lm_head": "lm_head",
}
_ROTARY_BLOCK = {
    "ln1": "input_layernorm",
    "ln2": "post_attention_layernorm",
    "attention.W_q": "self_attn.q_proj",
    "attention.W_k": "self_attn.k_proj",
    "attention.W_v": "self_attn.v_proj",
    "attention.W_o": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.linear1": "mlp.up_proj",
    "feed_forward.linear2": "mlp.down_proj",
}


def _rotary(model_type: str, architecture: str, qk_norm: bool, read: Any) -> Layout:
    return Layout(
        model_type, architecture, {**_ROTARY_SHAPE, "qk_norm": qk_norm}, _rotary_settings,
        read, _ROTARY_NAMES, "model.layers.{i}", _ROTARY_BLOCK,
    )  # fmt: skip


LAYOUTS: dict[str, Layout] = {
    "gpt2": Layout(
        model_type="gpt2",
        architecture="GPT2LMHeadModel",
        shape=dict(
            position="learned", norm="layernorm", feed_forward="gelu", bias=True, qk_norm=False,
            n_kv_heads=None, head_dim=None,
        ),
        settings=_gpt2_settings,
        read=_gpt2_read,
        names={
            "token_embedding": "transformer.wte",
            "position_embedding": "transformer.wpe",
            "ln_final": "transformer.ln_f",
            "lm_head": "lm_head",
        },
        block="transformer.h.{i}",
        block_names={
            "ln1": "ln_1",
            "ln2": "ln_2",
            "attention.W_q": "attn.c_attn",
            "attention.W_k": "attn.c_attn",
            "attention.W_v": "attn.c_attn",
            "attention.W_o": "attn.c_proj",
            "feed_forward.linear1": "mlp.c_fc",
            "feed_forward.linear2": "mlp.c_proj",
        },
        transposed=True,
    ),
    "qwen3": _rotary("qwen3", "Qwen3ForCausalLM", True, _qwen3_read),
    "llama": _rotary("llama", "LlamaForCausalLM", False, _rotary_read),
}  # fmt: skip
