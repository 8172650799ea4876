"""Inputs of trained models: optional libraries that read them, and selection at equal intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any, TypeVar

import click

Item = TypeVar("Item")


def spaced(items: Sequence[Item], count: int, where: Path) -> list[Item]:
    """Select `count` items at equal intervals.

    Raises:
        click.ClickException: If there are fewer.
    """
    if len(items) < count:
        raise click.ClickException(f"{where}: {len(items)} inputs are long enough, but {count} are needed")
    return [items[math.floor(index * len(items) / count)] for index in range(count)]


def extra(module: str, package: str | None = None) -> Any:
    """Import a library that only some benchmarks need.

    Args:
        module: The module.
        package: The package to install, if its name differs.

    Raises:
        click.ClickException: If it is not installed.
    """
    if util.find_spec(module) is None:
        raise click.ClickException(
            f"{module} is not installed. Run `pip install {package or module}` in a separate environment."
        )
    return import_module(module)


def versions(*names: str) -> str:
    """Names and versions of mpocompress and of the installed libraries, as text."""
    installed = [name for name in names if util.find_spec(name)]
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("mpocompress", *installed))
