"""Room: the model wing: tokens → logits. Knows nothing of text, files or optimizers."""

from myllm.kinds import ATTENTIONS, FEED_FORWARDS
from myllm.model.cache import KVCache
from myllm.model.gpt import (
    FeedForward,
    FlashAttention,
    GPTModel,
    MultiHeadAttention,
    SwiGLU,
    TransformerBlock,
)
from myllm.model.roles import Role, parameter_roles

__all__ = [
    "ATTENTIONS",
    "FEED_FORWARDS",
    "FeedForward",
    "FlashAttention",
    "GPTModel",
    "KVCache",
    "MultiHeadAttention",
    "Role",
    "SwiGLU",
    "TransformerBlock",
    "parameter_roles",
]
