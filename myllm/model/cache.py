"""Room: keys and values of new tokens → those of all tokens so far, positions and the mask.

Knows nothing of the model but its shape. Letters as in `model.py`: B rows, T new tokens a row, S
tokens of the longest row, K key and value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from myllm.config import GPTConfig
from myllm.errors import InputError

MIN_SLOTS = 64  # of a row when memory is first taken

Positions: TypeAlias = slice | Tensor
"""Where new tokens stand: a slice of length T if it is the same in all rows, else (B, T).

A table of positions (S, D) is read by either: `table[positions]` is (T, D) or (B, T, D)."""


class Cache(Protocol):
    """What the model asks of a cache: in a pass `start`, `update` for each layer, `advance`."""

    def start(self, n_rows: int, n_tokens: int, counts: Sequence[int] | None) -> Positions:
        """Makes ready for new tokens (B, T), of which `counts` count in each row (all if None).

        Returns:
            The positions of the new tokens.
        """

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Adds the new tokens' `k`, `v` (B, K, T, D) in one layer.

        Returns:
            Keys and values of all tokens, (B, K, S, D) each, and which of them each new token
            sees: bool, broadcastable to (B, 1, T, S). None is plain causality: the new tokens
            are the last T of the S, and each sees those up to itself.
        """

    def advance(self) -> None:
        """The new tokens belong to the text from now on: every layer has them."""


