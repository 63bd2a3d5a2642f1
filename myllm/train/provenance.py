"""Room: what a checkpoint is made from → its manifest, and whether a run may continue from it.

Knows nothing of the loop.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch

from myllm.data.held_out import first_line, unigram_loss, unseen_tokens
from myllm.data.token_file import TokenFile
from myllm.errors import InputError
from myllm.runs.checkpoint import Checkpoint
from myllm.runs.folder import RunFolder
from myllm.runs.taught import knows_beginnings, never_taught

log = logging.getLogger(__name__)


@dataclass
class Provenance:
    """What checkpoints tell of where they come from.

    Attributes:
        fingerprint: hashes that a checkpoint must share to be resumed, by what they are of.
        facts: what is told of the text and the model besides; a resumed run keeps those that it
            began with.
    """

    fingerprint: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def metadata(self, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """What a checkpoint's manifest says."""
        return {
            **self.facts,
            **self.fingerprint,
            **_versions(),
            "device": device.type,
            "dtype": str(dtype).removeprefix("torch."),
            "world_size": 1,
        }

    def take_up(self, checkpoint: Checkpoint, name: str) -> None:
        """Continues from a checkpoint of the run of that name; tells what is different now.

        Raises:
            InputError: it was made from another text or tokenizer.
        """
        metadata = checkpoint.metadata
        for what, wanted in self.fingerprint.items():
            saved = str(metadata.get(what))
            if saved != wanted:
                raise InputError(
                    f"cannot resume {name}: its {what} was another one ({saved[:12]}…, now "
                    f"{wanted[:12]}…); bring back the old {what}, or start a new run"
                )
        for what, value in _versions().items():
            if metadata.get(what) != value:
                log.warning(
                    "%s: %s when it was saved, %s now; the run continues, though not bit for bit "
                    "as it would have", what, metadata.get(what), value,
                )  # fmt: skip
        self.facts |= {name: metadata[name] for name in self.facts if name in metadata}


def provenance_of(token_file: TokenFile, n_parameters: int, begun: RunFolder | None) -> Provenance:
    """What a new run's checkpoints tell.

    Args:
        token_file: its text.
        n_parameters: of its model.
        begun: the run whose model it begins with; what that has seen, this one has.
    """
    unseen = set(unseen_tokens(token_file))
    return Provenance(
        fingerprint={
            "text": token_file.text_hash,
            "tokenizer": token_file.tokenizer.content_hash,
        },
        facts={
            "n_characters": token_file.n_characters,
            "n_bytes": token_file.n_bytes,
            "n_tokens": token_file.n_tokens,
            "n_documents": token_file.n_documents,
            "n_parameters": n_parameters,
            "n_train_tokens": token_file.n_train_tokens,
            "n_val_tokens": token_file.n_val_tokens,
            "unigram_loss": unigram_loss(token_file),
            "beginning": first_line(token_file),
            "knows_beginnings": token_file.n_documents > 1
            or (begun is not None and knows_beginnings(begun)),
            "unseen_tokens": sorted(unseen & set(never_taught(begun)) if begun else unseen),
        },
    )


def _versions() -> dict[str, Any]:
    """What the same bits depend on."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}
