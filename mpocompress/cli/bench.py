"""`mpocompress bench`."""

from __future__ import annotations

from typing import Any

import click

import mpocompress
from mpocompress.cli.options import EXISTING, json_option
from mpocompress.cli.render.bench_tables import show_bench
from mpocompress.cli.terminal import printing, progress_bar, stdout


class NumbersType(click.ParamType[tuple[int, ...]]):
    """`1,32`: whole numbers of 1 or more."""

    name = "N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Split the value."""
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in str(value).split(",")]
        if not all(word.isascii() and word.isdigit() and len(word) < LONGEST and int(word) for word in words):
            self.fail(f"{value!r} is not a list of whole numbers of 1 or more, such as 1,32.", param, ctx)
        return tuple(dict.fromkeys(map(int, words)))


LONGEST = 9
"""Digits of a size that is still meant."""


@click.command()
@click.argument("file", type=EXISTING)
@click.option(
    "--model",
    metavar="PLACE:NAME",
    help="Run your whole model; file.py:name or package.module:name is imported and run.",
)
@click.option(
    "--input",
    "inputs",
    metavar="PLACE:NAME",
    help="Function of a batch size and a length that makes what the model is called with.  [default: a guess]",
)
@click.option("--layer", "layers", metavar="GLOB", multiple=True, help="Only these layers, each alone.")
@click.option("--batch", "batches", type=NumbersType(), default="1,32", show_default=True, help="Inputs in a batch.")
@click.option(
    "--length", "lengths", type=NumbersType(), default="100,1", show_default=True, help="Steps of a sequence."
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of torch.")
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    help="Samples of every contender at most; slow ones get fewer.",
)
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where everything runs."
)
@json_option
def bench(
    file: str,
    model: str | None,
    inputs: str | None,
    layers: tuple[str, ...],
    batches: tuple[int, ...],
    lengths: tuple[int, ...],
    threads: int,
    repeats: int,
    device: str,
    as_json: bool,
) -> None:
    """Time a compressed FILE against dense layers, side by side, on this machine.

    Without --model each layer runs alone, on random inputs and with its own weights.
    """
    if inputs is not None and model is None:
        raise click.UsageError("--input is what --model is called with: give both.")
    if layers and model is not None:
        raise click.UsageError("--model runs as a whole, --layer chooses layers that run alone: give one of them.")
    with progress_bar() as progress:
        report = mpocompress.bench(
            file,
            model=model,
            inputs=inputs,
            batches=batches,
            lengths=lengths,
            layers=layers,
            threads=threads,
            repeats=repeats,
            device=device,
            progress=progress,
        )
    with printing():
        if as_json:
            click.echo(report.to_json(indent=2))
        else:
            show_bench(report, stdout())
