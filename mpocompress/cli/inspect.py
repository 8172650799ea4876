"""`mpocompress inspect`."""

from __future__ import annotations

from typing import Any

import click

import mpocompress
from mpocompress.cli.options import build, json_option, options_of, source_argument
from mpocompress.cli.render.overview_tables import show_overview
from mpocompress.cli.render.report_table import show_report
from mpocompress.cli.terminal import printing, stdout
from mpocompress.compression.options import InspectOptions
from mpocompress.reports.compression import Report
from mpocompress.user.options import keywords


@click.command()
@source_argument("FILE")
@options_of(InspectOptions, without=["sites", "selection__lstm"])
@json_option
def inspect(source: str, as_json: bool, **values: Any) -> None:
    """Show the report of a compressed FILE, or the contents of any other checkpoint.

    Options for the layers apply only to uncompressed checkpoints. Weights are not read.
    """
    outcome = mpocompress.inspect(source, **keywords(build(InspectOptions, values)))
    with printing():
        if as_json:
            click.echo(outcome.to_json(indent=2))
        elif isinstance(outcome, Report):
            show_report(outcome, stdout())
        else:
            show_overview(outcome, stdout())
