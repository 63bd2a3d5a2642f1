"""Room: a standard model on a CPU → the same logits by one call a token, many times as fast.

PyTorch takes some sixty calls a layer, which cost more than their arithmetic in a small model.
Here weights are copied once into the order in which `decode_stages` reads them, and a pass is one
call of machine code. Where that cannot be had, `decoder_of` says None, and the model computes as
it is written. Whether it can be had is settled before the first token of a text: a text is never
begun in one way and ended in the other, as their last bits differ.
"""

from __future__ import annotations

import ctypes
import logging
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import cache as once
from itertools import accumulate
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from myllm.kernels.decode_table import LANES, LAYER, MOST_TOKENS, SHARED, TABLE, padded
from myllm.kernels.fused import STAND_INS
from myllm.kernels.object_code import machine_code
from myllm.model import gpt
from myllm.model.cache import Cache, KVCache
from myllm.model.dropout import Dropout
from myllm.model.head import Head
from myllm.system.places import kept_folder
from myllm.system.torch_adapter import is_changed, parameter_slots

log = logging.getLogger(__name__)

MOST_THREADS = 4  # more were not measured
LONG_WAIT, OFTEN = 10_000, 3  # rounds (0.2 ms) that a pass waits; passes that wake helpers
WITHOUT = 100  # passes after that
LEAST_SHARED = 2**17  # weights of a model that a second thread makes faster
MOST_WEIGHTS = 2**26  # of a model that is copied; memory alone bounds the larger ones
STANDARD = {
    gpt.GPTModel, gpt.TransformerBlock, gpt.MultiHeadAttention, gpt.FlashAttention,
    gpt.FeedForward, gpt.SwiGLU, gpt.LayerNorm, gpt.RMSNorm, gpt.RotaryPosition, gpt.Embedding,
    Head, Dropout, nn.Linear, nn.ModuleList, nn.GELU, *STAND_INS.values(),
}  # fmt: skip
_version_of = attrgetter("_version")
_decoders: weakref.WeakKeyDictionary[gpt.GPTModel, Decoder | None] = weakref.WeakKeyDictionary()
_found: list[Callable[..., Any] | None] = []  # the machine code, once it was asked for
_asking = threading.Lock()


def decoder_of(model: gpt.GPTModel, cache: Cache) -> Decoder | None:
    """What computes for a model as it is now, or None: the model itself does it.

    The copy of the weights is made anew when they were trained, loaded or replaced since. Who
    writes to them behind PyTorch's back (`.data`, NumPy) says so with
    `torch.autograd.graph.increment_version`.
    """
    if model.training or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return None
    if type(cache) is not KVCache or cache.dtype not in (None, torch.float32):
        return None
    held = _decoders.get(model)
    if not cache.lengths:  # a text begins; of what it is made is not asked at each token
        reason = _not_standard(model)
        if reason or held is None or not held.is_of(model):
            _decoders[model] = held = None  # two copies need not be there at once
            _decoders[model] = held = _new_decoder(model, reason)
    elif held is not None and not held.is_current():
        _decoders[model] = held = None
        _decoders[model] = held = _new_decoder(model, _not_standard(model))
    return held


def begin_to_compile() -> threading.Thread:
    """Has the machine code made while something else is done: it is needed later."""
    thread = threading.Thread(target=_code, args=(lambda: None,), daemon=True)
    thread.start()
    return thread


def _new_decoder(model: gpt.GPTModel, reason: str) -> Decoder | None:
    if reason:
        _tell(logging.DEBUG, reason)
    elif (code := _code(_announce)) is not None:
        return Decoder(model, code)
    return None


def _not_standard(model: gpt.GPTModel) -> str:
    """Why a model is none that the kernels compute; empty for one that is."""
    for module in model.modules():
        if type(module) not in STANDARD or is_changed(module):
            return f"there is a {type(module).__name__} of another kind in the model"
    parameters = list(model.parameters())
    if not all(p.is_cpu and p.is_floating_point() and not p.is_inference() for p in parameters):
        return "the weights are not numbers in the memory of the CPU that can be watched"
    too_large = sum(p.numel() for p in parameters) > MOST_WEIGHTS
    return "memory bounds a model of this size, not the number of steps" if too_large else ""


def _code(announce: Callable[[], None]) -> Callable[..., Any] | None:
    """The machine code of a pass; None where that cannot be had, which is told once."""
    with _asking:
        if not _found:
            _found.append(_looked_for(announce))
        return _found[0]


def _looked_for(announce: Callable[[], None]) -> Callable[..., Any] | None:
    folder = kept_folder("kernels")
    try:
        if folder is None:
            raise OSError("no folder to keep compiled code in")
        find = machine_code("myllm.kernels.decode_stages", "FUNCTIONS", folder, announce)
        return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(find("decode_pass"))
    except ImportError as error:
        _tell(logging.DEBUG, f"{error} (pip install numba)")
    except Exception as error:  # Numba's and LLVM's have no common base
        first = (str(error).strip().splitlines() or [""])[0]
        _tell(logging.INFO, f"{type(error).__name__} ({first[:100]})")
    return None


