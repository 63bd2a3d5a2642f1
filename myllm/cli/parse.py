"""Room: the arguments of a verb → its options, of the settings only what was given. No torch,
no disk.

A verb's options are a dataclass. Each scalar field is a flag; a field made by `given` stands for
all fields of another dataclass and holds those that were named, for `presets.resolve` to lay over
the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import logging
import re
import shutil
import textwrap
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from myllm import config, kinds, reading
from myllm.checks import shortened, unescaped
from myllm.config import DataConfig, GPTConfig, RunConfig, SamplingConfig, TrainConfig, flat_values
from myllm.errors import ConfigError
from myllm.presets import PRESETS, SIZES, default_config
from myllm.reading import Reading

log = logging.getLogger(__name__)
T = TypeVar("T")

GROUPS: dict[type[Any], str] = {
    DataConfig: "text",
    Reading: "text",
    GPTConfig: "model",
    TrainConfig: "training",
    SamplingConfig: "sampling",
}  # in which help shows the fields; those of other classes are the verb's own
KINDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "a text"}
MISSING = "\0"  # stands for the value that a flag was given without; no argument can hold it
WIDTH = 98  # columns of help, at most


@dataclass(frozen=True)
class Common:
    """What every verb has that uses runs."""

    runs_dir: str = "checkpoints"  # the folder of runs
    debug: bool = False  # show the traceback of an error


@dataclass(frozen=True)
class Flag:
    """One flag or positional argument of a verb.

    Attributes:
        name: of the field.
        flag: as it is typed, without the dashes.
        kind: the field's type.
        default: what help shows.
        owner: the dataclass, whose source holds the comment.
        home: the field of the options that holds the value; empty for a field of its own.
        positional: whether it is recognised by its place.
    """

    name: str
    flag: str
    kind: Any
    default: Any
    owner: type[Any]
    home: str
    positional: bool

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types that a value may have, `NoneType` among them where it may be None."""
        return typing.get_args(self.kind) or (self.kind,)

    @property
    def is_list(self) -> bool:
        """Whether several values may be given."""
        return typing.get_origin(self.kind) is tuple

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return bool in self.kinds

    def converted(self, text: str) -> Any:
        """The value that `text` stands for.

        Raises:
            ConfigError: it is none of the field's type.
        """
        kind = next(k for k in self.kinds if k not in (type(None), ...))
        may_be_none = type(None) in self.kinds
        if text == MISSING:
            raise ConfigError(
                f"--{self.flag} needs a value: {KINDS[kind]} (one that begins with - is written "
                f"--{self.flag}=-…)"
            )
        if may_be_none and text == "None":
            return None
        if "\0" in text:
            raise ConfigError(f"--{self.flag} {shortened(text)!r}: must not hold null characters")
        if self.owner.__dataclass_fields__[self.name].metadata.get("typed"):
            text = unescaped(text)
        try:
            return kind(text)
        except ValueError:
            wanted = KINDS[kind] + (" or None" if may_be_none else "")
            raise ConfigError(f"--{self.flag} {shortened(text)}: must be {wanted}") from None


def given(section: type[Any]) -> dict[str, Any]:
    """A field for the settings of a dataclass: those that were named, by name."""
    return typing.cast(dict[str, Any], field(default_factory=dict, metadata={"section": section}))


def flags_of(options: type[Any], home: str = "") -> list[Flag]:
    """All flags of a verb's options, in the order of their fields."""
    hints = typing.get_type_hints(options)
    found: list[Flag] = []
    for f in dataclasses.fields(options):
        if section := f.metadata.get("section"):
            found += flags_of(section, f.name)
        elif dataclasses.is_dataclass(hints[f.name]):
            found += flags_of(hints[f.name], home)
        else:
            flag = str(f.metadata.get("flag", f.name)).replace("_", "-")
            positional = bool(f.metadata.get("positional"))
            owner = next(
                c for c in options.__mro__ if f.name in vars(c).get("__annotations__", ())
            )
            found.append(Flag(f.name, flag, hints[f.name], f.default, owner, home, positional))
    return found


