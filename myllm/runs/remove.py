"""Room: runs that are not needed any more, or parts of them → gone from the disk. No torch.

What this program did not make is never removed, and a run that is in use is left alone. What goes
is renamed first: a crash leaves a run as it was, or something that no longer counts as one.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from myllm.errors import InputError
from myllm.registry import listed
from myllm.runs.checkpoint import BEST, CONFIG, LAST, MANIFEST, MODEL, OPTIMIZER, SMALL, STATE
from myllm.runs.folder import RunFolder
from myllm.runs.summary import size_of
from myllm.system.atomic import (
    TEMPORARY,
    Damaged,
    discard_unfinished,
    disk,
    listing,
    read_manifest,
    write_errors,
)
from myllm.system.locks import made_by_one_process

OWN_FILES = {*SMALL, LAST, BEST, "trace.json"}
CHECKPOINT_FILES = {*SMALL, MODEL, OPTIMIZER, STATE, MANIFEST}
CHECKPOINT = re.compile(r"step-\d{6,}(\.damaged-\d+)?")
EVENTS = "events.out.tfevents."  # how the names of TensorBoard's files begin


def check_removable(run: RunFolder) -> None:
    """Raises `InputError` if the folder of a run is not just that: a link, a folder that is not
    called by its name, or one that holds what this program did not make."""
    path = run.path
    if path.is_symlink():
        raise InputError(
            f"{path} is a link to {path.resolve()}: name that one, or delete the link yourself"
        )
    if path.name in ("", ".."):
        raise InputError(f"{path} is not the name of a run: call it by the name of its folder")
    if not run.checkpoints.steps() and not (path / "tokenizer.json").is_file():
        raise InputError(f"{path} holds a {CONFIG} and nothing else of a run: it stays")
    if foreign := _foreign_in(path):
        raise InputError(
            f"{path} also holds what MyLLM did not make ({listed(foreign, 3)}): move that "
            "elsewhere, or delete the folder yourself"
        )


def _foreign_in(run: Path) -> list[str]:
    """The entries of a run's folder that are not of a run."""
    found: list[str] = []
    for path in listing(run):
        if path.name.startswith(TEMPORARY):
            continue
        if path.is_symlink():
            found.append(path.name)
        elif path.is_dir():
            names = _foreign_names(path) if CHECKPOINT.fullmatch(path.name) else [""]
            found += [f"{path.name}/{name}" for name in names]
        elif path.name not in OWN_FILES and not path.name.startswith(EVENTS):
            found.append(path.name)
    return found


def _foreign_names(checkpoint: Path) -> list[str]:
    known = {*CHECKPOINT_FILES}
    with contextlib.suppress(Damaged):
        known |= set(read_manifest(checkpoint, MANIFEST)["files"])
    paths = [path for path in listing(checkpoint) if not path.name.startswith(TEMPORARY)]
    return [path.name for path in paths if path.name not in known or not path.is_file()]


def delete_run(run: RunFolder) -> int:
    """Deletes a run with all its checkpoints. Its text and that text's tokens stay.

    Returns:
        The bytes that it took.

    Raises:
        InputError: it is in use, or its folder holds anything else.
    """
    check_removable(run)
    with _locked(run):
        n_bytes, path = size_of(run.path), run.path
        # the name by which a new run of this name would look for remains
        doomed = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
        with write_errors(f"delete {run.name}", path.parent, 1 << 12):
            with made_by_one_process(path):
                if os.name == "nt":
                    run.unlock()  # a folder with an open file in it cannot be renamed there
                disk.rename(path, doomed)
                disk.sync(path.parent)
                disk.remove(doomed)
    return n_bytes


@contextmanager
def _locked(run: RunFolder) -> Iterator[None]:
    run.lock()
    try:
        yield
    finally:
        run.unlock()


def sweep(runs_dir: Path) -> None:
    """Removes what a deletion that was cut off has left in a folder of runs."""
    for path in sorted(runs_dir.glob(f"{TEMPORARY}*")):
        found = re.fullmatch(re.escape(TEMPORARY) + r"(.+)-\d+", path.name)
        if found and path.is_dir():
            with write_errors("remove what is left of a run", runs_dir, 1 << 12):
                with made_by_one_process(runs_dir / found[1]):
                    pass  # which removes it


# ------------------------------------------------------------------------------ parts of a run


@dataclass(frozen=True)
class Pruning:
    """What of a run is not needed to use its model.

    Attributes:
        folders: checkpoints besides the best and the last one, and what was set aside as damaged.
        stripped: the steps of checkpoints that lose the optimizer's state.
        n_bytes: what that frees.
    """

    folders: list[Path]
    stripped: list[int]
    n_bytes: int


def plan_pruning(run: RunFolder) -> Pruning:
    """What `prune_run` would remove: all checkpoints but the best and the last good one; of a run
    that has done all its steps, the optimizer's state, too, which only resuming it needs.

    Raises:
        CheckpointError: no checkpoint is good, so nothing may go.
        InputError: its configuration cannot be read.
    """
    store = run.checkpoints
    if (last := store.newest_good()) is None:
        return Pruning([], [], 0)
    best = store.best_step()
    kept = [step for step in store.steps() if step in (best, last)]
    own = [p for p in listing(run.path) if CHECKPOINT.fullmatch(p.name) and not p.is_symlink()]
    folders = [path for path in own if path not in [store.folder(step) for step in kept]]
    sizes = {step: _optimizer_size(store.folder(step)) for step in kept}
    finished = last >= run.config.train.max_steps
    stripped = [s for s, size in sizes.items() if finished and size and store.is_good(s)]
    n_bytes = sum(map(size_of, folders)) + sum(sizes[step] for step in stripped)
    return Pruning(folders, stripped, n_bytes)


def _optimizer_size(checkpoint: Path) -> int:
    path = checkpoint / OPTIMIZER
    return path.stat().st_size if path.is_file() else 0


def prune_run(run: RunFolder) -> Pruning:
    """Removes from a run what using its model does not need (see `plan_pruning`).

    Returns:
        What was removed.

    Raises:
        InputError: it is in use, or its folder holds anything else.
    """
    check_removable(run)
    with _locked(run), write_errors(f"prune {run.name}", run.path, 1 << 16):
        plan = plan_pruning(run)
        for step in run.checkpoints.steps():
            discard_unfinished(run.checkpoints.folder(step))  # of one that was cut off
        for step in plan.stripped:
            run.checkpoints.strip(step)
        for path in plan.folders:
            doomed = run.path / f"{TEMPORARY}{path.name}-{os.getpid()}"
            disk.rename(path, doomed)
            disk.remove(doomed)
    return plan