class KVCache:
    """Memory for the tokens of several texts side by side, each as long as it is.

    A token at position p of a row is in slot p of it, so no text depends on its neighbours: not
    on their lengths, nor on which of them joined or left. The memory grows by doubling up to the
    context length, so that short texts pay for a short cache.

    Rows of equal length that grow alike, as a single text does, are written as one slice and need
    no mask. Only rows that differ pay for their differences.

    Attributes:
        lengths: tokens held by each row; empty before the first tokens and after all rows left.

    >>> cache = KVCache(GPTConfig(n_layers=1, context_length=8))
    >>> cache.start(2, 3, counts=[3, 1])
    tensor([[0, 1, 2],
            [0, 0, 0]])
    >>> k = v = torch.zeros(2, 12, 3, 64)
    >>> k, v, mask = cache.update(0, k, v)
    >>> cache.advance()
    >>> cache.lengths
    [3, 1]
    >>> cache.keep([1])
    >>> cache.start(1, 1)
    slice(1, 2, None)
    """

    def __init__(self, config: GPTConfig) -> None:
        """
        Args:
            config: of the model; its context length is the most that a row can hold.
        """
        self.capacity = config.context_length
        self.lengths: list[int] = []
        self._memory: list[tuple[Tensor, Tensor] | None] = [None] * config.n_layers
        self._ends: list[int] = []  # lengths after the pass under way
        self._positions: Positions = slice(0, 0)
        self._cells: tuple[Tensor, Tensor, Tensor] | None = None  # row, slot, column of each
        self._mask: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the keys and values; None before there are any."""
        return None if self._memory[0] is None else self._memory[0][0].dtype

    def start(self, n_rows: int, n_tokens: int, counts: Sequence[int] | None = None) -> Positions:
        """Makes ready for new tokens (B, T).

        Args:
            n_rows: B, as many as there are rows here; any number if there are none.
            n_tokens: T.
            counts: how many of the T tokens count in each row, from the left (all if None). The
                others are padding: they are not kept and nothing sees them.

        Returns:
            The positions of the new tokens; padding stands at that of its row's last token.

        Raises:
            InputError: a row would become longer than the context.
        """
        held = self.lengths or [0] * n_rows
        added = list(counts) if counts is not None else [n_tokens] * n_rows
        assert n_rows == len(held) == len(added) and 0 <= min(added) and max(added) <= n_tokens
        self._ends = ends = [length + count for length, count in zip(held, added)]
        check_context(max(ends), self.capacity)
        self._cells = self._mask = None
        if len(set(held)) == 1 and min(added) == n_tokens:
            self._positions = slice(held[0], ends[0])
            return self._positions
        ahead = torch.arange(n_tokens)
        last = torch.tensor([max(end - 1, 0) for end in ends])
        self._positions = (torch.tensor(held)[:, None] + ahead).minimum(last[:, None])  # (B, T)
        rows, columns = (ahead < torch.tensor(added)[:, None]).nonzero(as_tuple=True)
        self._cells = rows, self._positions[rows, columns], columns
        slots = torch.arange(max(ends))
        self._mask = slots <= self._positions[:, None, :, None]  # (B, 1, T, S)
        return self._positions

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `Cache.update` says."""
        keys, values = self.memory(layer, k, v)
        if isinstance(self._positions, slice):
            end = self._positions.stop
            keys[:, :, self._positions] = k
            values[:, :, self._positions] = v
            return keys[:, :, :end], values[:, :, :end], None
        assert self._cells is not None and self._mask is not None
        if self._mask.device != k.device:  # once a pass: the layers share them
            self._mask = self._mask.to(k.device)
            rows, slots, columns = self._cells
            self._cells = rows.to(k.device), slots.to(k.device), columns.to(k.device)
        rows, slots, columns = self._cells
        keys[rows, :, slots] = k[rows, :, columns]  # (n, K, D)
        values[rows, :, slots] = v[rows, :, columns]
        end = self._mask.shape[-1]
        return keys[:, :, :end], values[:, :, :end], self._mask

    def advance(self) -> None:
        """As `Cache.advance` says."""
        self.lengths = self._ends

    def trim(self, lengths: Sequence[int]) -> None:
        """Forgets the last tokens of rows: what follows takes their place.

        Args:
            lengths: tokens that each row keeps, at most those that it has.
        """
        assert len(lengths) == len(self.lengths)
        assert all(0 <= new <= old for new, old in zip(lengths, self.lengths))
        self.lengths = list(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps these rows, in this order; a row that is named twice becomes two.

        Args:
            rows: indices of rows; none to empty the cache.
        """
        self.lengths = [self.lengths[row] for row in rows]
        for layer, held in enumerate(self._memory):
            if held is not None:
                index = torch.tensor(list(rows), dtype=torch.long, device=held[0].device)
                keys, values = (tensor.index_select(0, index) for tensor in held)
                self._memory[layer] = (keys, values) if self.lengths else None

    def join(self, other: KVCache) -> None:
        """Adds the rows of another cache of the same model below those of this one.

        Args:
            other: stays as it is.
        """
        for layer, (held, new) in enumerate(zip(self._memory, other._memory)):
            if held is None or new is None:
                self._memory[layer] = held if new is None else (new[0].clone(), new[1].clone())
                continue
            size = max(held[0].shape[2], new[0].shape[2])
            keys, values = (
                torch.cat((_resized(mine, size), _resized(theirs, size)))
                for mine, theirs in zip(held, new)
            )
            self._memory[layer] = keys, values
        self.lengths = self.lengths + other.lengths

    def memory(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer (B, K, slots, D), with room for the tokens of the pass under
        way. Who writes them there itself needs no `update`, and gives any `k`, `v` (B, K, T, D).
        """
        held, end = self._memory[layer], max(self._ends)
        if held is not None and held[0].shape[2] >= end:
            return held
        size = min(self.capacity, max(MIN_SLOTS, 1 << (end - 1).bit_length()))
        keys, values = held if held is not None else (k[:, :, :0], v[:, :, :0])
        grown = self._memory[layer] = _resized(keys, size), _resized(values, size)
        return grown


def check_context(n_tokens: int, context_length: int) -> None:
    """Raises `InputError` if a text is longer than what a model looks back over."""
    if n_tokens > context_length:
        raise InputError(
            f"{n_tokens} tokens exceed the context length {context_length}: pass the last ones "
            "only"
        )


def _resized(held: Tensor, size: int) -> Tensor:
    """(B, K, S, D) → (B, K, size, D), no less than S.

    Zeros, not what was in the memory: a hidden slot counts 0 times its value, and 0 · NaN is NaN.
    """
    if held.shape[2] == size:
        return held
    grown = held.new_zeros(*held.shape[:2], size, held.shape[3])
    grown[:, :, : held.shape[2]] = held
    return grown