def parse(options: type[T], verb: str, args: Sequence[str]) -> T:
    """The options of a verb from its arguments; `--help` is printed.

    Raises:
        ConfigError: an argument that cannot be understood, in one line.
        SystemExit: help was asked for and has been shown.
    """
    flags = flags_of(options)
    named, positionals = _split(flags, verb, list(args))
    values = {flag: _values(flag, named[flag.name]) for flag in flags if flag.name in named}
    if "help" in named:
        print(_help(options, verb, {flag.name: value for flag, value in values.items()}))
        raise SystemExit(0)
    values |= _placed(flags, positionals)
    filled: dict[str, Any] = {}
    for flag, value in values.items():
        home = filled.setdefault(flag.home, {}) if flag.home else filled
        home[flag.name] = value
    return options(**filled)


def _split(flags: list[Flag], verb: str, args: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The texts of the flags by field name, and what has no flag."""
    end = args.index("--") if "--" in args else len(args)
    options, texts = _normalised(flags, args[:end]), args[end + 1 :]
    for text in options:
        if re.match(r"-[^-\d.]", text) and text != "-h":  # the parser would take -hi for -h -i
            raise _unknown_option(text, verb, [flag for flag in flags if not flag.positional])
    parser = _parser(flags)
    namespace, others = parser.parse_known_args(options)
    for other in others:
        if other.startswith("--"):
            raise _unknown_option(other, verb, [flag for flag in flags if not flag.positional])
    named = vars(namespace)
    if "old_runs_dir" in named:
        old = named.pop("old_runs_dir")
        log.warning("--%s is now --runs-dir", _old_runs_dir(flags))
        named.setdefault("runs_dir", old)
    return named, [*others, *texts]


def _normalised(flags: list[Flag], args: list[str]) -> list[str]:
    """`--d_model` as `--d-model`; a negative number joined to the flag that it follows."""
    takes_value = {f"--{flag.flag}" for flag in flags if not flag.is_switch}
    switches = {f"--{flag.flag}" for flag in flags if flag.is_switch}
    found: list[str] = []
    for arg in args:
        if arg.startswith("--"):
            name, equals, value = arg.partition("=")
            name = name.replace("_", "-")
            if equals and name in switches:
                raise ConfigError(
                    f"{name}={value}: a switch takes no value: {name} or --no-{name[2:]}"
                )
            found.append(name + equals + value)
        elif found and found[-1] in takes_value and _is_number(arg):
            found[-1] += f"={arg}"
        else:
            found.append(arg)
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _parser(flags: list[Flag]) -> _Parser:
    """Recognises flags; their values are converted later, so that the messages are ours."""
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("-h", "--help", action="store_true")
    for flag in flags:
        if flag.is_switch:
            action: Any = argparse.BooleanOptionalAction
            parser.add_argument(f"--{flag.flag}", dest=flag.name, action=action)
        elif not flag.positional:
            action = "append" if flag.is_list else "store"
            parser.add_argument(
                f"--{flag.flag}", dest=flag.name, action=action, nargs="?", const=MISSING
            )
    if old := _old_runs_dir(flags):
        parser.add_argument(f"--{old}", dest="old_runs_dir")
    return parser


def _old_runs_dir(flags: list[Flag]) -> str | None:
    """What `--runs-dir` was called until version 0.2."""
    names = {flag.name for flag in flags}
    return None if "runs_dir" not in names else "runs" if "out" in names else "out"


def _unknown_option(text: str, verb: str, flags: list[Flag]) -> ConfigError:
    name = text.split("=")[0].replace("_", "-")
    known = [f"--{flag.flag}" for flag in flags]
    known += [f"--no-{flag.flag}" for flag in flags if flag.is_switch]
    close = difflib.get_close_matches(name, known, n=3)
    remedy = f"did you mean {' or '.join(close)}? " if close else ""
    return ConfigError(
        f"unknown option {name}: {remedy}(myllm {verb} --help lists all; a text that begins with "
        "- goes behind --, and as the value of a flag behind =)"
    )


def _values(flag: Flag, found: Any) -> Any:
    if flag.is_switch:
        return found
    if flag.is_list:
        return tuple(flag.converted(text) for text in found)
    return flag.converted(found)


def _placed(flags: list[Flag], texts: list[str]) -> dict[Flag, Any]:
    """The values of the positional arguments."""
    values: dict[Flag, Any] = {}
    for flag in (flag for flag in flags if flag.positional):
        if flag.is_list and texts:
            values[flag], texts = tuple(map(flag.converted, texts)), []
        elif texts:
            values[flag], texts = flag.converted(texts[0]), texts[1:]
    if texts:
        raise ConfigError(f"unexpected argument {texts[0]!r}: a text of several words is quoted")
    return values


# ------------------------------------------------------------------------------ help


def _help(options: type[Any], verb: str, values: Mapping[str, Any]) -> str:
    """The help of a verb; the defaults are those of the preset and size in `values`."""
    flags = flags_of(options)
    places = [_place(flag) for flag in flags if flag.positional]
    parser = argparse.ArgumentParser(
        usage=" ".join(["myllm", verb, *places, "[OPTIONS]"]),
        description=_description(options),
        add_help=False,
        formatter_class=_Formatter,
    )
    defaults: dict[str, Any] = {}
    if any(flag.owner is RunConfig for flag in flags):
        preset, size = values.get("preset") or "modern", values.get("size") or "cpu"
        defaults = flat_values(default_config(preset, size)) | {"size": None}
    choices = _choices()
    titles = list(dict.fromkeys(["options", *GROUPS.values()]))
    for title in titles:
        group = parser.add_argument_group(title)
        for flag in flags:
            if GROUPS.get(flag.owner, "options") == title:
                default = defaults.get(flag.name, flag.default)
                _add_help(group, flag, default, choices.get(flag.name, ()))
    return parser.format_help().rstrip()


def _choices() -> dict[str, Iterable[str]]:
    """What help lists. An unknown name is refused where it is looked up."""
    from myllm.data.corpora import CORPORA

    return {
        "preset": PRESETS,
        "size": SIZES,
        "data": CORPORA,
        "tokenizer": kinds.TOKENIZERS,
        "position": config.POSITIONS,
        "norm": kinds.NORMS,
        "feed_forward": kinds.FEED_FORWARDS,
        "attention": kinds.ATTENTIONS,
        "optimizer": kinds.OPTIMIZERS,
        "schedule": kinds.SCHEDULES,
        "to": kinds.FORMATS,
        "dtype": config.DTYPE_NAMES,
        "encoding_errors": reading.ENCODING_ERRORS,
        "on_bad_file": reading.ON_BAD_FILE,
        "val_split": config.VAL_SPLITS,
        "on_nonfinite": config.ON_NONFINITE,
        "on_disk_full": config.ON_DISK_FULL,
    }


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        width = max(40, min(WIDTH, shutil.get_terminal_size().columns - 2))
        super().__init__(prog, max_help_position=30, width=width)


def _description(options: type[Any]) -> str:
    summary = " ".join((options.__doc__ or "").split())
    width = max(40, min(WIDTH, shutil.get_terminal_size().columns - 2))
    examples = getattr(options, "EXAMPLES", ())
    return "\n".join([*textwrap.wrap(summary, width), *(f"  {line}" for line in examples)])


def _place(flag: Flag) -> str:
    return f"[{flag.flag.upper()} ...]" if flag.is_list else f"[{flag.flag.upper()}]"


def _add_help(group: Any, flag: Flag, default: Any, choices: Iterable[str]) -> None:
    text = comment_of(flag.owner, flag.name)
    if flag.positional:
        group.add_argument(flag.name, metavar=flag.flag.upper(), nargs="?", help=text)
        return
    if isinstance(choices, kinds.Kinds) and (words := choices.described()):
        text += f": {words}"
    shown = {True: "on", False: "off"}.get(default, default) if flag.is_switch else default
    text += " (repeatable)" if flag.is_list else f" (default: {shown})"
    text = text.replace("%", "%%")
    if flag.is_switch:
        # of a switch that is off nobody asks how it is switched off
        action: Any = "store_true" if default is False else argparse.BooleanOptionalAction
        group.add_argument(f"--{flag.flag}", action=action, help=text, default=argparse.SUPPRESS)
        return
    numbers = {int: "N", float: "X"}
    noun = flag.flag.split("-")[-1].upper()
    metavar = "|".join(choices) or next((numbers[k] for k in flag.kinds if k in numbers), noun)
    group.add_argument(f"--{flag.flag}", metavar=metavar, help=text)


def comment_of(owner: Any, name: str) -> str:
    """The comment on the line of a field, which is its help."""
    if owner not in _sources:
        _sources[owner] = inspect.getsource(owner)  # parses the whole file each time: 10 ms
    found = re.search(rf"^    {name}: .*?  # (.*)$", _sources[owner], re.MULTILINE)
    return found[1] if found else ""


_sources: dict[type[Any], str] = {}
