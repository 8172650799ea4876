"""`mpocompress bench`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

import mpocompress
from mpocompress.benchmarking.options import BenchOptions
from mpocompress.cli.options import build, json_option, options_of, source_argument
from mpocompress.cli.render.bench_tables import show_bench
from mpocompress.cli.terminal import printing, progress_bar, stdout
from mpocompress.user.options import keywords


@click.command()
@source_argument("FILE")
@options_of(BenchOptions)
@json_option
def bench(source: str, as_json: bool, **values: Any) -> None:
    """Compare the speed of a compressed FILE with dense layers on this machine.

    Without --model, each layer is measured separately, with its own weights and random inputs.
    """
    if values["inputs"] is not None and values["model"] is None:
        raise click.UsageError("--input needs --model: give both.")
    if values["layers"] and values["model"] is not None:
        raise click.UsageError("--model measures the whole model, --layer separate layers: give one of them.")
    options = build(BenchOptions, values)
    with progress_bar() as progress:
        report = mpocompress.bench(source, **keywords(replace(options, progress=progress)))
    with printing():
        if as_json:
            click.echo(report.to_json(indent=2))
        else:
            show_bench(report, stdout())
