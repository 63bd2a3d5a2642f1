"""Room: a checkpoint's weights ↔ a model. Knows nothing of training."""

from __future__ import annotations

import torch
from torch import Tensor

from myllm.config import from_toml
from myllm.errors import CheckpointError, InputError
from myllm.model.gpt import GPTModel, RotaryPosition
from myllm.runs.checkpoint import CONFIG, TOKENIZER, Checkpoint
from myllm.runs.folder import RunFolder
from myllm.system.device import shapes_only
from myllm.tokenizer import Tokenizer


def load_model(
    run: RunFolder, device: torch.device | str = "cpu"
) -> tuple[GPTModel, Tokenizer, Checkpoint]:
    """The chosen model of a run, ready to use, with its tokenizer and the checkpoint it came from.

    Raises:
        CheckpointError: no good checkpoint, or its weights are not of the configured shape.
    """
    checkpoint = run.checkpoints.load(run.checkpoints.chosen, with_optimizer=False)
    folder = run.checkpoints.folder(checkpoint.step)
    try:
        config, tokenizer = from_toml(folder / CONFIG).model, Tokenizer.load(folder / TOKENIZER)
    except InputError as error:
        raise CheckpointError(f"the checkpoint of step {checkpoint.step}: {error}") from None
    with shapes_only():  # takes no memory, whatever a configuration claims
        model = GPTModel(config)
    _check_shapes(model, checkpoint)
    # The checkpoint's tensors become the model's: memory holds them once. Imported bfloat16
    # weights stay so.
    model.load_state_dict(_state_dict(model, checkpoint), assign=True)
    if config.tie_weights:
        model.lm_head.weight = model.token_embedding.weight
    model = model.to(checkpoint.model["token_embedding.weight"].dtype)
    if model.rotary is not None:
        model.rotary = RotaryPosition(config)  # its table follows from the configuration
    return model.to(device).eval(), tokenizer, checkpoint


def load_weights(model: GPTModel, checkpoint: Checkpoint) -> None:
    """Copies a checkpoint's weights into `model`.

    Raises:
        CheckpointError: other names or shapes than the model's.
    """
    _check_shapes(model, checkpoint)
    model.load_state_dict(_state_dict(model, checkpoint))


def _state_dict(model: GPTModel, checkpoint: Checkpoint) -> dict[str, Tensor]:
    weights = dict(checkpoint.model)
    if model.config.tie_weights:
        weights["lm_head.weight"] = weights["token_embedding.weight"]
    return weights


def _check_shapes(model: GPTModel, checkpoint: Checkpoint) -> None:
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint.model.items()}
    wrong = [n for n in {**expected, **found} if expected.get(n) != found.get(n)]
    if wrong:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} does not fit its {CONFIG}: {wrong[0]} is "
            f"{found.get(wrong[0], 'missing')}, not {expected.get(wrong[0], 'expected at all')}"
        )


def model_tensors(model: GPTModel) -> dict[str, Tensor]:
    """The weights to save: each once, tied ones under the embedding's name."""
    return {name: p.detach() for name, p in model.named_parameters()}
