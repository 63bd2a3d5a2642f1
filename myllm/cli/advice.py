"""Room: a verb or a flag that does not exist → what there is instead, in one line.

Knows nothing of what the verbs do. A suggestion is always a flag that the verb has, or says
which verb has it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from myllm import foreign
from myllm.checks import shortened
from myllm.cli.parse import Flag, HelpAsked, UnknownOption, flags_of, parse
from myllm.cli.verb import Verb
from myllm.errors import ConfigError, InputError
from myllm.foreign import last, plain, squeezed
from myllm.registry import listed
from myllm.system.shell import quoted

Verbs = Mapping[str, Verb]
FLAG, PLACE = r"--([a-z-]+)", r"([A-Z]+) {}"  # how a row of `foreign` begins
SHORT = r"--[\w-]+( [\w.{}]+)?(: .*)?"  # a flag, its value, a remark: no sentence
NO = ("false", "no", "off", "0")
CUTOFF = 0.8  # of likeness: below, a suggestion is a guess
LONGEST = 60  # characters of a value that is shown again


def about_option(verbs: Verbs, verb: str, error: UnknownOption) -> ConfigError:
    """The error to show about a flag that `verb` lacks."""
    shown = f"unknown option {shortened(error.text)}"
    hint = _hint(verbs, verb, error.text, error.value)
    if hint is None:
        behind = "; a text that begins with - goes behind --" if error.text[0] == "-" else ""
        hint = f"myllm {verb} --help-all lists all flags{behind}"
    return ConfigError(f"{shown}: {hint}")


def about_verb(verbs: Verbs, args: Sequence[str]) -> ConfigError:
    """The error to show about arguments whose first is no verb."""
    first, *rest = args
    shown, name = f"unknown verb {shortened(first)!r}", plain(first)
    if name in ("v", "version"):
        return ConfigError(f"{shown}: here it is myllm --version")
    if first.startswith("-"):
        verb = max(verbs, key=lambda v: _n_understood(verbs, v, args))
        command = _command(verbs, verb, args) or f"myllm {verb} …"
        return ConfigError(f"{shown}: a verb comes first: {command} (myllm --help lists them)")
    if name in foreign.VERBS or name in verbs:
        meant = name if name in verbs else foreign.VERBS[name]
        if " " in meant:
            return ConfigError(f"{shown}: {meant}")
        if meant in verbs:
            return ConfigError(f"{shown}: here it is {_command(verbs, meant, rest)}")
    if close := difflib.get_close_matches(name, verbs, n=1, cutoff=0.6):
        return ConfigError(f"{shown}: did you mean {close[0]}? (myllm --help lists all)")
    for verb, is_meant in (("generate", " " in first), ("train", _is_path(first))):
        if is_meant and (command := _command(verbs, verb, args)):
            return ConfigError(f"{shown}: did you mean: {command}")
    return ConfigError(f"{shown}: there are {listed([v for v in verbs if ' ' not in v])}")


def check_texts(args: Sequence[str]) -> None:
    """Raises `InputError` where an argument is one of nanoGPT's files of settings that is not
    here."""
    for arg in args:
        name = re.fullmatch(r"(?:.*/)?(?:config/\w+|(?:train|finetune|eval)_\w+)\.py", arg)
        if name and not Path(arg).exists():
            raise InputError(
                f"no such file: {arg}; settings are kept in TOML here: --config my.toml, with "
                "lines such as d_model = 192"
            )


def _hint(verbs: Verbs, verb: str, text: str, value: str | None) -> str | None:
    """What there is instead of a flag, or None where nothing comes near."""
    flags, name = flags_of(verbs[verb].options), last(text)
    names = _names(flags)
    if exact := [n for n in names if squeezed(n) == squeezed(name)]:
        return f"did you mean {_with_value(exact[0], names, value)}?"
    if name in (places := [flag.flag for flag in flags if flag.positional]):
        before = [place.upper() for place in places[: places.index(name)]]
        return _by_place(verb, *before, _shown(value) or name.upper())
    if found := _from_elsewhere(verbs, verb, name, value):
        return found
    everywhere = {n for v in verbs.values() for n in _names(flags_of(v.options))}
    if others := [n for n in everywhere if squeezed(n) == squeezed(name)]:
        return f"it is a flag of {_having(verbs, others[0])}, not of {verb}"
    if close := _close(name, names):
        return f"did you mean {' or '.join(_with_value(n, names, value) for n in close)}?"
    if close := _misspelt(name, foreign.FLAGS):
        return _from_elsewhere(verbs, verb, close[0], value)
    if close := _close(name, everywhere):
        return f"did you mean --{close[0]}? it is a flag of {_having(verbs, close[0])}"
    return None


def _from_elsewhere(verbs: Verbs, verb: str, name: str, value: str | None) -> str | None:
    """What there is for another program's flag."""
    if (value or "").lower() in NO and f"no-{name}" in foreign.FLAGS:
        name, value = f"no-{name}", None
    flags = flags_of(verbs[verb].options)
    rows = _rows(verb, name)
    for text in rows:
        if _fits(text, flags):
            if match := re.fullmatch(PLACE, text):
                return _by_place(verb, _shown(value) or match[1])
            if match := re.match(FLAG, text):
                return _filled(text, match[1], value)
            return text.replace("{}", _shown(value) or "…")
    named = (match[1] for match in (re.match(FLAG, text) for text in rows) if match)
    if other := next((flag for flag in named if _having(verbs, flag)), None):
        return f"here it is --{other}, a flag of {_having(verbs, other)}"
    for text in rows:
        for name, verb_there in verbs.items():
            if _fits(text, flags_of(verb_there.options)):
                place = text.partition(" ")[0]
                return f"it belongs to another verb: myllm {name} {_shown(value) or place}"
    return None


