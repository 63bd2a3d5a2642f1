"""Room: tokens (B, T) → logits (B, T, V). Knows nothing of text, files, optimizers or devices.

Letters of the shapes: B batch, T time, S time with what the cache holds, C d_model, H heads,
K key and value heads, D head size, F inner width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from myllm.config import GPTConfig
from myllm.errors import ConfigError
from myllm.kinds import ATTENTIONS, FEED_FORWARDS, NORMS
from myllm.model.cache import Cache, Positions, check_context
from myllm.model.dropout import Dropout
from myllm.model.head import Head
from myllm.model.roles import Role

INIT_STD = 0.02  # GPT-2's; of embeddings and of linear layers that do not end a residual branch
QUERY_BLOCK = 64  # queries that `MultiHeadAttention` takes at a time

Angles = tuple[Tensor, Tensor]


class Embedding(nn.Embedding):
    """A table with a row of its own for each token or position."""

    role = Role.EMBEDDING


class LayerNorm(nn.LayerNorm):
    """LayerNorm (arXiv 1607.06450) over the last `size` features."""

    def __init__(self, config: GPTConfig, size: int) -> None:
        super().__init__(size, eps=config.norm_eps, bias=config.bias)


class RMSNorm(nn.RMSNorm):
    """RMSNorm (arXiv 1910.07467) in the dtype of its input, as the fused kernels want it."""

    def __init__(self, config: GPTConfig, size: int) -> None:
        super().__init__(size, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class RotaryPosition(nn.Module):
    """Rotates pairs of features by an angle that grows with the position (arXiv 2104.09864).

    Feature i is paired with i + D/2, as in Llama and Qwen, so that weights are exchangeable.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", torch.empty(0), persistent=False)
        self.register_buffer("sin", torch.empty(0), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Computes the table of angles: it follows from the configuration alone."""
        if self.cos.is_meta:  # without content, and arithmetic there takes 2 s to import
            return
        frequency = self._frequency()
        if self.config.rope_factor != 1.0:
            frequency = frequency / self.slowing()
        position = torch.arange(self.config.context_length, device=self.cos.device)
        angle = torch.outer(position.float(), frequency.float()).repeat(1, 2)  # (T, D)
        self.cos, self.sin = angle.cos(), angle.sin()

    def _frequency(self) -> Tensor:
        """Of each pair of features (D/2,), before it is slowed down."""
        half = self.config.head_size // 2
        return self.config.rope_theta ** -(torch.arange(half, device=self.cos.device) / half)

    def slowing(self) -> Tensor:
        """How much slower each pair turns (D/2,), for contexts beyond the one trained first.

        As in Llama 3.1 (arXiv 2407.21783): pairs that turn seldom in that context by
        `rope_factor`, those that turn often not at all, and those between in proportion.
        """
        c = self.config
        turns = c.rope_original_context * self._frequency() / (2 * math.pi)
        width = c.rope_high_freq_factor - c.rope_low_freq_factor
        kept = ((turns - c.rope_low_freq_factor) / width).clamp(0.0, 1.0)
        return 1 / (kept + (1 - kept) / c.rope_factor)

    def forward(self, positions: Positions) -> Angles:
        """Cosine and sine of what tokens at `positions` turn by: (1 or B, 1, T, D) each."""
        return self.cos[positions].unsqueeze(-3), self.sin[positions].unsqueeze(-3)


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Turns each token's features in `x` (B, H, T, D)."""
    cos, sin = (part.to(x.dtype) for part in angles)  # (1 or B, 1, T, D)
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin  # (B, H, T, D)


class MultiHeadAttention(nn.Module):
    """Causal attention with the mathematics spelled out (arXiv 1706.03762).

    With fewer key and value heads than heads it is grouped-query attention (arXiv 2305.13245);
    with one it is multi-query attention. Optionally queries and keys are normalised per head
    (arXiv 2302.05442) and turned by their position.

    Attributes:
        is_standard: whether `attend` computes this very function, as other programs do.
    """

    is_standard = True  # a variant that computes another one says that it does not

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer  # the block's index: whose part of the cache this is
        self.head_size = D = config.head_size
        self.n_heads, self.n_kv_heads = config.n_heads, config.kv_heads
        self.W_q = nn.Linear(config.d_model, config.n_heads * D, bias=config.bias)
        self.W_k = nn.Linear(config.d_model, config.kv_heads * D, bias=config.bias)
        self.W_v = nn.Linear(config.d_model, config.kv_heads * D, bias=config.bias)
        self.W_o = nn.Linear(config.n_heads * D, config.d_model, bias=config.bias)
        self.dropout = Dropout(config.dropout_rate)
        self.q_norm = NORMS[config.norm](config, D) if config.qk_norm else None
        self.k_norm = NORMS[config.norm](config, D) if config.qk_norm else None
        self.output_std = INIT_STD / math.sqrt(2 * config.n_layers)

    def reset_parameters(self) -> None:
        """Draws new weights; the output's are smaller, as 2 · n_layers of them add up (GPT-2)."""
        for linear in (self.W_q, self.W_k, self.W_v):
            init_linear(linear, INIT_STD)
        init_linear(self.W_o, self.output_std)

    def forward(
        self, x: Tensor, angles: Angles | None = None, cache: Cache | None = None
    ) -> Tensor:
        """(B, T, C) → (B, T, C); with a cache, `x` are the tokens that follow those in it."""
        B, T, _ = x.shape
        q = self.W_q(x).view(B, T, self.n_heads, self.head_size)
        k = self.W_k(x).view(B, T, self.n_kv_heads, self.head_size)
        v = self.W_v(x).view(B, T, self.n_kv_heads, self.head_size)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or K, T, D)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast a norm gives float32
        mask = None
        if cache is not None:
            k, v, mask = cache.update(self.layer, k, v)  # (B, K, S, D)
        if self.n_kv_heads != self.n_heads:
            k = k.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)  # (B, H, S, D)
            v = v.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)
        y = self.attend(q, k, v, mask)  # (B, H, T, D)
        x = self.W_o(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)
        return x

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """softmax(q kᵀ / √D) v over the keys that each query sees.

        Args:
            q, k, v: (B, H, T, D), (B, H, S, D), (B, H, S, D).
            mask: which keys each query sees, bool, broadcastable to (B, 1, T, S). Without one the
                queries are the last T of the S positions, and see those up to their own.

        Returns:
            (B, H, T, D).
        """
        T, S = q.shape[2], k.shape[2]
        q = q / math.sqrt(self.head_size)
        if mask is not None:
            scores = (q @ k.transpose(-2, -1)).masked_fill(~mask, float("-inf"))  # (B, H, T, S)
            y: Tensor = self.dropout(scores.softmax(dim=-1)) @ v  # (B, H, T, D)
            return y
        outputs = []
        for start in range(0, T, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, T)
            seen = S - T + end  # no query of the block sees a later key
            scores = q[:, :, start:end] @ k[:, :, :seen].transpose(-2, -1)
            # added, as a condition would keep the compiler from vector instructions
            bias = q.new_full((end - start, seen), float("-inf")).triu(S - T + start + 1)
            weights = (scores + bias).softmax(dim=-1)
            outputs.append(self.dropout(weights) @ v[:, :, :seen])  # (B, H, 64, D)
        return torch.cat(outputs, dim=2)  # (B, H, T, D)