@once
def _tell(level: int, reason: str) -> None:
    log.log(
        level, "text is written in many steps, several times slower than it could be: %s", reason
    )


def _announce() -> None:
    log.info("compiling what writes text, once: some seconds")


def _numbers_of(tensors: Iterable[Tensor]) -> np.ndarray:
    """Rows of several tensors, float32. By NumPy: PyTorch would wait for its threads to begin."""
    return np.concatenate([tensor.detach().float().numpy() for tensor in tensors])


def _panels(weight: np.ndarray) -> np.ndarray:
    """(N, M) → (N / 32, M, 32): outputs side by side, zeros after the last."""
    n, m = weight.shape
    wide = np.zeros((padded(n), m), np.float32)
    wide[:n] = weight
    return np.ascontiguousarray(wide.reshape(-1, LANES, m).transpose(0, 2, 1))


class Decoder:
    """The weights of a model as the kernel reads them, and memory between its stages."""

    def __init__(self, model: gpt.GPTModel, code: Callable[..., Any]) -> None:
        self._code, self._config = code, model.config
        self._slots = parameter_slots(model)
        self._copied = self._now()
        self._kept: list[Any] = []  # what the tables hold addresses of
        self._most_threads = MOST_THREADS if model.count_parameters() >= LEAST_SHARED else 1
        self._table = np.zeros(len(TABLE), np.int64)
        self._table_address = self._address(self._table)
        c, n = model.config, MOST_TOKENS
        self._set(
            n_layers=c.n_layers, C=c.d_model, H=c.n_heads, K=c.kv_heads, D=c.head_size,
            F=c.ff_size, V=c.vocab_size, centred=c.norm == "layernorm", context=c.context_length,
        )  # fmt: skip
        self._new = np.zeros((4, n), np.int64)
        self._memory = np.zeros(2 * c.n_layers, np.int64)
        self._like = torch.empty(0)
        numbers = dict(zip(("tokens", "rows", "positions", "last"), self._new))
        numbers["memory"] = self._memory
        widths = dict(
            x=c.d_model, normed=c.d_model, inner=c.ff_size, gate=c.ff_size,
            mixed=c.n_heads * c.head_size, qkv=(c.n_heads + 2 * c.kv_heads) * c.head_size,
        )  # fmt: skip
        between = {
            name: np.zeros((n, padded(width)), np.float32) for name, width in widths.items()
        }
        between["scores"] = np.zeros((MOST_THREADS, c.context_length), np.float32)
        things = numbers | between | self._weights(model)
        self._set(**{name: self._address(thing) for name, thing in things.items()})

    def _weights(self, model: gpt.GPTModel) -> dict[str, Any]:
        """What a pass reads of the model, by its name in the table."""
        c, position, rotary = model.config, model.position_embedding, model.rotary
        layers = [self._address(self._layer(block)) for block in model.blocks]
        return dict(
            embedding=model.token_embedding.weight,
            position=position.weight if position is not None else None,
            cos=rotary.cos if rotary is not None else None,
            sin=rotary.sin if rotary is not None else None,
            layers=np.array(layers, np.int64),
            gain=model.ln_final.weight,
            bias=getattr(model.ln_final, "bias", None),
            head=_panels(_numbers_of([model.lm_head.weight])),
            eps=torch.tensor([c.norm_eps]),
            scale=torch.tensor([1 / math.sqrt(c.head_size)]),
        )

    def _set(self, **values: int) -> None:
        for name, value in values.items():
            self._table[getattr(TABLE, name)] = value

    def _address(self, thing: Any) -> int:
        """Where numbers are; they stay there."""
        if thing is None:
            return 0
        if isinstance(thing, Tensor):
            thing = thing.detach().float().contiguous()
            self._kept.append(thing)
            return int(thing.data_ptr())
        self._kept.append(thing)
        return int(thing.ctypes.data)

    def _layer(self, block: Any) -> np.ndarray:
        """The addresses of a block's weights."""
        a, f = block.attention, block.feed_forward
        norms = dict(block=block.ln1, inner=block.ln2, q=a.q_norm, k=a.k_norm)
        products = dict(qkv=[a.W_q, a.W_k, a.W_v], o=[a.W_o], up=[f.linear1], down=[f.linear2])
        products["gate"] = [f.gate] if isinstance(f, gpt.SwiGLU) else []
        found: dict[str, Any] = {}
        for name, norm in norms.items():
            if norm is not None:
                found[f"{name}_gain"] = norm.weight
                found[f"{name}_bias"] = getattr(norm, "bias", None)
        for name, linears in products.items():
            if linears:
                found[f"W_{name}"] = _panels(_numbers_of(linear.weight for linear in linears))
            if linears and linears[0].bias is not None:
                b = _numbers_of(linear.bias for linear in linears)
                found[f"b_{name}"] = np.pad(b, (0, padded(len(b)) - len(b)))
        layer = np.zeros(len(LAYER), np.int64)
        for name, tensor in found.items():
            layer[getattr(LAYER, name)] = self._address(tensor)
        return layer

    def _now(self) -> list[int]:
        """Other numbers whenever the weights are others. Asked at each token, so by `map`."""
        held = [p for slots, name in self._slots if (p := slots[name]) is not None]
        return [*map(Tensor.data_ptr, held), *map(_version_of, held)]

    def is_current(self) -> bool:
        """Whether the weights are those that were copied."""
        return self._now() == self._copied

    def is_of(self, model: gpt.GPTModel) -> bool:
        """Whether the model is made of the same modules, too."""
        there = parameter_slots(model)
        same = len(there) == len(self._slots) and all(
            a is b and m == n for (a, m), (b, n) in zip(there, self._slots)
        )
        return same and self.is_current()

    def __call__(
        self, tokens: Tensor, cache: KVCache, counts: Sequence[int] | None = None
    ) -> Tensor:
        """As `generate.decode.prefill`: (B, T) → the logits (B, V) of what follows each text."""
        B, T = tokens.shape
        held, counts = cache.lengths or [0] * B, counts or [T] * B
        assert min(counts) > 0
        ids = [id for row, n in zip(tokens.tolist(), counts) for id in row[:n]]
        assert 0 <= min(ids) and max(ids) < self._config.vocab_size
        cache.start(B, T, counts)
        rows = [row for row, n in enumerate(counts) for _ in range(n)]
        positions = [start + i for start, n in zip(held, counts) for i in range(n)]
        ends = [end - 1 for end in accumulate(counts)]  # of the rows, in `ids`
        V = self._config.vocab_size
        logits = torch.empty(B, padded(V))
        with _lock:
            self._find_memory(cache, B)
            for start in range(0, len(ids), MOST_TOKENS):
                stop = start + MOST_TOKENS
                last = [end - start for end in ends if start <= end < stop]
                first = sum(end < start for end in ends)
                self._set(logits=logits.data_ptr() + 4 * first * padded(V))
                self._pass(ids[start:stop], rows[start:stop], positions[start:stop], last)
        cache.advance()
        return logits if padded(V) == V else logits[:, :V]

    def _find_memory(self, cache: KVCache, n_rows: int) -> None:
        if self._like.shape[0] != n_rows:
            self._like = torch.empty(n_rows, self._config.kv_heads, 0, self._config.head_size)
        held = [
            cache.memory(layer, self._like, self._like) for layer in range(self._config.n_layers)
        ]
        self._memory[:] = [tensor.data_ptr() for pair in held for tensor in pair]
        self._set(slots=held[0][0].shape[2])

    def _pass(
        self, tokens: list[int], rows: list[int], positions: list[int], last: list[int]
    ) -> None:
        """New tokens, of these rows at these positions → logits of what follows the `last`."""
        n = len(tokens)
        self._new[:, :n] = tokens, rows, positions, last + [0] * (n - len(last))
        self._set(n=n, n_last=len(last))
        n_threads = min(self._most_threads, torch.get_num_threads())
        helpers = _helpers.wake(self._code, n_threads - 1)
        self._code(self._table_address, _helpers.address, 0, helpers)


