"""`mpocompress plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import mpocompress
from mpocompress.cli.options import EXISTING, json_option, selection, selection_options
from mpocompress.cli.terminal import progress_bar, stdout
from mpocompress.render import show_plan

if TYPE_CHECKING:
    from mpocompress.selection import ForcedKind, LSTMChoice
    from mpocompress.sites import SitesChoice


@click.command()
@click.argument("model", type=EXISTING)
@selection_options
@json_option
def plan(
    model: str,
    sites: SitesChoice,
    lstm: LSTMChoice,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    kinds: tuple[tuple[ForcedKind, str], ...],
    min_side: int,
    key: str | None,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Show what a range of targets would make of MODEL; write nothing."""
    with progress_bar() as progress:
        planned = mpocompress.plan(
            model,
            sites=sites,
            selection=selection(include, exclude, kinds, min_side, lstm),
            key=key,
            jobs=jobs,
            progress=progress,
        )
    if as_json:
        click.echo(planned.to_json(indent=2))
    else:
        show_plan(planned, stdout())
