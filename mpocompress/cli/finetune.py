"""`mpocompress finetune`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

import mpocompress
from mpocompress.cli.options import TextsType, build, json_option, options_of, output_option, source_argument
from mpocompress.cli.render.finetuning_table import show_finetuning
from mpocompress.cli.render.formatting import labelled
from mpocompress.cli.terminal import INTERRUPTED, printing, stdout
from mpocompress.finetuning.options import FinetuneOptions
from mpocompress.finetuning.process_rank import is_rank_zero
from mpocompress.finetuning.progress import FinetuneProgress
from mpocompress.user.options import keywords


@click.command()
@source_argument("FILE")
@output_option()
@options_of(FinetuneOptions)
@click.option(
    "--self-generate",
    type=TextsType(),
    help="Instead of --data, of a language model: texts of so many tokens that the original writes itself.",
)
@click.option("--no-teacher", is_flag=True, help="Train on targets alone.")
@json_option
@click.pass_context
def finetune(
    ctx: click.Context,
    /,
    source: str,
    output: str | None,
    self_generate: tuple[int, int] | None,
    no_teacher: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Train a compressed FILE towards the outputs of the original.

    No targets are needed. Ctrl-C writes the best model so far, and --resume continues.
    """
    data, teacher = values["data"], values["teacher"]
    for is_wrong, problem in (
        (output is None, "Where to? Give -o FILE."),
        (values["model"] is None, "Which model? Give --model net.py:build."),
        ((data is None) == (self_generate is None), "On what? Give --data net.py:train, or --self-generate LENGTH."),
        (no_teacher and teacher is not None, "--teacher and --no-teacher contradict each other: give one of them."),
        (no_teacher and self_generate is not None, "--self-generate lets the teacher write: leave --no-teacher out."),
        (values["resume"] and values["overwrite"], "--resume continues a run, --force restarts it: give one of them."),
    ):
        if is_wrong:
            raise click.UsageError(problem)
    given: dict[str, Any] = dict(values)
    if self_generate is not None:
        length, batches = self_generate
        given["data"] = mpocompress.SelfGenerated(length=length, batches=batches)
    if no_teacher:
        given["teacher"] = False
    options = build(FinetuneOptions, given)
    with _progress() as progress:
        report = mpocompress.finetune(source, output or "", **keywords(replace(options, progress=progress)))
    tuning = report.finetuning[-1]
    if is_rank_zero():
        with printing(output):
            if as_json:
                click.echo(report.to_json(indent=2))
            else:
                console = stdout()
                show_finetuning(tuning, console)
                console.print()
                console.print(labelled(" ".join(tuning.verdict()), "Verdict", "bold"), highlight=False)
                click.echo(f"\nWrote {output}. `mpocompress inspect {output}` shows this and the layers.")
                if tuning.is_interrupted:
                    click.echo("The same command with --resume goes on.")
    ctx.exit(INTERRUPTED if tuning.is_interrupted else 3 if tuning.is_broken or not tuning.best_step else 0)


@contextmanager
def _progress() -> Iterator[Callable[[FinetuneProgress], None]]:
    """A bar on stderr while the block runs; where stderr is no terminal, a line for every measurement."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield lambda found: click.echo(_line(found), err=True) if found.is_new else None
        return
    columns = (TextColumn("step {task.fields[step]}"), BarColumn(), TextColumn("{task.fields[said]}"))
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task("", total=1.0, step="", said="")

    def show(found: FinetuneProgress) -> None:
        bar.start()  # with the first step: other processes of a team never get here
        bar.update(task, completed=found.share, step=f"{found.step:,}/{found.steps:,}", said=_said(found))

    try:
        yield show
    finally:
        bar.stop()


def _said(found: FinetuneProgress) -> str:
    """The loss, the last measurement and the time left, in few words."""
    one = found.evaluation
    loss = "" if found.loss is None else f"loss {found.loss:.3g}, "
    measured = f"score {one.score:.4g}" if one.score is not None else f"held out {one.loss:.3g}"
    left = "" if found.remaining_s is None else f", {_clock(found.remaining_s)} left"
    return f"{loss}{measured}{left}"


def _line(found: FinetuneProgress) -> str:
    return f"step {found.step:,}/{found.steps:,}: {_said(found)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
