"""Names, lists and sizes formatted for messages."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from os import PathLike

_MAX_CHARS = 120

StrPath = str | PathLike[str]


def shown(text: str) -> str:
    r"""Return text for one line of a message: escape codes and newlines escaped, long text shortened.

    Args:
        text: a tensor name, key or path from a file; it may be hostile.

    Example:
        >>> shown("lstm.weight_ih_l0"), shown("a\x1b[31mb")
        ('lstm.weight_ih_l0', 'a\\x1b[31mb')
    """
    return printable(text if len(text) <= _MAX_CHARS else text[: _MAX_CHARS - 3] + "...")


def printable(text: str) -> str:
    r"""Return text with escape codes, newlines and lone surrogates escaped.

    Args:
        text: any text.

    Example:
        >>> printable("a\nb"), printable("größe")
        ('a\\nb', 'größe')
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def listed(names: Collection[str], most: int = 3) -> str:
    """Return the first of several names for one line of a message, and the number of the others.

    Args:
        names: tensor names, keys or paths from a file.
        most: the largest number of names to show.

    Returns:
        The text; empty if there are no names.

    Example:
        >>> listed(["a", "b", "c"], 2), listed([""])
        ('a, b and 1 more', '""')
    """
    first = ", ".join(shown(name) or '""' for name in islice(names, most))
    return first + (f" and {len(names) - most:,} more" if len(names) > most else "")


def shown_size(size_bytes: int) -> str:
    """Return a number of bytes in a suitable unit, in powers of 1000.

    Args:
        size_bytes: the number of bytes.

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
