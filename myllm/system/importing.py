"""Room: the import of PyTorch → sooner. Imports no torch itself."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """For a block that imports PyTorch: Python does not look for garbage meanwhile, nor later
    among what was made, which stays. Where it is imported already, all is as ever.

    A sixth of the time of `import torch` is spent looking in vain (docs/benchmarks.md).
    """
    is_of_use = gc.isenabled() and "torch" not in sys.modules
    if is_of_use:
        gc.collect()  # what is garbage by now must not stay, too: a lock may hang on it
        gc.disable()
    try:
        yield
    finally:
        if is_of_use:
            gc.freeze()
            gc.enable()
