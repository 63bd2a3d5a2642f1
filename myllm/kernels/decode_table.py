"""Room: what the two sides of decoding agree upon: the tables of numbers that pass between them.

Knows nothing of either. Each name is the index of a 64-bit integer: a size, or an address.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

LANES = 32  # outputs in a panel of weights: as many as fit into registers for three rows at once
MOST_TOKENS = 64  # of a pass: what the memory between the stages is made for

# One a layer. Without a bias, a norm of queries or a gate, its address is 0.
_layer = (
    "block_gain block_bias inner_gain inner_bias q_gain q_bias k_gain k_bias "
    "W_qkv b_qkv W_o b_o W_up b_up W_gate b_gate W_down b_down"
).split()
LAYER: Any = namedtuple("LAYER", _layer)(*range(len(_layer)))

# One a model: its shape, its weights, memory between the stages; then what changes at each pass.
_table = (
    "n_layers C H K D F V centred eps scale layers embedding position cos sin gain bias head "
    "x normed qkv mixed inner gate scores context "
    "n n_last tokens rows positions last slots memory logits"
).split()
TABLE: Any = namedtuple("TABLE", _table)(*range(len(_table)))

# One a process: the stage that is open (its chunks, and the next one, in one number), how many
# chunks are done; rounds waited for helpers; then, of each helper, whether it sleeps.
_shared = "ticket done table stage layer waited asleep".split()
SHARED: Any = namedtuple("SHARED", _shared)(*range(len(_shared)))


def padded(n: int) -> int:
    """The next multiple of the width of a panel."""
    return -(-n // LANES) * LANES
