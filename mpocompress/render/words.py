"""Numbers and names as a reader wants them."""

from __future__ import annotations

import math

from mpocompress.report import Target
from mpocompress.sites import Sites

TARGET_NAMES = {
    "bond": "bond",
    "energy": "energy",
    "max_error": "max error",
    "keep": "keep",
    "max_params": "max parameters",
}


def size(size_bytes: int) -> str:
    """Bytes in the unit that keeps three digits.

    Args:
        size_bytes: a number of bytes.

    Returns:
        Text, with decimal units.

    Example:
        >>> size(999), size(1_236_000)
        ('999 B', '1.24 MB')
    """
    power = max(0, math.floor(math.log10(max(size_bytes, 1) * 1.0005) / 3))
    return f"{size_bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}"


def times(before: int, after: int) -> str:
    """How many times smaller.

    Args:
        before: dense parameters, or bytes.
        after: parameters or bytes now.

    Returns:
        Text.

    Example:
        >>> times(100, 30)
        '3.33x'
    """
    return f"{before / after:.{2 if before < 10 * after else 1}f}x" if after else "-"


def fraction(value: float) -> str:
    """A fraction that is often one over a whole number.

    Args:
        value: the fraction.

    Returns:
        Text.

    Example:
        >>> fraction(0.125), fraction(0.3)
        ('1/8', '0.3')
    """
    inverse = round(1 / value) if value else 0
    return f"1/{inverse}" if inverse > 1 and abs(value * inverse - 1) < 1e-9 else f"{value:g}"


def tail(name: str, width: int) -> str:
    """A name cut from the left, where names are alike.

    Args:
        name: the name.
        width: columns to fit into.

    Returns:
        The name, or an ellipsis and its end.

    Example:
        >>> tail("encoder.layer.0.output.dense.weight", 16)
        '…ut.dense.weight'
    """
    return name if len(name) <= width else "…" + name[-(width - 1) :]


def shape(dims: tuple[int, ...]) -> str:
    """A shape.

    Args:
        dims: its dimensions.

    Returns:
        Text.

    Example:
        >>> shape((1024, 256))
        '1024x256'
    """
    return "x".join(map(str, dims)) or "scalar"


def sites_label(row_dims: tuple[int, ...], col_dims: tuple[int, ...], anti_aligned: bool) -> str:
    """The short name of a site shape.

    Args:
        row_dims: row dim of each site; empty when dense.
        col_dims: column dim of each site.
        anti_aligned: order of the row index.

    Returns:
        Text, `dense` where there are no sites.

    Example:
        >>> sites_label((8, 1), (1, 4), False)
        'low rank'
    """
    return Sites(row_dims=row_dims, col_dims=col_dims, anti_aligned=anti_aligned).label if row_dims else "dense"


def asked(target: Target) -> str:
    """What was asked for.

    Args:
        target: the target.

    Returns:
        Text.

    Example:
        >>> asked(Target(kind="keep", asked=0.25, achieved=0.249, by_layer={}))
        'keep 0.25'
    """
    value = (
        "" if target.asked is None else f" {target.asked:,}" if target.kind == "max_params" else f" {target.asked:g}"
    )
    layers = ", ".join(f"{glob}={bond}" for glob, bond in target.by_layer.items())
    return f"{TARGET_NAMES[target.kind]}{value}" + (f" ({layers})" if layers else "")


def achieved(target: Target) -> str:
    """What came out.

    Args:
        target: the target.

    Returns:
        Text.

    Example:
        >>> achieved(Target(kind="keep", asked=0.25, achieved=0.24912, by_layer={}))
        '0.24912'
    """
    if target.achieved is None:
        return "nothing"
    return f"{target.achieved:,}" if target.kind == "max_params" else f"{target.achieved:.5g}"
