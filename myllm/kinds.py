"""Room: what a setting can name → where that is written, and what help says of it. No torch.

A kind (a tokenizer, an attention, a schedule …) is a class or function in a file of its own or of
its siblings, and one line here. It is imported when it is looked up: help and errors list the
names without PyTorch, which takes seconds to import.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from myllm.registry import unknown

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from myllm.config import GPTConfig
    from myllm.formats import Format
    from myllm.kernels.plain import Kernels
    from myllm.model.gpt import FeedForward, MultiHeadAttention
    from myllm.tokenizer.base import Tokenizer

T = TypeVar("T")


class Kinds(MutableMapping[str, T]):
    """The variants of one kind by name. An unknown name is an error that lists the choices.

    >>> tables = Kinds("table", {"counter": ("collections:Counter", "counts what it is given")})
    >>> tables["counter"]("hello")["l"]
    2
    >>> tables["mine"] = dict  # what is set needs no place
    >>> list(tables), tables.described()
    (['counter', 'mine'], 'counter (counts what it is given), mine')
    >>> tables["x"]
    Traceback (most recent call last):
    myllm.errors.ConfigError: unknown table 'x': choices: counter, mine
    """

    def __init__(self, kind: str, places: Mapping[str, tuple[str, str]]) -> None:
        """
        Args:
            kind: what the variants are, in the singular, for messages.
            places: by name, `module:name` of the class or function, and some words for help.
        """
        self.kind = kind
        self._places = dict(places)
        self._found: dict[str, T | None] = dict.fromkeys(places)  # None: not looked up yet

    def __getitem__(self, name: str) -> T:
        if name not in self._found:
            raise unknown(self.kind, name, self)
        found = self._found[name]
        if found is None:
            module, _, attribute = self._places[name][0].partition(":")
            found = cast(T, getattr(importlib.import_module(module), attribute))
            self._found[name] = found
        return found

    def __setitem__(self, name: str, variant: T) -> None:
        self._found[name] = variant

    def __delitem__(self, name: str) -> None:
        del self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def get(self, name: str, default: Any = None, /) -> Any:
        return self[name] if name in self else default

    def described(self) -> str:
        """Every name, with some words where the name does not say it itself."""
        words = {name: self._places.get(name, ("", ""))[1] for name in self}
        return ", ".join(f"{name} ({text})" if text else name for name, text in words.items())


TOKENIZERS: Kinds[type[Tokenizer]] = Kinds("tokenizer", {
    "bpe": ("myllm.tokenizer.bpe:BPETokenizer", "byte pairs, any text"),
    "char": ("myllm.tokenizer.char:CharTokenizer", "one token per character"),
})  # fmt: skip
ATTENTIONS: Kinds[type[MultiHeadAttention]] = Kinds("attention", {
    "flash": ("myllm.model.gpt:FlashAttention", "fused kernel"),
    "manual": ("myllm.model.gpt:MultiHeadAttention", "the same in single steps"),
})  # fmt: skip
NORMS: Kinds[Callable[[GPTConfig, int], nn.Module]] = Kinds("norm", {
    "layernorm": ("myllm.model.gpt:LayerNorm", ""),
    "rmsnorm": ("myllm.model.gpt:RMSNorm", ""),
})  # fmt: skip
FEED_FORWARDS: Kinds[type[FeedForward]] = Kinds("feed-forward", {
    "gelu": ("myllm.model.gpt:FeedForward", "tanh form"),
    "swiglu": ("myllm.model.gpt:SwiGLU", "gated"),
})  # fmt: skip
OPTIMIZERS: Kinds[Callable[[list[dict[str, Any]]], Optimizer]] = Kinds("optimizer", {
    "adamw": ("myllm.train.optim:build_adamw", ""),
    "muon": ("myllm.train.optim:Muon", "hidden matrices; AdamW for the rest"),
})  # fmt: skip
SCHEDULES: Kinds[Callable[[float], float]] = Kinds("schedule", {
    "constant": ("myllm.train.schedules:constant", ""),
    "cosine": ("myllm.train.schedules:cosine", ""),
    "linear_warmup": ("myllm.train.schedules:linear", "falls evenly"),
    "one_cycle": ("myllm.train.schedules:one_cycle", "up, then down"),
    "wsd": ("myllm.train.schedules:wsd", "stable, then falls"),
})  # fmt: skip
KERNELS: Kinds[type[Kernels]] = Kinds("kernels", {
    "plain": ("myllm.kernels.plain:Kernels", "PyTorch, as the model is written"),
    "numba": ("myllm.kernels.stand_ins:NumbaKernels", "fused, on CPUs"),
    "compiled": ("myllm.kernels.compiled:CompiledKernels", "torch.compile"),
})  # fmt: skip
FORMATS: Kinds[Format] = Kinds("format", {
    "hf": ("myllm.formats:HUGGING_FACE", "transformers, vLLM"),
    "gguf": ("myllm.formats:GGUF", "llama.cpp, Ollama, LM Studio"),
    "onnx": ("myllm.formats:ONNX", "ONNX Runtime"),
})  # fmt: skip

# setting → its table
TABLES: dict[str, Kinds[Any]] = {
    "tokenizer": TOKENIZERS,
    "attention": ATTENTIONS,
    "norm": NORMS,
    "feed_forward": FEED_FORWARDS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "kernels": KERNELS,
    "to": FORMATS,
}
