"""Room: a run → whether its model has seen where documents begin. Knows nothing of models."""

from __future__ import annotations

from myllm.runs.folder import RunFolder


def knows_beginnings(run: RunFolder) -> bool:
    """Whether the model of a run has seen a document begin after end of text: one that learned
    from a single document has not, and what it writes there is noise.

    Others' models have; of an older run it is not known, and then a line begins as well.
    """
    metadata = run.checkpoints.metadata()
    return bool(metadata.get("knows_beginnings", "imported_from" in metadata))
