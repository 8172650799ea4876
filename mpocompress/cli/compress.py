"""`mpocompress compress`, the default command."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

import mpocompress
from mpocompress.cli.options import (
    build,
    dry_run_option,
    json_option,
    options_of,
    output_option,
    source_argument,
    target_options,
    truncation_of,
)
from mpocompress.cli.render.plan_tables import show_plan
from mpocompress.cli.render.report_table import show_report
from mpocompress.cli.terminal import printing, progress_bar, stdout
from mpocompress.compression.options import CompressOptions, PlanOptions
from mpocompress.user.options import keywords


@click.command()
@source_argument("MODEL")
@output_option()
@target_options
@options_of(CompressOptions)
@dry_run_option("Show the plan for this target; write nothing.")
@json_option
@click.pass_context
def compress(
    ctx: click.Context, /, source: str, output: str | None, dry_run: bool, as_json: bool, **values: Any
) -> None:
    """Compress MODEL and show the error of every layer.

    Give exactly one target.
    """
    truncation = truncation_of(values, source)
    if output is None and not dry_run:
        raise click.UsageError("No output. Give -o FILE, or --dry-run.")
    if dry_run:
        plan_options = build(PlanOptions, values, truncations=[truncation])
        with progress_bar() as progress:
            planned = mpocompress.plan(source, **keywords(replace(plan_options, progress=progress)))
        with printing():
            if as_json:
                click.echo(planned.to_json(indent=2))
            else:
                show_plan(planned, stdout())
        ctx.exit(1 if planned.choices[0].problem else 3 if planned.choices[0].unmet else 0)
    options = build(CompressOptions, values, truncation=truncation)
    with progress_bar() as progress:
        report = mpocompress.compress(source, output or "", **keywords(replace(options, progress=progress)))
    with printing(output):
        if as_json:
            click.echo(report.to_json(indent=2))
        else:
            show_report(report, stdout())
            click.echo(f"\nWrote {output}. `mpocompress inspect {output}` shows this again.")
            if any("not carried over" in note for note in report.notes):
                click.echo(
                    "`mpocompress expand --like` restores the parts that were not carried over, from the original."
                )
    ctx.exit(3 if report.unmet else 0)
