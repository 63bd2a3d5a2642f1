"""Room: the arguments of a verb → its options, of the settings only what was given. No torch,
no disk.

A verb's options are a dataclass. Each scalar field is a flag; a field made by `given` stands for
all fields of another dataclass and holds those that were named, for `presets.resolve` to lay over
the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from myllm import foreign
from myllm.checks import number_meant, shortened, unescaped
from myllm.errors import ConfigError

log = logging.getLogger(__name__)
T = TypeVar("T")

KINDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "a text"}
MISSING = "\0"  # stands for the value that a flag was given without; no argument can hold it
TRUTHS = ("true", "false")  # what other programs give to a switch


@dataclass(frozen=True)
class Common:
    """What every verb has that uses runs."""

    runs_dir: str = "checkpoints"  # the folder of runs
    debug: bool = False  # show the traceback of an error


@dataclass(frozen=True)
class Trained(Common):
    """What every verb has that uses a trained model."""

    run: str | None = None  # the run's name or folder (None: the newest)
    checkpoint: str = "best"  # of the run's: best, last, or a step that is kept


@dataclass(frozen=True)
class Computing(Trained):
    """What every verb has that computes with a trained model."""

    device: str | None = None  # cpu, cuda, mps (None: the best one here)
    threads: int | None = None  # of the CPU (None: as many as there are cores for them)


@dataclass(frozen=True)
class Flag:
    """One flag or positional argument of a verb.

    Attributes:
        name: of the field.
        flag: as it is typed, without the dashes.
        kind: the field's type.
        default: of the field.
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

    @property
    def _metadata(self) -> Mapping[str, Any]:
        return typing.cast(Mapping[str, Any], self.owner.__dataclass_fields__[self.name].metadata)

    def converted(self, text: str) -> Any:
        """The value that `text` stands for.

        Raises:
            ConfigError: it is none of the field's type.
        """
        kind = next(k for k in self.kinds if k not in (type(None), ...))
        may_be_none = type(None) in self.kinds
        if text == MISSING and "alone" in self._metadata:
            return self._metadata["alone"]
        if text == MISSING:
            raise ConfigError(
                f"--{self.flag} needs a value: {KINDS[kind]} (one that begins with - is written "
                f"--{self.flag}=-…)"
            )
        if may_be_none and text == "None":
            return None
        if "\0" in text:
            raise ConfigError(f"--{self.flag} {shortened(text)!r}: must not hold null characters")
        if self._metadata.get("typed"):
            text = unescaped(text)
        try:
            return kind(text)
        except ValueError:
            more = self._such_as(text, kind) or (" or None" if may_be_none else "")
            raise ConfigError(
                f"--{self.flag} {shortened(text)}: must be {KINDS[kind]}{more}"
            ) from None

    def _such_as(self, text: str, kind: Any) -> str:
        """The number that was meant, where it is plain what that is."""
        if self.name == "minutes":
            time = re.fullmatch(r"([\d.]+) ?(s|sec|m|min|minutes?|h|hours?)", text.strip().lower())
            unit = {"s": 1 / 60, "m": 1, "h": 60}
            meant = f"{float(time[1]) * unit[time[2][0]]:g}" if time else None
        else:
            meant = number_meant(text)
        return f", such as {meant}" if meant and (kind is float or "." not in meant) else ""


class HelpAsked(Exception):
    """`--help` stands among the arguments.

    Args:
        everything: whether it was `--help-all`.
        values: the flags that stand beside it, by field name.
    """

    def __init__(self, everything: bool, values: Mapping[str, Any]) -> None:
        super().__init__("help")
        self.everything, self.values = everything, values


class UnknownOption(ConfigError):
    """A flag that the verb does not have.

    Args:
        text: as it was typed.
        value: what it was given, if anything.
        verb: the verb's name.
    """

    def __init__(self, text: str, value: str | None, verb: str) -> None:
        super().__init__(f"unknown option {text}: myllm {verb} --help lists all")
        self.text, self.value = text, value


