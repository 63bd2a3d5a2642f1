"""Room: what was asked for (`Request`) → what in it contradicts is refused, in one line.

Nothing that a person names is ignored: it has its effect, or it is refused. Knows nothing of texts
or training.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from myllm.config import GPTConfig, RunConfig, field_types, flat_values
from myllm.data.token_file import TokenFile
from myllm.errors import ConfigError
from myllm.kinds import ATTENTIONS, SCHEDULES, TOKENIZERS
from myllm.presets import Resolved
from myllm.runs.folder import RunFolder, find_run
from myllm.tokenizer import BPETokenizer

log = logging.getLogger(__name__)

# of a run that continues: what another value of cannot have an effect, and what to do instead
DECIDED = {
    "from_run": "it has a model already; --from begins a new run",
    "data": "it goes on with its own text; --from begins a new run on another one",
    "minutes": "its plan is made; --max-steps says how far it goes",
}


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        flags: settings by name.
        file: a TOML file of settings that the flags go before.
        run: the new run's name; by default it is named after the text.
        resume: the run to continue, by name or path, instead of a new one.
        runs_dir: the folder of runs.
        began: when the program did, by `time.monotonic`; `minutes` counts from there.
    """

    flags: Mapping[str, Any]
    file: str | None = None
    run: str | None = None
    resume: str | None = None
    runs_dir: Path = Path("checkpoints")
    began: float = field(default_factory=time.monotonic)


def resumed_name(resume: str | bool | None, runs_dir: Path) -> str | None:
    """The run to continue, by name or path; `True` stands for the newest, which is announced.

    Raises:
        InputError: there is none.
    """
    if resume is not True:
        return None if resume is None or resume is False else str(resume)
    run = find_run(runs_dir)
    log.info("continuing %s, the newest run", run.name)
    return str(run.path)


def check_resumed(request: Request, named: Mapping[str, Any], saved: RunConfig) -> None:
    """Raises `ConfigError` if a run that continues is asked for something that it cannot do.

    Args:
        request: which run.
        named: settings, of file and flags.
        saved: those of the run.
    """
    if request.run is not None:
        raise ConfigError(
            f"--resume {request.resume} continues that run, --run {request.run} names a new one: "
            "give one of them"
        )
    old = flat_values(saved)
    if not _agree(named.get("attention"), saved):
        raise ConfigError(
            f"--attention {named['attention']} with --resume {request.resume}: it computes "
            f"something else than {old['attention']}, with which it was trained; leave it out"
        )
    for name, reason in DECIDED.items():
        if named.get(name) is not None and named[name] != old[name]:
            flag = "from" if name == "from_run" else name
            raise ConfigError(f"--{flag} {named[name]} with --resume {request.resume}: {reason}")


def _agree(attention: Any, config: RunConfig) -> bool:
    """Whether a trained model may be given this attention: the same, or one that computes what
    its own does."""
    own = config.model.attention or "flash"
    return (
        not isinstance(attention, str)
        or attention == own
        or (ATTENTIONS[attention].is_standard and ATTENTIONS[own].is_standard)
    )


def check_begun(run: RunFolder, named: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if a new run is to begin with a model, and with another one."""
    config = run.config
    old = {**flat_values(config), "size": None}
    free = {"dropout", "attention"} if _agree(named.get("attention"), config) else {"dropout"}
    if config.model.position == "rotary":
        free.add("context_length")
    fixed = {"preset", "size", "tokenizer", *field_types(GPTConfig)} - free
    if named.get("tokenizer") is not None:
        old["tokenizer"] = run.tokenizer.kind
    changed = [f"{n} {old[n]} → {v}" for n, v in named.items() if n in fixed and v != old[n]]
    if changed:
        raise ConfigError(
            f"cannot begin with {run.name} and another model: {', '.join(changed)}; leave these "
            "settings out"
        )


# settings, whether they have an effect, and what they have it with
NEEDED: tuple[tuple[tuple[str, ...], Callable[[RunConfig], bool], str], ...] = (
    (
        ("rope_theta", "rope_factor"),
        lambda config: config.model.position == "rotary",
        "--position rotary",
    ),
    (
        ("rope_low_freq_factor", "rope_high_freq_factor", "rope_original_context"),
        lambda config: config.model.rope_factor != 1.0,
        "--rope-factor above 1",
    ),
    (
        ("min_learning_rate",),
        lambda config: SCHEDULES[config.train.schedule](1.0) < 1.0,
        "a --schedule that decays",
    ),
    (
        ("vocab_size",),
        lambda config: bool(config.from_run or not config.model.vocab_size)
        or TOKENIZERS[config.text.tokenizer].has_size,
        "--tokenizer bpe (one of characters has as many tokens as there are characters)",
    ),
)


def check_effects(resolved: Resolved) -> None:
    """Raises `ConfigError` for a flag that changes nothing, or contradicts, beside the others."""
    train = resolved.config.train
    if train.epochs is not None and train.minutes is not None:
        raise ConfigError(
            f"epochs {train.epochs:g} and minutes {train.minutes:g}: both say how long to train; "
            "give one of them"
        )
    values, defaults = flat_values(resolved.config), flat_values(RunConfig())
    for names, has_effect, needed in NEEDED:
        for name in names:
            given = resolved.sources[name] == "flags" and values[name] != defaults[name]
            if given and not has_effect(resolved.config):
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {values[name]} has an effect only with {needed}")


def check_prepared(resolved: Resolved, token_file: TokenFile) -> None:
    """Raises `ConfigError` if a text that was prepared before is to be read in another way."""
    text = resolved.config.text
    if [Path(path) for path in text.paths] != [token_file.folder]:
        return
    tokenizer = token_file.tokenizer
    made = {"tokenizer": tokenizer.kind, "vocab_size": tokenizer.vocab_size}
    made |= {"encoding": "utf-8", "encoding_errors": "strict"}  # their defaults
    values = flat_values(resolved.config)
    if isinstance(tokenizer, BPETokenizer) and values["vocab_size"] == tokenizer.target_vocab_size:
        values["vocab_size"] = tokenizer.vocab_size  # a short text gives fewer than were asked for
    for name, value in made.items():
        if resolved.chosen(name) and values[name] not in (value, 0):
            flag = name.replace("_", "-")
            raise ConfigError(
                f"--{flag} {values[name]}: {token_file.folder} was prepared before, with "
                f"{made['vocab_size']} tokens of a {made['tokenizer']} tokenizer; leave it out, "
                "or name the text itself"
            )
