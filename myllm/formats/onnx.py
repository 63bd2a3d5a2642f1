"""Room: a run → an ONNX graph that reads tokens and a cache, with its tokenizer.

Knows nothing of training.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from myllm.errors import InputError
from myllm.formats.hf_export import write_tokenizer
from myllm.formats.place import export_place
from myllm.model.gpt import GPTModel
from myllm.runs.folder import RunFolder
from myllm.runs.weights import load_model
from myllm.system.atomic import finished_folder

GRAPH = "model.onnx"
N_NEW, N_PAST = (
    2,
    3,
)  # tokens that the graph is made with; 0, 1 and equal ones would be fixed in it


def export_onnx(
    run: RunFolder, out: Path, options: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Writes the best model of a run as a folder with an ONNX graph, in float32.

    The graph takes `input_ids` (B, T) and for each layer `past_key_values.{i}.key` and `.value`
    (B, K, P, D), P tokens that may be 0; it gives `logits` (B, T, V) and `present.{i}.key` and
    `.value` (B, K, P + T, D). The names are those that Hugging Face's programs for ONNX use.

    Args:
        run: the run.
        out: the folder to make.
        options: none; all formats are called alike.

    Raises:
        InputError: the packages for it are missing, the context is shorter than five tokens, or
            `out` cannot be written.
        DiskFullError: there is no room for it.
        CheckpointError: no good checkpoint.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError("--to onnx needs two packages: pip install onnx onnxscript") from None
    model, tokenizer, _ = load_model(run)
    if (context := model.config.context_length) < N_NEW + N_PAST:
        raise InputError(
            f"context_length {context}: a graph is made with {N_NEW + N_PAST} tokens, so --to "
            "onnx takes no shorter context; --to hf does"
        )
    n_bytes = 4 * model.count_parameters()
    with export_place(out, n_bytes), finished_folder(out) as folder:
        write_tokenizer(tokenizer, folder, model.config.context_length)
        _write_graph(model.float(), folder / GRAPH)


class PastCache:
    """A `Cache` whose memory is the tensors that the graph is given, as graphs keep nothing.

    Its mask is always spelled out, as a graph is one for all numbers of new and old tokens.
    """

    def __init__(self, past: Sequence[Tensor]) -> None:
        """
        Args:
            past: keys and values (B, K, P, D), those of layer i at 2 i and 2 i + 1.
        """
        self.keys_and_values = list(past)
        self.n_past = past[0].shape[2]

    def start(self, n_rows: int, n_tokens: int, counts: Sequence[int] | None) -> slice:
        """As `Cache.start`; all rows are equally long."""
        assert counts is None
        return slice(self.n_past, self.n_past + n_tokens)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Cache.update`."""
        for i, new in ((2 * layer, k), (2 * layer + 1, v)):
            self.keys_and_values[i] = torch.cat((self.keys_and_values[i], new), dim=2)
        keys, values = self.keys_and_values[2 * layer : 2 * layer + 2]  # (B, K, S, D) each
        T, S = k.shape[2], keys.shape[2]
        mask = torch.arange(S) <= torch.arange(T)[:, None] + (S - T)  # (T, S)
        return keys, values, mask

    def advance(self) -> None:
        """Nothing: a graph ends here."""


class _Graph(nn.Module):
    """Tokens and a cache → logits and the longer cache."""

    def __init__(self, model: GPTModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        cache = PastCache(past)
        return self.model(tokens, cache), cache.keys_and_values


def _write_graph(model: GPTModel, path: Path) -> None:
    config = model.config
    names = [f"{i}.{kind}" for i in range(config.n_layers) for kind in ("key", "value")]
    past = [torch.zeros(2, config.kv_heads, N_PAST, config.head_size) for _ in names]
    dim = torch.export.Dim
    batch, time, held = dim("batch"), dim("time"), dim("past")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages not needed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Graph(model).eval(),
            (torch.zeros(2, N_NEW, dtype=torch.long), past),
            input_names=["input_ids", *(f"past_key_values.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            dynamic_shapes=({0: batch, 1: time}, [{0: batch, 2: held} for _ in names]),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(path)
