"""Room: a kind of thing → a table of its variants by name, whose look-up explains itself.

Knows nothing of what it holds.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from myllm import foreign
from myllm.errors import ConfigError

T = TypeVar("T")

MOST_LISTED = 20  # names in a message


class Registry(dict[str, T]):
    """Variants of one kind by name. An unknown name is an error that lists the choices.

    >>> schedules = Registry("schedule", {"constant": 1, "cosine": 2})
    >>> schedules["cosine"]
    2
    >>> schedules["cosin"]
    Traceback (most recent call last):
    myllm.errors.ConfigError: unknown schedule 'cosin': did you mean cosine? (choices: constant, \
cosine)
    """

    def __init__(self, kind: str, entries: Mapping[str, T] | None = None) -> None:
        """
        Args:
            kind: what the entries are, in the singular, for messages.
            entries: the first entries; more can be assigned later.
        """
        super().__init__(entries or {})
        self.kind = kind

    def __missing__(self, name: str) -> T:
        raise unknown(self.kind, name, self)


def check_choice(kind: str, name: str, choices: Iterable[str]) -> None:
    """For choices that have no table: raises `ConfigError` if `name` is not among them."""
    choices = list(choices)
    if name not in choices:
        raise unknown(kind, name, choices)


def unknown(kind: str, name: str, choices: Iterable[str]) -> ConfigError:
    """The error to raise about a name that is not among the choices."""
    names = list(choices)
    meant = foreign.settings(name, names) if kind == "setting" else []
    meant = meant or foreign.values(kind, name, names)
    return ConfigError(f"unknown {kind} {name!r}: {nearest(name, names, meant=meant)}")


def nearest(
    name: str,
    choices: Iterable[str],
    what: str = "choices",
    meant: Sequence[str] = (),
    most: int = MOST_LISTED,
) -> str:
    """The tail of an error message about an unknown name: the nearest name, and the choices.

    Args:
        name: as it was given.
        choices: the names that there are.
        what: how the message calls them.
        meant: those that other programs call so: nearer than what is written alike.
        most: so many choices are listed at most.

    >>> nearest("cosin", ["constant", "cosine"])
    'did you mean cosine? (choices: constant, cosine)'
    """
    names, typed = sorted(choices), name.lower()
    begun = [n for n in names if len(typed) > 2 and n.startswith(typed)]
    close = meant or begun[:1] or difflib.get_close_matches(typed, names, n=1, cutoff=0.5)
    all_of_them = f"{what}: {listed(names, most)}"
    if close and len(names) > MOST_LISTED:
        return f"did you mean {' or '.join(close)}?"
    return f"did you mean {' or '.join(close)}? ({all_of_them})" if close else all_of_them


def listed(names: Sequence[object], most: int = MOST_LISTED) -> str:
    """Names in a message, of many the first ones.

    >>> listed(["a", "b", "c", "d"], most=2)
    'a, b and 2 more'
    """
    shown, left = ", ".join(map(str, names[:most])), len(names) - most
    return f"{shown} and {left} more" if left > 0 else shown
