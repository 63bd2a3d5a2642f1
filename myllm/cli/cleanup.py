"""Room: `myllm runs delete` and `myllm runs prune`: runs, or parts of them, away after a question.

No torch: these answer at once.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from myllm.cli.named import SomeRuns, named_runs
from myllm.cli.verb import Verb
from myllm.errors import InputError, MyLLMError
from myllm.system.units import short_bytes


@dataclass(frozen=True)
class DeleteOptions(SomeRuns):
    """Delete runs, with all their checkpoints; their texts stay."""

    yes: bool = False  # do not ask


def delete(options: DeleteOptions) -> None:
    """Asks, and deletes."""
    from myllm.runs.remove import check_removable, delete_run, sweep
    from myllm.runs.summary import size_of
    from myllm.system.terminal import say

    runs = named_runs(options, "runs delete RUN")
    for run in runs:
        check_removable(run)  # all of them before the first one goes
    what = ", ".join(str(run.path) for run in runs)
    size = short_bytes(sum(size_of(run.path) for run in runs))
    if not options.yes and not _agreed(f"delete {what} ({size}) for good?"):
        raise InputError(f"{what}: not deleted; --yes deletes without asking")
    for run in runs:
        say(f"{run.path}: deleted, {short_bytes(delete_run(run))} freed")
    sweep(Path(options.runs_dir))


@dataclass(frozen=True)
class PruneOptions(SomeRuns):
    """Remove from runs what using their models does not need: all checkpoints but the best and the
    last, and of finished runs what only resuming them needs."""

    yes: bool = False  # do not ask


def prune(options: PruneOptions) -> None:
    """Tells what would go and what that costs, asks, and removes it."""
    from myllm.runs.folder import all_runs
    from myllm.runs.remove import check_removable, plan_pruning, prune_run, sweep
    from myllm.system.terminal import say

    named = named_runs(options, "runs prune RUN") if options.runs else []
    plans = []
    for run in named or all_runs(Path(options.runs_dir)):
        try:
            check_removable(run)
            plans.append((run, plan_pruning(run)))
        except MyLLMError as error:
            if named:
                raise
            say(f"{run.name} is left as it is: {error}")
    plans = [(run, plan) for run, plan in plans if plan.n_bytes]
    if not plans:
        say("nothing to remove: all that is there is needed")
        return
    for run, plan in plans:
        parts = [path.name for path in plan.folders]
        if plan.stripped:
            parts.append("the optimizer's state, without which it cannot be resumed")
        say(f"{run.name}: {short_bytes(plan.n_bytes)}: {', '.join(parts)}")
    total = short_bytes(sum(plan.n_bytes for _, plan in plans))
    say("the best and the last model of each stay, to write, measure, export and begin with")
    if not options.yes and not _agreed(f"remove this for good, and free {total}?"):
        say(f"nothing was removed; --yes removes it and frees {total}")
        return
    freed = sum(prune_run(run).n_bytes for run, _ in plans)
    sweep(Path(options.runs_dir))
    say(f"{short_bytes(freed)} freed")


def _agreed(question: str) -> bool:
    """Whether a person at a terminal says yes; nobody else is asked."""
    from myllm.system.terminal import printable

    if not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        return input(f"{printable(question)} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


VERBS = {
    "runs delete": Verb(DeleteOptions, delete),
    "runs prune": Verb(PruneOptions, prune),
}
