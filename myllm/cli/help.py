"""Room: the verbs and their options → what `--help` shows. Knows nothing of what they do.

A verb with many flags shows those of `BASIC` in `--help`, and all in `--help-all`: a new field is
an advanced one until it is named there.
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from myllm.cli.choices import CHOICES, noun
from myllm.cli.parse import Common, Flag, flags_of
from myllm.cli.verb import Verb
from myllm.config import SETTINGS, DataConfig, GPTConfig, SamplingConfig, TrainConfig, flat_values
from myllm.kinds import Kinds
from myllm.presets import default_config
from myllm.reading import Reading

FEW = 24  # flags that are shown all at once
NARROWEST, USUAL, WIDEST = 60, 80, 98  # columns; the usual ones where there is no terminal
COLUMN = 24  # where explanations begin

BASIC: dict[str, tuple[str, ...]] = {
    "text": ("paths", "data", "tokenizer", "vocab_size"),
    "size": ("size", "preset", "d_model", "n_layers", "n_heads", "context_length"),
    "time": ("minutes", "epochs", "max_steps", "iterations"),
    "training": (
        "batch_size", "learning_rate", "dropout", "eval_interval", "patience", "device", "against",
        "seed",
    ),
    "writing": (
        "prompt", "max_new_tokens", "temperature", "top_k", "top_p", "stop", "sample_seed",
    ),
    "run": (
        "run", "resume", "from_run", "config", "runs_dir", "quiet", "show_settings",
    ),
}  # fmt: skip
SECTIONS: dict[type[Any], str] = {
    DataConfig: "text",
    Reading: "text",
    GPTConfig: "model",
    TrainConfig: "training",
    SamplingConfig: "sampling",
}  # of the fields that several verbs share
OVERVIEW: dict[str, tuple[str, ...]] = {
    "make a model": ("train", "prepare", "import"),
    "use it": ("generate", "write", "chat", "evaluate", "export"),
    "look after it": ("runs", "verify", "inspect-batch", "benchmark"),
}
QUICK_START = (
    "myllm train novel.txt",
    'myllm generate "Once upon a time"',
    "myllm write",
)


def overview(verbs: Mapping[str, Verb]) -> str:
    """What `myllm` alone shows: how to begin, and every verb with what it does."""
    lines = ["usage: myllm VERB [OPTIONS]", "", "to begin with:"]
    lines += [f"  {line}" for line in QUICK_START]
    placed = {name for names in OVERVIEW.values() for name in names}
    groups = {**OVERVIEW, "more": tuple(n for n in verbs if n not in placed and " " not in n)}
    for title, names in groups.items():
        rows = [(name, summary(verbs[name].options)) for name in names if name in verbs]
        lines += _group(title, rows, column=17) if rows else []
    return "\n".join([*lines, "", "myllm VERB --help shows the options of a verb."])


def help_of(options: type[Any], verb: str, everything: bool, values: Mapping[str, Any]) -> str:
    """The help of a verb.

    Args:
        options: its dataclass.
        verb: its name.
        everything: whether to show the advanced flags, too.
        values: the flags that stand beside `--help`; the defaults are those of the preset and the
            size among them.
    """
    flags = sorted(flags_of(options), key=lambda flag: _rank(flag, options))
    places = [f"[{f.flag.upper()}{' ...' * f.is_list}]" for f in flags if f.positional]
    preset, size = values.get("preset") or "modern", values.get("size") or "cpu"
    sized = any(flag.name == "preset" for flag in flags)
    defaults = flat_values(default_config(preset, size)) if sized else {}
    groups = _groups(flags, everything)
    lines = [" ".join(["usage: myllm", verb, *places, "[OPTIONS]"]), ""]
    lines += textwrap.wrap(summary(options), _width())
    lines += [f"  {line}" for line in getattr(options, "EXAMPLES", ())]
    for title, shown in groups.items():
        rows = [(_left(flag), _explained(flag, defaults)) for flag in shown]
        lines += _group(title, rows)
    notes = []
    if hidden := len(flags) - sum(map(len, groups.values())):
        notes.append(f"myllm {verb} --help-all shows {hidden} more.")
    if sized:
        notes.append(f"Defaults are those of --preset {preset} --size {size}.")
    return "\n".join([*lines, *([""] if notes else []), *textwrap.wrap(" ".join(notes), _width())])


def comment_of(owner: type[Any], name: str) -> str:
    """The comment on the line of a field, which is its help."""
    source = inspect.getsource(sys.modules[owner.__module__])
    body = source.partition(f"\nclass {owner.__name__}")[2]
    line = rf"^    {name}: (?:[^#\n]|\n(?!    \w+:))*?  # (.*)$"  # or several, of this field
    found = re.search(line, body, re.MULTILINE)
    return found[1] if found else ""


def _groups(flags: Sequence[Flag], everything: bool) -> dict[str, list[Flag]]:
    """The flags to show by the title above them."""
    few = len(flags) <= FEW
    group = {name: title for title, names in BASIC.items() for name in names}
    found: dict[str, list[Flag]] = {"options": []} if few else {title: [] for title in BASIC}
    for flag in flags:
        section = SECTIONS.get(flag.owner)
        if few:
            title = section if section and not flag.positional else "options"
        else:
            title = group.get(flag.name) or " ".join(filter(None, ["advanced", section]))
        if few or everything or flag.name in group:
            found.setdefault(title, []).append(flag)
    order = {name: i for i, name in enumerate(group)}
    for title in BASIC if not few else ():
        found[title].sort(key=lambda flag: order[flag.name])
    if few:  # what every verb has comes last
        found["options"].sort(key=lambda flag: (not flag.positional, flag.owner is Common))
    return {title: shown for title, shown in found.items() if shown}


def _rank(flag: Flag, options: type[Any]) -> tuple[bool, int]:
    """What is given by its place comes first, what many verbs have comes last."""
    classes = options.__mro__
    return not flag.positional, classes.index(flag.owner) if flag.owner in classes else 0


def _left(flag: Flag) -> str:
    """How a flag is typed."""
    if flag.positional:
        return flag.flag.upper()
    if flag.is_switch:
        # of a switch that is off nobody asks how it is switched off
        return f"--{flag.flag}" + f", --no-{flag.flag}" * (flag.default is not False)
    return f"--{flag.flag} {noun(flag)}"


def _explained(flag: Flag, defaults: Mapping[str, Any]) -> str:
    """The comment of a field, its names as flags, and the default that holds."""
    text = comment_of(flag.owner, flag.name)
    text = re.sub(r"\b[a-z]+_[a-z_]+\b", lambda m: _as_flag(m[0]), text)
    choices: Collection[str] = () if flag.positional else CHOICES.get(flag.name, ())
    missing = [choice for choice in choices if choice not in text]
    if missing and isinstance(choices, Kinds):
        text += f": {choices.described()}"
    elif missing:
        text += f" ({', '.join(missing)})"
    if flag.is_list:
        return text if flag.positional else f"{text} (repeatable)"
    default = flag.default if flag.default is None else defaults.get(flag.name, flag.default)
    if default is None:
        return re.sub(r"([(;] ?)None: ", r"\1default: ", text)
    if default is False or flag.positional:
        return text
    if default is not True and default == 0 and "(0: " in text:
        return text.replace("(0: ", "(default 0: ")
    return f"{text} (default: {'on' if default is True else default})"


def _as_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}" if name in SETTINGS else name


def summary(options: type[Any]) -> str:
    """What a verb does, in a sentence."""
    return " ".join((options.__doc__ or "").split())


def _group(title: str, rows: Iterable[tuple[str, str]], column: int = COLUMN) -> list[str]:
    """A title and its rows, wrapped to the width of the terminal."""
    lines = ["", f"{title}:"]
    for left, text in rows:
        wrapped = textwrap.wrap(text, _width() - column) or [""]
        if len(left) + 4 > column:
            lines.append(f"  {left}")
        else:
            lines.append(f"  {left:{column - 2}}{wrapped.pop(0)}")
        lines += [" " * column + line for line in wrapped]
    return lines


def _width() -> int:
    columns = shutil.get_terminal_size((USUAL, 0)).columns
    return max(NARROWEST, min(WIDEST, columns))
