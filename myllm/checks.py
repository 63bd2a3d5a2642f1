"""Room: what a person gave, a number or a name → accepted, or one line of what it must be.

Knows nothing of what it is for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from myllm.errors import ConfigError, InputError

Limits = Mapping[str, tuple[float, float]]
"""The least and the largest value by name; where both are `int`, it is a whole number."""

MAX_NAME_BYTES = 200  # file systems take 255; names of unfinished folders are longer
# what Windows has devices for, whatever the suffix
DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(10)),
}


def check_ranges(holder: object, limits: Limits) -> None:
    """Checks those attributes of `holder` that are in the table; None is left to its meaning.

    Raises:
        ConfigError: not a number, or not one within the limits; NaN is in none.
    """
    for name, (least, most) in limits.items():
        if (value := getattr(holder, name)) is not None:
            check_range(name, value, least, most)


def check_range(name: str, value: Any, least: float, most: float) -> None:
    """Checks one number.

    >>> check_range("keep", 10**30, 1, 100)
    Traceback (most recent call last):
    myllm.errors.ConfigError: keep 1000000000000000000000000000000: must be between 1 and 100
    """
    whole = isinstance(least, int) and isinstance(most, int)
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not is_number:
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{name} {value!r}: must be {kind} between {least} and {most}")
    if not least <= value <= most:
        raise ConfigError(f"{name} {value}: must be between {least} and {most}")


def number_meant(text: str) -> str | None:
    """A number that was written for people, as a program reads it; None for anything else.

    >>> number_meant("1,000"), number_meant("1e3"), number_meant("2k"), number_meant("5%")
    ('1000', '1000', '2000', '0.05')
    """
    found = re.fullmatch(r"([-+]?[\d,_]*\.?\d+(?:e[-+]?\d+)?) ?(k|m|%|)", text.strip().lower())
    if found is None:
        return None
    value = float(found[1].replace(",", "").replace("_", ""))
    value *= {"k": 1e3, "m": 1e6, "%": 0.01, "": 1.0}[found[2]]
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:g}"


def shortened(text: str) -> str:
    """`text` as a message shows it."""
    return text if len(text) <= 60 else text[:60] + "…"


def unescaped(text: str) -> str:
    r"""What is typed in a shell, where a line end is two characters: \n, \r, \t and \\ are one.

    >>> unescaped(r"a\nb \\n")
    'a\nb \\n'
    """
    typed = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nrt\\])", lambda found: typed[found[1]], text)


def check_text(name: str, text: str) -> None:
    """Checks a text that is kept in files or names one.

    Raises:
        ConfigError: it holds null characters, or bytes that are not UTF-8.
    """
    if "\0" in text:
        raise ConfigError(f"{name} {text!r}: must not hold null characters")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        shown = text.encode("utf-8", "backslashreplace").decode()
        raise ConfigError(
            f"{name} {shortened(shown)} is not UTF-8: rename the file or folder"
        ) from None


def check_run_name(name: str) -> None:
    """Checks that a folder can have this name on any system, and commands can be told it.

    Raises:
        InputError: with what is wrong with it.

    >>> check_run_name("aux.txt")
    Traceback (most recent call last):
    myllm.errors.InputError: run name 'aux.txt': Windows keeps 'aux' for a device; name another \
--run
    """
    if problem := _name_problem(name):
        raise InputError(f"run name {shortened(name)!r}: {problem}; name another --run")


def run_name(name: str) -> str:
    """A run's name made from another thing's: itself, unless no folder may have it.

    >>> run_name("novel"), run_name("aux")
    ('novel', 'run-aux')
    """
    return f"run-{name}" if _name_problem(name) else name


def _name_problem(name: str) -> str | None:
    stem = name.split(".")[0].rstrip()
    if not name.strip():
        return "it is empty"
    if len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        return f"it is longer than {MAX_NAME_BYTES} bytes"
    if found := re.search(r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|\ud800-\udfff]', name):
        return f"{found[0]!r} cannot be in a folder's name on every system"
    if name[0] in "-. ":
        return f"it begins with {name[0]!r}"
    if name[-1] in ". ":
        return f"it ends with {name[-1]!r}"
    if stem.lower() in DEVICES:
        return f"Windows keeps {stem!r} for a device"
    return None
