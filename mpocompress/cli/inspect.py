"""`mpocompress inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import mpocompress
from mpocompress.cli.options import EXISTING, json_option, layer_options, selection
from mpocompress.cli.render.overview_tables import show_overview
from mpocompress.cli.render.report_table import show_report
from mpocompress.cli.terminal import printing, stdout
from mpocompress.reports.compression import Report

if TYPE_CHECKING:
    from mpocompress.layers.selection import ForcedKind


@click.command()
@click.argument("file", type=EXISTING)
@layer_options
@json_option
def inspect(
    file: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    kinds: tuple[tuple[ForcedKind, str], ...],
    min_side: int,
    own_model: str | None,
    key: str | None,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Show the report inside a compressed FILE; of any other, what it holds and what could be compressed.

    The options are for the other: a report is what it is. No weight is read.
    """
    chosen = selection(include, exclude, kinds, min_side)
    found = mpocompress.look(file, selection=chosen, model=own_model, key=key, allow_pickle=allow_pickle)
    with printing():
        if as_json:
            click.echo(found.to_json(indent=2))
        elif isinstance(found, Report):
            show_report(found, stdout())
        else:
            show_overview(found, stdout())
