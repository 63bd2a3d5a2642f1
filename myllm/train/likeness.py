"""Room: a text that is measured → how it is related to the one that a run learned from: the same,
a part of it, or quite another. Tells what that means for the figures; changes none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from myllm.config import RunConfig
from myllm.data.prepare import EncodedText
from myllm.data.token_file import SIDECAR, read_sidecar, read_sources
from myllm.errors import AccessError, InputError
from myllm.runs.folder import RunFolder
from myllm.train.evaluate import Evaluation

log = logging.getLogger(__name__)

# Tokens for a byte, as a multiple of the own text's. For an English one of 0.05 to 0.6 MB, other
# English prose took 1.2 to 1.3 times as many, code 1.3 to 1.4, German, French, Spanish 1.5 to 1.8,
# Russian and Japanese 1.8 to 2.3.
FOREIGN = 1.5
LEAST_TOKENS = 64  # of fewer nothing can be said


def tell_if_learned(name: str, text: EncodedText, run: RunFolder, config: RunConfig) -> None:
    """Says so if a text, or files of it, are ones that a run was trained on: known by their
    content alone, so that nothing is said of what merely has the same name."""
    saved = run.checkpoints.metadata().get("text")
    if not isinstance(saved, str):
        return
    total, n_known = len(text.file_hashes), 0
    if text.text_hash == saved:
        n_known = total
    else:
        learned = {str(source.get("sha256")) for source in _learned_files(saved, config)}
        n_known = sum(digest in learned for digest in text.file_hashes)
    if not n_known:
        return
    files = f"{n_known:,} of the {total:,} files of {name} belong"
    what = f"{name} belongs" if n_known == total else files
    log.warning(
        "%s to the text that %s was trained on: this says nothing of new text; without a path, "
        "what was held out of it is measured",
        what, run.name,
    )  # fmt: skip


def _learned_files(text_hash: str, config: RunConfig) -> Iterator[dict[str, Any]]:
    """The files of the text of this hash, where its tokens are still there."""
    places = [Path(path) / SIDECAR for path in config.text.paths]
    places += sorted(Path(config.text.data_dir).glob(f"*/{SIDECAR}"))
    for path in places:
        try:
            if path.is_file() and read_sidecar(path.parent)["text_hash"] == text_hash:
                yield from read_sources(path.parent)
                return
        except (InputError, AccessError, OSError):
            continue  # damaged: then nothing is known of it


def tell_if_foreign(name: str, measured: Evaluation, run: RunFolder) -> None:
    """Says so if a text takes far more tokens than the one that a run's tokenizer was made for."""
    times = strangeness(run, measured.n_tokens, measured.n_bytes)
    if times is not None and times >= FOREIGN:
        log.warning(
            "%s takes %.1f times as many tokens for a byte as the text of %s: its language, "
            "alphabet or kind is another one",
            name, times, run.name,
        )  # fmt: skip


def strangeness(run: RunFolder, n_tokens: int, n_bytes: int) -> float | None:
    """How many times as many tokens a text takes for a byte as the run's own does.

    Args:
        run: whose tokenizer made the tokens.
        n_tokens: of the text.
        n_bytes: that these stand for.

    Returns:
        None if it is not known, or the text is too short to tell.
    """
    facts = run.checkpoints.metadata()
    own_tokens, own_bytes = facts.get("n_tokens"), facts.get("n_bytes")
    if not (type(own_tokens) is type(own_bytes) is int and own_tokens and n_bytes):
        return None
    return None if n_tokens < LEAST_TOKENS else n_tokens / n_bytes / (own_tokens / own_bytes)
