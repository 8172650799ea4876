"""What real models are fed with: the libraries that read it, and an even choice among it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any, TypeVar

import click

Item = TypeVar("Item")


def spaced(items: Sequence[Item], count: int, where: Path) -> list[Item]:
    """So many items at equal distances.

    Raises:
        click.ClickException: there are fewer.
    """
    if len(items) < count:
        raise click.ClickException(f"{where}: {len(items)} inputs that are long enough, {count} are needed")
    return [items[math.floor(place * len(items) / count)] for place in range(count)]


def extra(module: str, package: str | None = None) -> Any:
    """A library that only some benchmarks need.

    Args:
        module: what is imported.
        package: what is installed; by default of the same name.

    Raises:
        click.ClickException: it is not installed.
    """
    if util.find_spec(module) is None:
        raise click.ClickException(
            f"{module} is not installed: pip install {package or module}, in an environment of its own."
        )
    return import_module(module)


def versions(*names: str) -> str:
    """What the figures depend on, in words; a library that is not installed is left out."""
    installed = [name for name in names if util.find_spec(name)]
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("mpocompress", *installed))
