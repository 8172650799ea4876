"""`mpocompress inspect`."""

from __future__ import annotations

import click

import mpocompress
from mpocompress.cli.options import EXISTING, json_option
from mpocompress.cli.terminal import stdout
from mpocompress.render import show_report


@click.command()
@click.argument("file", type=EXISTING)
@json_option
def inspect(file: str, as_json: bool) -> None:
    """Show the report inside a compressed FILE."""
    report = mpocompress.inspect(file)
    if as_json:
        click.echo(report.to_json(indent=2))
    else:
        show_report(report, stdout())
