"""`mpocompress expand`."""

from __future__ import annotations

from typing import Any

import click

import mpocompress
from mpocompress.cli.options import build, options_of, output_option, source_argument
from mpocompress.cli.render.formatting import counted, labelled
from mpocompress.cli.terminal import printing
from mpocompress.compression.options import ExpandOptions
from mpocompress.user.options import keywords


@click.command()
@source_argument("FILE")
@output_option(required=True)
@options_of(ExpandOptions)
def expand(source: str, output: str, **values: Any) -> None:
    """Write an ordinary dense checkpoint from a compressed FILE: same names, dtypes and nesting as the original."""
    report = mpocompress.expand(source, output, **keywords(build(ExpandOptions, values)))
    with printing(output):
        for note in report.notes:
            click.echo(labelled(note).plain, err=True)
        rebuilt = counted(sum(len(matrix.members) for matrix in report.compressed), "weight", "weights")
        click.echo(f"Wrote {output}: {report.totals.dense_parameters:,} parameters, {rebuilt} rebuilt.")
