"""Room: a planned width, and what was given of it → width and heads that go together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from myllm.presets import GIVEN, Resolved

ALIGNED = 8  # kernels like widths that are multiples of it


def matching_heads(planned: Mapping[str, Any], settings: Resolved) -> dict[str, int]:
    """`d_model` and `n_heads` near the planned ones that fit the given parts of a shape.

    Heads divide the width into even parts, and key and value heads divide the heads.

    Args:
        planned: with `d_model` and `n_heads`.
        settings: of which `d_model`, `n_heads`, `n_kv_heads`, `head_dim` may be given.
    """
    model, width, n_heads = settings.config.model, planned["d_model"], planned["n_heads"]
    n_kv_heads, head_dim = model.n_kv_heads or 1, model.head_dim
    given = {name for name in ("d_model", "n_heads") if settings.sources[name] in GIVEN}
    if "d_model" in given:
        n_heads = max(1, round(n_heads * model.d_model / width))
        width = model.d_model
    if "n_heads" in given:
        n_heads = model.n_heads
    if head_dim is not None:  # then heads need not divide the width
        if "n_heads" not in given:
            n_heads = n_kv_heads * max(1, round(width / head_dim / n_kv_heads))
        return {"d_model": width, "n_heads": n_heads}
    if "d_model" not in given:
        unit = math.lcm(2 * (n_heads if "n_heads" in given else n_kv_heads), ALIGNED)
        width = unit * max(1, round(width / unit))
    if "n_heads" not in given:
        fits = [n for n in range(n_kv_heads, width // 2 + 1, n_kv_heads) if width % (2 * n) == 0]
        n_heads = min(fits, key=lambda n: abs(math.log(n / n_heads)), default=n_heads)
    return {"d_model": width, "n_heads": n_heads}
