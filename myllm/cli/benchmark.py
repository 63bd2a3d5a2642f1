"""Room: `myllm benchmark`: settings → a table of speeds on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from myllm.cli.parse import given
from myllm.cli.verb import Verb
from myllm.config import GPTConfig
from myllm.system.importing import quick_imports


@dataclass(frozen=True)
class BenchmarkOptions:
    """Measure training and generation speed on this machine."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "myllm benchmark",
        "myllm benchmark --size cpu --iterations 5",
        "myllm benchmark --d-model 64 --n-layers 2",
    )

    size: str | None = None  # how large it is (None: what this machine trains in minutes)
    preset: str = "modern"  # layout of the model
    batch_size: int | None = None  # sequences in one forward pass (None: the size's)
    optimizer: str = "muon"  # what turns gradients into updates
    dtype: str | None = None  # float32, bfloat16, float16 (None: what is fastest here)
    device: str | None = None  # cpu, cuda, mps (None: the best one here)
    threads: int | None = None  # of the CPU (None: as many as there are cores for them)
    iterations: int = 20  # timed repetitions
    model: dict[str, Any] = given(GPTConfig)
    debug: bool = False  # show the traceback of an error


def benchmark(options: BenchmarkOptions) -> None:
    """Prints a table of speeds."""
    from rich.console import Console
    from rich.table import Table

    with quick_imports():
        from myllm import api

    settings = {
        name: getattr(options, name) for name in ("optimizer", "dtype", "device", "threads")
    }
    settings |= {"preset": options.preset, **options.model}
    if options.batch_size is not None:
        settings["batch_size"] = options.batch_size
    peak, timings = api.benchmark(options.iterations, options.size, **settings)
    table = Table("", "ms", "tokens/s", "of peak", "peak memory")
    for name, timing in timings.items():
        table.add_row(
            name,
            f"{timing.seconds * 1e3:,.1f}",
            f"{timing.tokens_per_second:,.0f}",
            f"{timing.flops_per_second / peak:.1%}",
            f"{timing.peak_memory_bytes / 2**20:,.0f} MiB",
        )
    console = Console()
    console.print(table)
    console.print(f"peak of a matrix product here: {peak / 1e9:,.0f} GFLOP/s")


VERB = Verb(BenchmarkOptions, benchmark)
