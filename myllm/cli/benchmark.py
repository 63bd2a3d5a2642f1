"""Room: `myllm benchmark`: settings → a table of speeds on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from myllm.cli.parse import given
from myllm.cli.table import Column, fitted, screen_width
from myllm.cli.verb import Verb
from myllm.config import GPTConfig
from myllm.system.importing import quick_imports
from myllm.system.units import short_bytes
from myllm.system.wrapping import wrapped

if TYPE_CHECKING:  # it needs torch
    from myllm.speeds import Duel, Speeds


@dataclass(frozen=True)
class BenchmarkOptions:
    """Measure training and generation speed on this machine."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "myllm benchmark",
        "myllm benchmark --size cpu --iterations 5",
        "myllm benchmark --against transformers",
    )

    size: str | None = None  # how large it is (None: what this machine trains in minutes)
    preset: str = "modern"  # layout of the model
    batch_size: int | None = None  # sequences in one forward pass (None: the size's)
    optimizer: str = "muon"  # what turns gradients into updates
    dtype: str | None = None  # float32, bfloat16, float16 (None: what is fastest here)
    device: str | None = None  # cpu, cuda, mps (None: the best one here)
    kernels: str | None = None  # what computes the model in training (None: the fastest here)
    threads: int | None = None  # of the CPU (None: as many as there are cores for them)
    against: str | None = None  # time training beside transformers, or a folder of nanoGPT
    iterations: int = 20  # timed repetitions
    model: dict[str, Any] = given(GPTConfig)
    debug: bool = False  # show the traceback of an error


def benchmark(options: BenchmarkOptions) -> None:
    """Prints a table of speeds and why they are what they are, or a comparison."""
    from rich.console import Console

    with quick_imports():
        from myllm import api

    names = ("optimizer", "dtype", "device", "kernels", "threads")
    settings = {name: getattr(options, name) for name in names}
    settings |= {"preset": options.preset, **options.model}
    if options.batch_size is not None:
        settings["batch_size"] = options.batch_size
    console = Console(highlight=False, markup=False, soft_wrap=True)
    width = screen_width()
    if options.against is None:
        lines = lines_of(api.benchmark(options.iterations, options.size, **settings), width)
    else:
        found = api.benchmark_against(
            options.against, options.iterations, options.size, **settings
        )
        lines = lines_of_duel(found, width)
    for line in lines:
        console.print(line)


def lines_of(found: Speeds, width: int) -> list[str]:
    """A table of speeds, what they are a share of, and what a step's time goes into."""
    columns = [
        Column(""),
        Column("ms", is_number=True),
        Column("tokens/s", is_number=True),
        Column("of peak", 2, is_number=True),
        Column("peak memory", 3, is_number=True),
    ]
    rows = [
        (
            name,
            f"{timing.seconds * 1e3:,.1f}",
            f"{timing.tokens_per_second:,.0f}",
            f"{timing.flops_per_second / found.peak:.1%}",
            short_bytes(timing.peak_memory_bytes),
        )
        for name, timing in found.timings.items()
    ]
    shares = ", ".join(f"{name} {n}%" for name, n in _percents(found.shares).items())
    return [
        *fitted(columns, rows, width),
        wrapped(f"peak of a matrix product here: {found.peak / 1e9:,.0f} GFLOP/s", width),
        wrapped(
            f"the training step, in {found.dtype} by {found.kernels} kernels: {shares}", width
        ),
    ]


def _percents(shares: dict[str, float]) -> dict[str, int]:
    """Whole ones that sum to 100: those that lose most by being cut get what is missing.

    >>> _percents({"products": 0.336, "data": 0.332, "rest": 0.332})
    {'products': 34, 'data': 33, 'rest': 33}
    """
    whole = {name: int(100 * share) for name, share in shares.items()}
    by_loss = sorted(shares, key=lambda name: whole[name] - 100 * shares[name])
    for name in by_loss[: 100 - sum(whole.values())]:
        whole[name] += 1
    return whole


def lines_of_duel(found: Duel, width: int) -> list[str]:
    """A table of the two sides, and one sentence."""
    columns = [Column(""), Column("parameters", 1, is_number=True)]
    columns += [Column("ms a step", is_number=True), Column("tokens/s", is_number=True)]
    rows = [
        (
            name,
            f"{found.parameters[name]:,}",
            f"{seconds * 1e3:,.1f}",
            f"{found.tokens / seconds:,.0f}",
        )
        for name, seconds in found.seconds.items()
    ]
    (_, ours), (other, theirs) = found.seconds.items()
    sentence = (
        f"a training step of MyLLM takes {ours / theirs:.2f} times as long as one of {other} "
        f"(in turns, both in {found.dtype}; MyLLM with {found.optimizer} and {found.kernels} "
        f"kernels, {other} with fused adamw and not compiled)"
    )
    return [*fitted(columns, rows, width), wrapped(sentence, width)]


VERB = Verb(BenchmarkOptions, benchmark)
