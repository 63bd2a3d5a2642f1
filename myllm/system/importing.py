"""Room: imports of much → sooner. Knows nothing of what is imported."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """For imports of much in the block: Python does not look for garbage meanwhile, nor later
    among what they made, which stays.

    A sixth of the time of `import torch` is spent looking in vain (docs/benchmarks.md).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.freeze()
            gc.enable()
