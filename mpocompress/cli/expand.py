"""`mpocompress expand`."""

from __future__ import annotations

import click

import mpocompress
from mpocompress.cli.options import EXISTING, force_option
from mpocompress.cli.render.formatting import counted, labelled
from mpocompress.cli.terminal import printing


@click.command()
@click.argument("file", type=EXISTING)
@click.option("-o", "--output", type=click.Path(path_type=str), required=True, help="File or folder to write.")
@click.option(
    "--like", type=EXISTING, metavar="ORIGINAL", help="The original: give it back in its own form, with new weights."
)
@force_option
def expand(file: str, output: str, like: str | None, force: bool) -> None:
    """Write an ordinary dense checkpoint from a compressed FILE: same names, dtypes and nesting as the original."""
    report = mpocompress.expand(file, output, like=like, overwrite=force)
    with printing(output):
        for note in report.notes:
            click.echo(labelled(note).plain, err=True)
        rebuilt = counted(sum(len(matrix.members) for matrix in report.compressed), "weight", "weights")
        click.echo(f"Wrote {output}: {report.totals.dense_parameters:,} parameters, {rebuilt} rebuilt.")
