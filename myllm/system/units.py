"""Room: numbers → as a person says them: bytes, counts, spans of time."""

from __future__ import annotations


def short_count(n: float, unit: str = "") -> str:
    """A number with three digits, as people say it.

    >>> [short_count(n) for n in (512, 25_312, 1_727_200)]
    ['512', '25.3K', '1.73M']
    """
    letters = ["", "K", "M", "G", "T"]
    while n >= 999.5 and len(letters) > 1:
        n, letters = n / 1000, letters[1:]
    digits = f"{n:.3g}"
    return f"{digits}{unit and ' '}{letters[0]}{unit}"


def short_times(n: float) -> str:
    """How often something was done, to the tenth while that says something: 1.9, 1,105."""
    return f"{n:,.1f}" if n < 100 else f"{n:,.0f}"


def short_bytes(n: int) -> str:
    """A size on disk.

    >>> short_bytes(25_312_000)
    '25.3 MB'
    """
    return short_count(n, "B").replace("KB", "kB")


def short_time(seconds: float) -> str:
    """The largest unit of a span of time.

    >>> [short_time(s) for s in (3, 200, 7300, 200_000, 40_000_000)]
    ['3s', '3m', '2h', '2d', '1y']
    """
    for size, unit in ((365 * 86400, "y"), (86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}"
    return f"{max(0, seconds):.0f}s"


def format_duration(seconds: float) -> str:
    """A span of time, to the second or minute.

    >>> [format_duration(s) for s in (5, 75, 3700)]
    ['5s', '1m15s', '1h01m']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
