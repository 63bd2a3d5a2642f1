"""How much memory an export takes, over the size of the model's weights.

python benchmarks/export_memory.py --parameters 1e9

Makes a run with random weights in a temporary folder and exports it in processes of their own.
The most memory that one held is its resident set's peak, pages of mapped files included.
Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from comparison import report

from myllm.config import RunConfig
from myllm.model import GPTModel
from myllm.presets import default_config
from myllm.runs.checkpoint import Checkpoint
from myllm.runs.folder import RunFolder
from myllm.runs.weights import model_tensors
from myllm.tokenizer import CharTokenizer
from myllm.train.state import TrainState

EXPORT = """
import sys
from myllm.cli import main
code = main(sys.argv[1:])
lines = open("/proc/self/status", encoding="ascii")  # getrusage would give the parent's peak
print([1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")][0])
sys.exit(code)
"""
ROADS = {
    "hf": ["--to", "hf", "--no-verify"],
    "hf, read back": ["--to", "hf"],
    "gguf f32": ["--to", "gguf", "--no-verify"],
    "gguf q8_0": ["--to", "gguf", "--quantize", "q8_0", "--no-verify"],
}


@dataclass(frozen=True)
class Export:
    """One export.

    Attributes:
        road: a key of `ROADS`.
        peak: bytes held at most.
        weights: bytes of the model's weights.
        seconds: that it took.
    """

    road: str
    peak: int
    weights: int
    seconds: float

    @property
    def ratio(self) -> float:
        """Memory over size."""
        return self.peak / self.weights


def main() -> None:
    """Exports along each road, prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parameters", type=float, default=1e9, help="about so many")
    parser.add_argument("--preset", default="modern", help="layout: modern, gpt2, llama")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder), options.parameters, options.preset)
        exports = list(exported(run, ROADS))
    rows = [(e.road, f"{e.peak / 1e9:.2f}", f"{e.ratio:.2f}", f"{e.seconds:.0f}") for e in exports]
    size = exports[0].weights / 1e9
    report(
        f"{options.preset}, weights of {size:.2f} GB",
        ("", "most memory, GB", "ratio", "seconds"),
        rows,
    )


def make_run(folder: Path, n_parameters: float, preset: str = "modern") -> RunFolder:
    """A run of a random float32 model, 2,048 wide and as deep as that number asks for."""
    tokenizer = CharTokenizer().train("abcdefghijklmnopqrstuvwxyz ,.\n")
    width = 2048
    shape = replace(
        default_config(preset).model, vocab_size=tokenizer.vocab_size, d_model=width,
        n_heads=16, n_layers=max(1, round(n_parameters / (12 * width**2))), d_ff=None,
        context_length=256,
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in model_tensors(GPTModel(shape)).items()}
    weights = {name: 0.02 * torch.randn(size) for name, size in shapes.items()}
    run = RunFolder.create(folder, "run", RunConfig(preset=preset, model=shape), tokenizer)
    state = {"progress": TrainState().to_json(), "scaler": {}}
    run.checkpoints.save(Checkpoint(1, weights, {}, state, {}, run.small_files()), True, 2)
    return run


def exported(run: RunFolder, roads: dict[str, list[str]]) -> Iterator[Export]:
    """Exports a run along each of these roads."""
    weights = (run.checkpoints.folder(1) / "model.safetensors").stat().st_size
    for road, flags in roads.items():
        with tempfile.TemporaryDirectory(dir=run.path.parent) as folder:
            out = str(Path(folder) / "out")
            command = [sys.executable, "-c", EXPORT, "export", str(run.path), "--out", out, *flags]
            began = time.monotonic()
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            seconds = time.monotonic() - began
        yield Export(road, int(done.stdout.splitlines()[-1]), weights, seconds)


if __name__ == "__main__":
    main()
