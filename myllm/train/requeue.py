"""Room: `--resume auto`: a command that is given again → the run that it began, or a new one.

A batch system starts the same command anew after it has stopped it. Trains nothing.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from myllm.checks import run_name
from myllm.config import RunConfig, flat_values, read_toml
from myllm.data.sources import text_name
from myllm.errors import InputError
from myllm.presets import resolve, resumed_from
from myllm.runs.folder import RunFolder, is_run
from myllm.system.atomic import discard, listing
from myllm.train.request import Request
from myllm.train.sequences import as_sequences
from myllm.train.session import MOVABLE, Session, build_layers, with_paths

log = logging.getLogger(__name__)

AUTO = "auto"  # what `--resume` takes for it


def decided(request: Request) -> Request:
    """What a request with `resume` set to `auto` asks for; any other as it is.

    Returns:
        It resumes the run of the name that the request gives, if there is one; else it begins it.

    Raises:
        InputError: that run has other settings, or something else has its name.
    """
    if request.resume != AUTO:
        return request
    new = dataclasses.replace(request, resume=None)
    config = resolve(**build_layers(new)).config.validate()
    text = with_paths(config.text)
    name = request.run or run_name(text_name(text))
    path = request.runs_dir / name
    if not is_run(path):
        if path.is_dir() and not listing(path):
            discard(path)
        if path.exists():
            raise InputError(f"{path} is no run: name another --run")
        log.info("there is no run %s yet: it begins", name)
        return dataclasses.replace(new, run=name)
    run = RunFolder(path)
    asked = read_toml(Path(request.file)) if request.file is not None else {}
    asked |= request.flags
    changed = _changed(run, asked)
    if changed:
        raise InputError(
            f"run {name} has other settings than this command: {', '.join(changed)}; name another "
            f"--run, or change the run with --resume {run.resume_name}"
        )
    log.info("run %s is there: it goes on", name)
    where = {"paths": text.paths, "data_dir": text.data_dir}
    return dataclasses.replace(request, run=None, resume=str(path), file=None, flags=where)


def tell_if_finished(session: Session) -> None:
    """Says that a run has nothing left to train."""
    step, last = session.trainer.step, session.trainer.config.max_steps
    if step >= last:
        log.info("run %s is finished: it has done its %d steps", session.run.name, last)


def _changed(run: RunFolder, asked: dict[str, Any]) -> list[str]:
    """The settings that the run would not have if it had been begun with those of `asked`."""
    saved = run.config
    old = flat_values(saved)
    if saved.from_run is not None:
        asked = as_sequences(asked, saved.from_run, saved.model)
    new = flat_values(resolve(base=resumed_from(saved), flags=asked).config)
    same = {*MOVABLE, "data", *_fitted(saved, new)}
    return [f"{n} {old[n]} → {new[n]}" for n in asked if n not in same and new[n] != old[n]]


def _fitted(saved: RunConfig, new: dict[str, Any]) -> list[str]:
    """The settings that a run itself has fitted to its text and its memory."""
    fits = {"context_length", "vocab_size", "sequence_length"}
    old = flat_values(saved)
    names = [n for n in fits if None not in (old[n], new[n]) and old[n] <= new[n]]
    names += [] if new["vocab_size"] else ["vocab_size"]  # 0: chosen from the text's length
    sequences = saved.train.batch_size * saved.train.accumulation_steps
    if sequences == new["batch_size"] * new["accumulation_steps"]:
        names += ["batch_size", "accumulation_steps"]
    return names
