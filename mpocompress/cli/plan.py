"""`mpocompress plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import mpocompress
from mpocompress.cli.options import (
    EXISTING,
    calibration,
    data_options,
    json_option,
    layer_options,
    selection,
    shape_options,
)
from mpocompress.cli.render.overview_tables import show_estimates
from mpocompress.cli.render.plan_tables import show_plan
from mpocompress.cli.terminal import printing, progress_bar, stdout

if TYPE_CHECKING:
    from mpocompress.layers.selection import ForcedKind, LSTMChoice
    from mpocompress.mpo.sites import SitesChoice
    from mpocompress.reports.calibration import OutputKind


@click.command()
@click.argument("model", type=EXISTING)
@shape_options
@layer_options
@data_options
@click.option("--dry-run", is_flag=True, help="Count parameters by names and shapes alone; read no weight.")
@json_option
def plan(
    model: str,
    sites: SitesChoice,
    lstm: LSTMChoice,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    kinds: tuple[tuple[ForcedKind, str], ...],
    min_side: int,
    own_model: str | None,
    calibrate: str | None,
    samples: int | None,
    output_kind: OutputKind | None,
    loss: str | None,
    save_calibration: str | None,
    key: str | None,
    allow_pickle: bool,
    jobs: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Show what a range of targets would make of MODEL; write nothing."""
    chosen = selection(include, exclude, kinds, min_side, lstm)
    known = calibration(calibrate, samples, output_kind, loss, save_calibration, own_model)
    if dry_run and known is not None:
        raise click.UsageError("--dry-run reads no weight and runs no model: leave out --calibrate.")
    if dry_run:
        counted = mpocompress.overview(
            model, sites=sites, selection=chosen, model=own_model, key=key, allow_pickle=allow_pickle
        )
        with printing():
            if as_json:
                click.echo(counted.to_json(indent=2))
            else:
                show_estimates(counted, stdout())
        return
    with progress_bar() as progress:
        planned = mpocompress.plan(
            model,
            sites=sites,
            selection=chosen,
            model=own_model,
            calibration=known,
            save_calibration=save_calibration,
            key=key,
            allow_pickle=allow_pickle,
            jobs=jobs,
            progress=progress,
        )
    with printing():
        if as_json:
            click.echo(planned.to_json(indent=2))
        else:
            show_plan(planned, stdout())
