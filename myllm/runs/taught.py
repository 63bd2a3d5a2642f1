"""Room: a run → what its model has seen of text: where documents begin, which tokens never came.

Knows nothing of models.
"""

from __future__ import annotations

from myllm.runs.folder import RunFolder


def knows_beginnings(run: RunFolder) -> bool:
    """Whether the model of a run has seen a document begin after end of text: one that learned
    from a single document has not, and what it writes there is noise.

    Others' models have; of an older run it is not known, and then a line begins as well.
    """
    metadata = run.checkpoints.metadata()
    return bool(metadata.get("knows_beginnings", "imported_from" in metadata))


def never_taught(run: RunFolder) -> list[int]:
    """The ids of the tokens that occur nowhere in what the model of a run has learned from: what
    it gives them is noise. Of others' models and older runs none is known."""
    found = run.checkpoints.metadata().get("unseen_tokens")
    return [id for id in found if type(id) is int] if isinstance(found, list) else []


def a_beginning(run: RunFolder) -> str | None:
    """How a text of the kind that a run learned from may begin; None where that is not known."""
    found = run.checkpoints.metadata().get("beginning")
    return found if isinstance(found, str) and found else None