def _by_place(verb: str, *words: str) -> str:
    return f"it goes without a flag: {' '.join(['myllm', verb, *words])}"


def _rows(verb: str, name: str) -> list[str]:
    """What the table says of a name, for this verb."""
    found = []
    for text in foreign.FLAGS.get(name, ()):
        meant, _, rest = text[1:].partition(" ")
        if not text.startswith("@"):
            found.append(text)
        elif verb in meant.split(","):
            found.append(rest)
    return found


def _fits(text: str, flags: Sequence[Flag]) -> bool:
    """Whether a verb with these flags has what the table says."""
    if match := re.match(FLAG, text):
        return match[1] in _names(flags)
    match = re.fullmatch(PLACE, text)
    return match is None or match[1] in {f.flag.upper() for f in flags if f.positional}


def _filled(text: str, flag: str, value: str | None) -> str:
    """What the table says, with the value in its place."""
    if (value or "").lower() in NO and "{}" not in text and re.fullmatch(SHORT, text):
        return "leave it out"
    value = value and foreign.value_here(flag, value)
    if flag == "run" and value and (place := Path(value)).name:
        value = place.name
        if str(place.parent) != ".":
            text += f" --runs-dir {quoted(place.parent)}"
    shown = f" {_shown(value)}" if _shown(value) else ""
    lead = "here it is " if re.fullmatch(SHORT, text) or " --runs-dir " in text else ""
    return lead + text.replace(" {}", shown)


def _with_value(name: str, names: Mapping[str, Flag], value: str | None) -> str:
    takes = not names[name].is_switch and _shown(value)
    return f"--{name} {_shown(value)}" if takes else f"--{name}"


def _shown(value: str | None) -> str:
    """A value as it is typed; nothing where there is none, or where it is long."""
    return quoted(value) if value and len(value) <= LONGEST and value.isprintable() else ""


def _names(flags: Sequence[Flag]) -> dict[str, Flag]:
    """What can be typed behind `--`."""
    found = {flag.flag: flag for flag in flags if not flag.positional}
    return found | {f"no-{flag.flag}": flag for flag in flags if flag.is_switch}


def _close(name: str, known: Collection[str]) -> list[str]:
    """The names that are meant: the one that is misspelt, or else those that begin alike."""
    if found := _misspelt(name, known):
        return found
    word = name.partition("-")[0]
    for begins in (name, word):
        begun = sorted(n for n in known if len(begins) > 2 and n.startswith(begins))
        if 0 < len(begun) <= 3:
            return begun
    return []


def _misspelt(name: str, known: Collection[str]) -> list[str]:
    by_letters = {squeezed(n): n for n in known if len(n) > 2}
    found = difflib.get_close_matches(squeezed(name), by_letters, n=1, cutoff=CUTOFF)
    return [by_letters[letters] for letters in found]


def _having(verbs: Verbs, flag: str) -> str:
    """The verbs that have a flag, as a sentence names them."""
    having = [name for name, verb in verbs.items() if flag in _names(flags_of(verb.options))]
    return " and ".join(filter(None, [", ".join(having[:-1]), *having[-1:]]))


def _n_understood(verbs: Verbs, verb: str, args: Sequence[str]) -> int:
    """How many of the flags among the arguments are the verb's, or have a counterpart there."""
    flags = flags_of(verbs[verb].options)
    names = [plain(arg.partition("=")[0]) for arg in args if arg.startswith("-")]
    return sum(
        name in _names(flags)
        or any(text[0] in "-P" and _fits(text, flags) for text in _rows(verb, name))
        for name in names
    )


def _command(verbs: Verbs, verb: str, args: Sequence[str]) -> str:
    """The command with that verb, and the arguments if it understands them and they are short."""
    line = " ".join(["myllm", verb, *map(_quoted, args)])
    try:
        parse(verbs[verb].options, verb, args)
    except (ConfigError, HelpAsked):
        return f"myllm {verb}"
    return line if len(line) <= 2 * LONGEST else f"myllm {verb}"


def _quoted(arg: str) -> str:
    return arg if arg.startswith("-") else quoted(arg)


def _is_path(text: str) -> bool:
    try:
        return bool(re.search(r"[./\\]", text)) or bool(text) and Path(text).exists()
    except (OSError, ValueError):
        return False
