"""`mpocompress plan`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

import mpocompress
from mpocompress.cli.options import build, dry_run_option, json_option, options_of, source_argument
from mpocompress.cli.render.overview_tables import show_estimates
from mpocompress.cli.render.plan_tables import show_plan
from mpocompress.cli.terminal import printing, progress_bar, stdout
from mpocompress.compression.options import InspectOptions, PlanOptions
from mpocompress.errors import CheckpointError
from mpocompress.reports.compression import Report
from mpocompress.user.options import keywords


@click.command()
@source_argument("MODEL")
@options_of(PlanOptions, without=["dtype"])
@dry_run_option("Predict parameters from names and shapes; read no weights.")
@json_option
def plan(source: str, dry_run: bool, as_json: bool, **values: Any) -> None:
    """Predict the parameters and errors of MODEL for a range of targets; write nothing."""
    options = build(PlanOptions, values)
    if dry_run and options.calibration is not None:
        raise click.UsageError("--dry-run reads no weights and runs no model: leave out --calibrate.")
    if dry_run:
        overview = mpocompress.inspect(source, **keywords(build(InspectOptions, values)))
        if isinstance(overview, Report):
            raise CheckpointError(
                where=source,
                found="a compressed checkpoint",
                why="its matrices are already truncated",
                action=f"Plan with the original. `mpocompress inspect {source}` shows the report of this file.",
            )
        with printing():
            if as_json:
                click.echo(overview.to_json(indent=2))
            else:
                show_estimates(overview, stdout())
        return
    with progress_bar() as progress:
        planned = mpocompress.plan(source, **keywords(replace(options, progress=progress)))
    with printing():
        if as_json:
            click.echo(planned.to_json(indent=2))
        else:
            show_plan(planned, stdout())