def given(section: type[Any]) -> dict[str, Any]:
    """A field for the settings of a dataclass: those that were named, by name."""
    return typing.cast(dict[str, Any], field(default_factory=dict, metadata={"section": section}))


def alone(value: Any) -> Any:
    """A text that may be left out though its flag is given: then it is `value`."""
    return field(default=None, metadata={"alone": value})


def flags_of(options: type[Any], home: str = "") -> list[Flag]:
    """All flags of a verb's options, in the order of their fields."""
    if (known := _known.get((options, home))) is not None:
        return known
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
    _known[options, home] = found
    return found


_known: dict[Any, list[Flag]] = {}  # types are evaluated from their texts, in milliseconds


def parse(options: type[T], verb: str, args: Sequence[str]) -> T:
    """The options of a verb from its arguments.

    Raises:
        ConfigError: an argument that cannot be understood, in one line.
        UnknownOption: a flag that the verb does not have.
        HelpAsked: instead of anything else.
    """
    flags = flags_of(options)
    named, positionals = _split(flags, verb, list(args))
    values = {flag: _values(flag, named[flag.name]) for flag in flags if flag.name in named}
    if "help" in named or "help_all" in named:
        raise HelpAsked("help_all" in named, {flag.name: value for flag, value in values.items()})
    values |= _placed(flags, verb, positionals)
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
            raise _unknown_option(text, verb, options)
    namespace, others = _parser(flags).parse_known_args(options)
    for other in others:
        if other.startswith("--"):
            raise _unknown_option(other, verb, options)
    named = vars(namespace)
    if "old_runs_dir" in named:
        old = named.pop("old_runs_dir")
        log.warning("--%s is now --runs-dir", _old_runs_dir(flags))
        named.setdefault("runs_dir", old)
    return named, [*others, *texts]


def _unknown_option(text: str, verb: str, args: list[str]) -> UnknownOption:
    """The error about it; what stands behind it is its value, unless that is a flag."""
    name, equals, value = text.partition("=")
    behind = args[args.index(text) + 1 :][:1]
    if not equals and behind and (not behind[0].startswith("-") or _is_number(behind[0])):
        return UnknownOption(name, behind[0], verb)
    return UnknownOption(name, value if equals else None, verb)


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
                raise _switch_with(name, f"={value}")
            found.append(name + equals + value)
        elif found and found[-1] in switches and arg.lower() in TRUTHS:
            raise _switch_with(found[-1], f" {arg}")
        elif found and found[-1] in takes_value and _is_number(arg):
            found[-1] += f"={arg}"
        else:
            found.append(arg)
    return found


def _switch_with(name: str, value: str) -> ConfigError:
    """The error about a switch that was given a value, with the sign or blank before it."""
    meant = {"true": name, "false": f"--no-{name[2:]}"}.get(value[1:].lower())
    remedy = f"here it is {meant}" if meant else f"{name} or --no-{name[2:]}"
    return ConfigError(f"{name}{value}: a switch takes no value: {remedy}")


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
    parser.add_argument("--help-all", action="store_true")
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


def _values(flag: Flag, found: Any) -> Any:
    if flag.is_switch:
        return found
    if flag.is_list:
        return tuple(flag.converted(text) for text in found)
    return flag.converted(found)


def _placed(flags: list[Flag], verb: str, texts: list[str]) -> dict[Flag, Any]:
    """The values of the positional arguments."""
    values: dict[Flag, Any] = {}
    known = {*(flag.flag for flag in flags), *foreign.FLAGS}
    for flag in (flag for flag in flags if flag.positional):
        for name, equals, value in (text.partition("=") for text in texts):
            if equals and foreign.last(name) in known and flag.name != "prompt":
                raise UnknownOption(name, value, verb)  # key=value, as other programs have it
        if flag.is_list and texts:
            values[flag], texts = tuple(map(flag.converted, texts)), []
        elif texts:
            values[flag], texts = flag.converted(texts[0]), texts[1:]
    if texts:
        raise ConfigError(f"unexpected argument {texts[0]!r}: a text of several words is quoted")
    return values
