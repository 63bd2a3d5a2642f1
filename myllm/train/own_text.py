"""Room: a run → the text that it learns from, if that is still there and the same.

Knows nothing of the loop.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from myllm.config import RunConfig
from myllm.data.prepare import is_prepared, prepare
from myllm.data.token_file import TokenFile, read_sidecar
from myllm.errors import InputError
from myllm.runs.folder import RunFolder
from myllm.system.shell import quoted
from myllm.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MOST_UNKNOWN = 0.5  # of a text's characters: beyond it a model would learn the unknown one
BLOCK = 1 << 24  # ids counted at once


def own_text(
    run: RunFolder, config: RunConfig, tokenizer: Tokenizer, other: str = ""
) -> TokenFile:
    """The text that a run was trained on, as tokens.

    Args:
        run: which.
        config: where its text is, and how it is read.
        tokenizer: the run's.
        other: what else can be done, for messages.

    Raises:
        InputError: the text is missing, or it is another one by now.
    """
    moved = f"if it lies elsewhere now: myllm train NEW-PATH --resume {run.resume_name}{other}"
    for path in config.text.paths:
        if not os.path.lexists(path):
            raise InputError(f"the text of {run.name} is missing: no such file: {path}; {moved}")
    is_moved = config.text.paths != run.config.text.paths
    if not is_moved and is_prepared(config.text):
        path = config.text.paths[0]
        if read_sidecar(Path(path))["tokenizer_hash"] != tokenizer.content_hash:
            raise InputError(
                f"{path}, the text of {run.name}, has another tokenizer than that run: bring back "
                f"the folder as it was; {moved}"
            )
    token_file = prepare(config.text, config.model.vocab_size, tokenizer)
    saved = run.checkpoints.metadata().get("text")
    if not isinstance(saved, str) or saved == token_file.text_hash:
        return token_file
    if is_moved:
        words = " ".join(map(quoted, config.text.paths))
        raise InputError(
            f"{words} is not the text that {run.name} was trained on; to train its model on that "
            f"one: myllm train {words} --from {run.resume_name}"
        )
    raise InputError(
        f"the text of {run.name} has changed since it was trained ({saved[:12]}…, now "
        f"{token_file.text_hash[:12]}…): bring back the old text; {moved}"
    )


def check_known(name: str, tokenizer: Tokenizer, ids: np.ndarray) -> None:
    """Tells of characters that a tokenizer lacks; refuses a text that is mostly such ones.

    Args:
        name: of the run whose tokenizer it is.
        tokenizer: which made the ids.
        ids: of the text (n,).

    Raises:
        InputError: more than half of them are unknown.
    """
    blocks = range(0, len(ids), BLOCK)
    n_unknown = sum(tokenizer.count_unknown(ids[start : start + BLOCK]) for start in blocks)
    share = n_unknown / max(1, len(ids))
    if share > MOST_UNKNOWN:
        raise InputError(
            f"only {1 - share:.0%} of this text's characters are known to {name}: train a new "
            "model on it, without --from"
        )
    if n_unknown:
        log.warning(
            "%s of this text's characters (%s) are unknown to %s, which cannot tell them apart",
            f"{n_unknown:,}", f"{share:.2%}", name,
        )  # fmt: skip