class FlashAttention(MultiHeadAttention):
    """The same function by PyTorch's fused kernels, which never hold the scores (B, H, T, S)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        T, S = q.shape[2], k.shape[2]
        whole = mask is None and T == S  # only then do the kernels know causality by themselves
        if mask is None and 1 < T < S:
            mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)  # (T, S)
        rate = self.dropout.rate if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, mask, rate, is_causal=whole)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, in GPT-2's tanh form (arXiv 1606.08415)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.d_model, config.ff_size, bias=config.bias)
        self.gelu = nn.GELU(approximate="tanh")
        self.linear2 = nn.Linear(config.ff_size, config.d_model, bias=config.bias)
        self.dropout = Dropout(config.dropout_rate)
        self.output_std = INIT_STD / math.sqrt(2 * config.n_layers)

    def reset_parameters(self) -> None:
        """Draws new weights, the output's as small as those of attention."""
        init_linear(self.linear1, INIT_STD)
        init_linear(self.linear2, self.output_std)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        x = self.linear2(self.gelu(self.linear1(x)))
        return x


class SwiGLU(FeedForward):
    """With the inner features gated: silu(gate(x)) · linear1(x) (arXiv 2002.05202)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        del self.gelu
        self.gate = nn.Linear(config.d_model, config.ff_size, bias=config.bias)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        init_linear(self.gate, INIT_STD)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear2(F.silu(self.gate(x)) * self.linear1(x))
        return x


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each on the normalised stream and added to it (pre-norm)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln1 = NORMS[config.norm](config, config.d_model)
        self.attention = ATTENTIONS[config.attention or "flash"](config, layer)
        self.ln2 = NORMS[config.norm](config, config.d_model)
        self.feed_forward = FEED_FORWARDS[config.feed_forward](config)
        self.dropout = Dropout(config.dropout_rate)

    def forward(
        self, x: Tensor, angles: Angles | None = None, cache: Cache | None = None
    ) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        x = x + self.dropout(self.attention(self.ln1(x), angles, cache))
        x = x + self.dropout(self.feed_forward(self.ln2(x)))
        return x


class GPTModel(nn.Module):
    """A decoder-only transformer (GPT-2's, or a variant that the configuration names).

    >>> model = GPTModel(GPTConfig(vocab_size=11, context_length=8, d_model=16, n_layers=1,
    ...                            n_heads=2))
    >>> model(torch.zeros(3, 5, dtype=torch.long)).shape
    torch.Size([3, 5, 11])
    """

    def __init__(self, config: GPTConfig) -> None:
        """Raises `ConfigError` for a value out of its limits, or two that contradict."""
        super().__init__()
        self.config = config.validate()
        self.activation_checkpointing = False  # blocks run again backward instead of being kept
        if config.vocab_size < 1:
            raise ConfigError("vocab_size 0: a model needs the size of its tokenizer's vocabulary")
        self.token_embedding = Embedding(config.vocab_size, config.d_model)
        self.position_embedding: nn.Embedding | None = None
        self.rotary: RotaryPosition | None = None
        if config.position == "learned":
            self.position_embedding = Embedding(config.context_length, config.d_model)
        else:
            self.rotary = RotaryPosition(config)
        self.dropout = Dropout(config.dropout_rate)
        self.blocks = nn.ModuleList(TransformerBlock(config, i) for i in range(config.n_layers))
        self.ln_final = NORMS[config.norm](config, config.d_model)
        self.lm_head = Head(config.d_model, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.token_embedding.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all weights anew: each module its own, so that none can be forgotten."""
        for embedding in filter(None, (self.token_embedding, self.position_embedding)):
            nn.init.normal_(embedding.weight, std=INIT_STD)
        if not self.config.tie_weights:
            init_linear(self.lm_head, INIT_STD)
        for module in self.modules():
            draw = getattr(module, "reset_parameters", None)
            if draw and not isinstance(module, (GPTModel, nn.Linear, nn.Embedding)):
                draw()

    def forward(
        self, tokens: Tensor, cache: Cache | None = None, counts: Sequence[int] | None = None
    ) -> Tensor:
        """The logits of what follows each token.

        Args:
            tokens: (B, T), ids below the vocabulary size.
            cache: keys and values of the tokens before these; extended in place.
            counts: how many of the T tokens of each row the cache takes, from the left; the rest
                is padding, whose logits mean nothing. All by default.

        Returns:
            (B, T, V).

        Raises:
            InputError: more tokens, with those in the cache, than the context length.
        """
        logits: Tensor = self.lm_head(self.features(tokens, cache, counts))  # (B, T, V)
        return logits

    def features(
        self, tokens: Tensor, cache: Cache | None = None, counts: Sequence[int] | None = None
    ) -> Tensor:
        """What the head reads, (B, T, C): for callers that need few of the logits."""
        B, T = tokens.shape
        check_context(T, self.config.context_length)
        positions = cache.start(B, T, counts) if cache is not None else slice(0, T)
        x: Tensor = self.token_embedding(tokens)  # (B, T, C)
        if self.position_embedding is not None:
            x = x + self.position_embedding.weight[positions]
        angles = self.rotary(positions) if self.rotary is not None else None
        x = self.dropout(x)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, angles, use_reentrant=False)
            else:
                x = block(x, angles, cache)
        if cache is not None:
            cache.advance()
        x = self.ln_final(x)
        return x

    def count_parameters(self) -> int:
        """Number of trained numbers; tied weights count once."""
        return sum(p.numel() for p in self.parameters())

    def estimate_flops_per_token(self, context_length: int | None = None) -> int:
        """Floating-point operations of one training token: 6 N + 12 L T H D (arXiv 2204.02311).

        N are the weights that multiply, so without embedding look-ups. A forward alone is a third.
        """
        T = context_length or self.config.context_length
        looked_up = 0 if self.config.tie_weights else self.token_embedding.weight.numel()
        if self.position_embedding is not None:
            looked_up += self.position_embedding.weight.numel()
        width = self.config.n_heads * self.config.head_size
        return 6 * (self.count_parameters() - looked_up) + 12 * self.config.n_layers * T * width


def init_linear(linear: nn.Linear, std: float) -> None:
    """Normal weights, zero bias."""
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
