"""How cost grows with the model: time per token against parameters, width, depth, context, batch.

python benchmarks/scaling.py scaling.png --json scaling.json

Every shape is timed in a process of its own, so that its peak of memory is its own. For each, the
time per token is set beside the line through the origin and the largest model, and the memory
beside `estimate_training_memory`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window
import matplotlib.pyplot as plt  # noqa: E402
from comparison import machine, report  # noqa: E402

BASE = dict(d_model=256, n_layers=6, context_length=256, batch_size=8)
SWEEPS = {
    # the same context for all, so that parameters are what grows
    "parameters": [
        dict(d_model=width, n_layers=layers, context_length=256, batch_size=8)
        for width, layers in ((128, 5), (192, 6), (256, 8), (384, 8), (512, 12), (768, 14))
    ],
    "d_model": [BASE | dict(d_model=value) for value in (128, 256, 512)],
    "n_layers": [BASE | dict(n_layers=value) for value in (3, 6, 12)],
    "context_length": [BASE | dict(context_length=value) for value in (64, 256, 1024)],
    "batch_size": [BASE | dict(batch_size=value) for value in (2, 8, 32)],
}


def main() -> None:
    """Times each shape in a child, prints the table, draws the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path, help="the file to write (.png, .svg)")
    parser.add_argument("--sweep", choices=SWEEPS, action="append", help="only these")
    parser.add_argument("--json", type=Path, help="the file to write the figures to")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.shape:
        print(json.dumps(_measure(json.loads(options.shape), options.device)))
        return
    found = {
        sweep: [_in_a_child(shape, options) for shape in SWEEPS[sweep]]
        for sweep in options.sweep or SWEEPS
    }
    for sweep, points in found.items():
        slope = points[-1]["ns_per_token"] / points[-1]["n_parameters"]
        rows = [
            (
                f"{point['d_model']} x {point['n_layers']}, {point['context_length']}",
                f"{point['batch_size']}",
                f"{point['n_parameters'] / 1e6:.2f} M",
                f"{1e9 / point['ns_per_token']:,.0f}",
                f"{point['utilisation']:.0%}",
                f"{point['ns_per_token'] / point['n_parameters'] / slope:.2f}",
                f"{point['memory_bytes'] / 2**20:,.0f}",
                f"{point['estimated_bytes'] / point['memory_bytes']:.2f}",
            )
            for point in points
        ]
        columns = (
            "width x layers, context", "batch", "parameters", "tokens/s", "MFU",
            "time per token and parameter, relative", "memory, MiB", "estimate / measured",
        )  # fmt: skip
        report(f"against {sweep}", columns, rows)
    _draw(found, options.picture)
    if options.json:
        document = {"machine": machine(), "results": found}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _in_a_child(shape: dict[str, int], options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "-", "--shape", json.dumps(shape)]
    command += ["--device", options.device]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _measure(shape: dict[str, int], name: str) -> dict[str, float]:
    import torch

    from myllm.config import with_values
    from myllm.model import GPTModel
    from myllm.presets import default_config
    from myllm.system.device import choose_attention, choose_dtype, peak_memory_bytes
    from myllm.train.benchmark import benchmark_training_step, measure_peak_flops
    from myllm.train.memory import estimate_training_memory

    device = torch.device(name)
    values: dict[str, Any] = {
        **shape,
        "vocab_size": 512,
        "n_heads": shape["d_model"] // 64,
        "dropout": 0.0,
    }
    values |= {"attention": choose_attention(device), "device": name}
    config = with_values(default_config("modern"), values)
    peak = measure_peak_flops(device, choose_dtype(device))
    before = peak_memory_bytes(device)
    torch.manual_seed(1)
    model = GPTModel(config.model).to(device)
    B, T = config.train.batch_size, config.model.context_length
    timing = benchmark_training_step(model, B, T, 5, config.train)
    return {
        **shape,
        "n_parameters": model.count_parameters(),
        "ns_per_token": 1e9 / timing.tokens_per_second,
        "utilisation": timing.flops_per_second / peak,
        "memory_bytes": timing.peak_memory_bytes - before,
        "estimated_bytes": estimate_training_memory(config.model, config.train, device),
    }


def _draw(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    figure, rows = plt.subplots(
        2, len(found), figsize=(3.4 * len(found), 5.6), layout="constrained", squeeze=False
    )
    for column, (sweep, points) in enumerate(found.items()):
        key = "n_parameters" if sweep == "parameters" else sweep
        x = [point[key] for point in points]
        speed, memory = rows[0][column], rows[1][column]
        speed.loglog(x, [1e9 / point["ns_per_token"] for point in points], "o-")
        speed.set(title=f"against {sweep}", ylabel="tokens/s" if not column else None)
        memory.loglog(x, [p["memory_bytes"] / 2**20 for p in points], "o-", label="measured")
        memory.loglog(x, [p["estimated_bytes"] / 2**20 for p in points], "x--", label="estimated")
        memory.set(xlabel=sweep, ylabel="memory, MiB" if not column else None)
        memory.legend()
        for axes in (speed, memory):
            axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
