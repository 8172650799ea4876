"""`mpocompress compress`, the default command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import mpocompress
from mpocompress.cli.options import (
    EXISTING,
    BondType,
    FractionType,
    calibration,
    data_options,
    force_option,
    json_option,
    last_wins,
    layer_options,
    selection,
    shape_options,
)
from mpocompress.cli.render.plan_tables import show_plan
from mpocompress.cli.render.report_table import show_report
from mpocompress.cli.terminal import printing, progress_bar, stdout
from mpocompress.reports.compression import STORED_DTYPES

if TYPE_CHECKING:
    from mpocompress.layers.selection import ForcedKind, LSTMChoice
    from mpocompress.mpo.sites import SitesChoice
    from mpocompress.planning.target import Truncation
    from mpocompress.reports.calibration import OutputKind

NO_TARGET = """How much should be kept? Give exactly one of:
  --bond N         every bond at most N (for single layers: --bond 'GLOB=N')
  --energy E       at least this fraction of the squared singular values
  --max-error E    at most this relative error in every matrix
  --keep F         at most this fraction of the eligible parameters
  --max-params N   at most this many parameters in the whole model
`mpocompress plan {model}` shows what each of them would give."""


@click.command()
@click.argument("model", type=EXISTING)
@click.option("-o", "--output", type=click.Path(path_type=str), help="Output: *.safetensors, a torch file, a folder.")
@click.option("--bond", type=BondType(), multiple=True, help="Target: cap of every bond; GLOB=N for single layers.")
@click.option("--energy", type=FractionType(), help="Target: fraction of the squared singular values to keep.")
@click.option(
    "--max-error",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="E",
    help="Target: relative error of every matrix.",
)
@click.option("--keep", type=FractionType(), help="Target: fraction of the eligible parameters, over all layers.")
@click.option("--max-params", type=click.IntRange(min=1), metavar="N", help="Target: parameters of the whole model.")
@shape_options
@layer_options
@data_options
@click.option(
    "--dtype",
    type=click.Choice(STORED_DTYPES),
    help="Dtype of the stored cores; int8 has scales beside it.  [default: that of the weight]",
)
@click.option("--dry-run", is_flag=True, help="Show the plan for this target; write nothing.")
@force_option
@json_option
@click.pass_context
def compress(
    ctx: click.Context,
    model: str,
    output: str | None,
    bond: tuple[tuple[str | None, int], ...],
    energy: float | None,
    max_error: float | None,
    keep: float | None,
    max_params: int | None,
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
    dtype: str | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Compress MODEL and show, layer by layer, what was lost.

    Exactly one target: --bond, --energy, --max-error, --keep or --max-params.
    """
    truncation = _truncation(model, bond, energy, max_error, keep, max_params)
    if output is None and not dry_run:
        raise click.UsageError("Where to? Give -o FILE, or --dry-run.")
    chosen = selection(include, exclude, kinds, min_side, lstm)
    known = calibration(calibrate, samples, output_kind, loss, save_calibration, own_model)
    if dry_run:
        with progress_bar() as progress:
            planned = mpocompress.plan(
                model,
                truncations=[truncation],
                sites=sites,
                selection=chosen,
                model=own_model,
                calibration=known,
                save_calibration=save_calibration,
                dtype=dtype,
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
        ctx.exit(1 if planned.choices[0].problem else 3 if planned.choices[0].unmet else 0)
    with progress_bar() as progress:
        report = mpocompress.compress(
            model,
            output or "",
            truncation=truncation,
            sites=sites,
            selection=chosen,
            model=own_model,
            calibration=known,
            save_calibration=save_calibration,
            dtype=dtype,
            key=key,
            allow_pickle=allow_pickle,
            jobs=jobs,
            overwrite=force,
            progress=progress,
        )
    with printing(output):
        if as_json:
            click.echo(report.to_json(indent=2))
        else:
            show_report(report, stdout())
            click.echo(f"\nWrote {output}. `mpocompress inspect {output}` shows this again.")
            if any("not carried over" in note for note in report.notes):
                click.echo("What is not carried over comes back with `mpocompress expand --like` and the original.")
    ctx.exit(3 if report.unmet else 0)


def _truncation(
    model: str,
    bond: tuple[tuple[str | None, int], ...],
    energy: float | None,
    max_error: float | None,
    keep: float | None,
    max_params: int | None,
) -> Truncation:
    """The one target that the options ask for."""
    caps = [number for glob, number in bond if glob is None]
    given = [
        name
        for name, value in (
            ("--bond", bond or None),
            ("--energy", energy),
            ("--max-error", max_error),
            ("--keep", keep),
            ("--max-params", max_params),
        )
        if value is not None
    ]
    if not given:
        raise click.UsageError(NO_TARGET.format(model=model))
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} are two targets: give exactly one.")
    if len(caps) > 1:
        raise click.UsageError(f"--bond is given {len(caps)} times for all layers: give it once, or as 'GLOB=N'.")
    return mpocompress.Truncation(
        max_bond=caps[0] if caps else None,
        energy=energy,
        max_error=max_error,
        keep=keep,
        max_params=max_params,
        bond_by_layer=last_wins((glob, number) for glob, number in bond if glob is not None),
    )
