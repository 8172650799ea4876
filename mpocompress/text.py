"""How names and sizes from a file are shown to a reader."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from os import PathLike

_LONGEST = 120


def shown(text: str) -> str:
    r"""Return text fit for one line of a message: escape codes and newlines escaped, long text cut.

    Args:
        text: a tensor name, key or path, as found; it may be hostile.

    Returns:
        The same text if it is short and printable.

    Example:
        >>> shown("lstm.weight_ih_l0"), shown("a\x1b[31mb")
        ('lstm.weight_ih_l0', 'a\\x1b[31mb')
    """
    return printable(text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "...")


def printable(text: str) -> str:
    r"""Return text with escape codes, newlines and halves of characters escaped.

    Args:
        text: anything.

    Returns:
        The same text if a terminal can show all of it.

    Example:
        >>> printable("a\nb"), printable("größe")
        ('a\\nb', 'größe')
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def listed(names: Collection[str], most: int) -> str:
    """Return the first of many names for one line of a message, and how many more there are.

    Args:
        names: tensor names, keys or paths, as found.
        most: how many to show.

    Returns:
        Text; empty where there are no names.

    Example:
        >>> listed(["a", "b", "c"], 2), listed([""], 2)
        ('a, b and 1 more', '""')
    """
    first = ", ".join(shown(name) or '""' for name in islice(names, most))
    return first + (f" and {len(names) - most:,} more" if len(names) > most else "")


def shown_size(size_bytes: int) -> str:
    """Return a number of bytes in the unit that reads best, powers of 1000.

    Args:
        size_bytes: how many bytes.

    Returns:
        Text such as `2.1 MB`.

    Example:
        >>> shown_size(999), shown_size(2_100_000), shown_size(10**15)
        ('999 bytes', '2.1 MB', '1000.0 TB')
    """
    if size_bytes < 1000:
        return f"{size_bytes} bytes"
    value = float(size_bytes)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.95 or unit == "TB":
            break
    return f"{value:.1f} {unit}"


StrPath = str | PathLike[str]