class _Helpers:
    """Threads that help with a pass; without work for a millisecond they sleep.

    Where other programs need the cores, they are late again and again, or lose the core in the
    middle of their work, for which the pass must wait: then the next passes do without them.
    """

    def __init__(self) -> None:
        self.shared = np.zeros(len(SHARED) + MOST_THREADS, np.int64)
        self.address = int(self.shared.ctypes.data)
        self._events: list[threading.Event] = []
        self._without = 0  # passes to come
        self._woken = 0  # passes, one after the other, that found one asleep

    def wake(self, code: Callable[..., Any], n: int) -> int:
        """Has n of them look for work; a pass does not wait for those that come late.

        Returns:
            How many may help.
        """
        if self.shared[SHARED.waited] > LONG_WAIT or self._woken > OFTEN:
            self._without, self._woken = WITHOUT, 0
        self.shared[SHARED.waited] = 0
        if self._without:
            self._without -= 1
            return 0
        while len(self._events) < n:
            self._events.append(threading.Event())
            who = len(self._events)
            self.shared[SHARED.asleep + who] = 1
            threading.Thread(target=self._help, args=(code, who), daemon=True).start()
        asleep = [who for who in range(1, n + 1) if self.shared[SHARED.asleep + who]]
        self._woken = self._woken + 1 if asleep else 0
        for who in asleep:
            self.shared[SHARED.asleep + who] = 0
            self._events[who - 1].set()
        return n

    def _help(self, code: Callable[..., Any], who: int) -> None:
        event = self._events[who - 1]
        while event.wait():
            event.clear()
            code(0, self.address, who, 0)


_helpers, _lock = _Helpers(), threading.Lock()  # one pass at a time has all threads
