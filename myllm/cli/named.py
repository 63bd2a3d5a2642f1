"""Room: names on the command line → runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from myllm.cli.parse import Common, Computing
from myllm.config import positional
from myllm.errors import InputError
from myllm.system.importing import quick_imports

if TYPE_CHECKING:
    from myllm.run import Run
    from myllm.runs.folder import RunFolder


@dataclass(frozen=True)
class SomeRuns(Common):
    """What a verb has that takes several runs."""

    runs: tuple[str, ...] = positional(())  # names or folders of runs


def loaded(options: Computing) -> Run:
    """The run that is named, or the newest one, with the checkpoint that is named.

    Raises:
        InputError, ConfigError: there is none; see `api.load`.
    """
    with quick_imports():
        from myllm import api

    return api.load(
        options.run, options.runs_dir, options.device, options.threads, options.checkpoint
    )


def named_runs(options: SomeRuns, usage: str) -> list[RunFolder]:
    """The runs that are named, each once.

    Raises:
        InputError: one is not there, or none is named.
    """
    from myllm.runs.folder import find_run

    runs = [find_run(Path(options.runs_dir), name) for name in dict.fromkeys(options.runs)]
    if not runs:
        raise InputError(f"no run is named: myllm {usage} (myllm runs lists them)")
    return runs
