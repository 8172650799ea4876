"""`mpocompress finetune`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

import mpocompress
from mpocompress.cli.options import EXISTING, force_option, json_option
from mpocompress.cli.render.formatting import labelled
from mpocompress.cli.render.tuning_table import show_tuning
from mpocompress.cli.terminal import INTERRUPTED, is_first_process, printing, stdout
from mpocompress.reports.calibration import OUTPUT_KINDS

if TYPE_CHECKING:
    from mpocompress.finetuning.options import Precision, Trained
    from mpocompress.finetuning.progress import FinetuneProgress
    from mpocompress.reports.calibration import OutputKind


class TextsType(click.ParamType[tuple[int, int]]):
    """`LENGTH` or `LENGTHxBATCHES`."""

    name = "LENGTH[xBATCHES]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Split the value."""
        if isinstance(value, tuple):
            return value
        length, _, batches = str(value).partition("x")
        words = (length, batches or "64")
        if not all(word.isascii() and word.isdigit() and len(word) < LONGEST for word in words):
            self.fail(
                f"{value!r} is not a length in tokens, such as 128, or 128x64 for 64 batches of them.", param, ctx
            )
        return int(words[0]), int(words[1])


LONGEST = 9
"""Digits of a number that is still meant."""


@click.command()
@click.argument("file", type=EXISTING)
@click.option("-o", "--output", type=click.Path(path_type=str), help="Output: *.safetensors, a torch file, a folder.")
@click.option(
    "--model",
    "own_model",
    metavar="PLACE:NAME",
    help="Your own model; file.py:name or package.module:name is imported and run.",
)
@click.option("--data", metavar="PLACE:NAME", help="Batches to train on: inputs, or pairs of inputs and a target.")
@click.option(
    "--self-generate",
    type=TextsType(),
    help="Instead of --data, of a language model: texts of so many tokens that the original writes itself.",
)
@click.option(
    "--teacher", metavar="FILE", help="The original, whose outputs are learnt.  [default: looked for beside FILE]"
)
@click.option("--no-teacher", is_flag=True, help="Learn from targets alone.")
@click.option(
    "--teacher-share",
    type=click.FloatRange(0, 1),
    metavar="F",
    help="Share of the teacher in the loss.  [default: 1; 0.5 with targets]",
)
@click.option(
    "--kind",
    "output_kind",
    type=click.Choice(OUTPUT_KINDS),
    help="What the model puts out.  [default: told from its outputs]",
)
@click.option("--loss", metavar="PLACE:NAME", help="Loss of output and target.  [default: one that suits the outputs]")
@click.option(
    "--eval",
    "evaluate",
    metavar="PLACE:NAME",
    help="Function of the model that returns its score, larger being better: the best is kept.  "
    "[default: the loss on held-out batches]",
)
@click.option(
    "--held-out", metavar="PLACE:NAME", help="Batches to measure on.  [default: one in eight of the first ones]"
)
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Steps at most.  [default: 1000]")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), metavar="M", help="Minutes at most.")
@click.option(
    "--batches-per-step", type=click.IntRange(min=1), metavar="N", help="Batches of every step.  [default: 1 a process]"
)
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    metavar="LR",
    help="Largest step size.  [default: one for every tensor]",
)
@click.option(
    "--train", type=click.Choice(["all", "cores"]), default="all", show_default=True, help="Which parameters."
)
@click.option(
    "--carry-state", is_flag=True, help="Batches are consecutive pieces of texts: LSTMs go on from one to the next."
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Of the products.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="What is drawn with.")
@click.option("--device", metavar="DEVICE", help="Such as cpu or cuda:1.  [default: cuda where there is one]")
@click.option("--allow-pickle", is_flag=True, help="Load a pickled teacher by RUNNING the code in it.")
@click.option("--resume", is_flag=True, help="Go on with the run to this output that was stopped.")
@force_option
@json_option
@click.pass_context
def finetune(
    ctx: click.Context,
    file: str,
    output: str | None,
    own_model: str | None,
    data: str | None,
    self_generate: tuple[int, int] | None,
    teacher: str | None,
    no_teacher: bool,
    teacher_share: float | None,
    output_kind: OutputKind | None,
    loss: str | None,
    evaluate: str | None,
    held_out: str | None,
    steps: int | None,
    minutes: float | None,
    batches_per_step: int | None,
    lr: float | None,
    train: Trained,
    carry_state: bool,
    precision: Precision,
    seed: int,
    device: str | None,
    allow_pickle: bool,
    resume: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Train a compressed FILE towards the outputs of the original.

    No targets are needed. Ctrl-C writes the best so far, and --resume goes on.
    """
    for is_wrong, said in (
        (output is None, "Where to? Give -o FILE."),
        (own_model is None, "Which model? Give --model net.py:build."),
        ((data is None) == (self_generate is None), "On what? Give --data net.py:train, or --self-generate LENGTH."),
        (no_teacher and teacher is not None, "--teacher and --no-teacher contradict each other: give one of them."),
        (no_teacher and self_generate is not None, "--self-generate lets the teacher write: leave --no-teacher out."),
        (resume and force, "--resume goes on with a run, --force starts anew: give one of them."),
    ):
        if is_wrong:
            raise click.UsageError(said)
    with _progress() as progress:
        report = mpocompress.finetune(
            file,
            output or "",
            model=own_model or "",
            data=data if self_generate is None else _texts(*self_generate),
            teacher=teacher if teacher is not None else not no_teacher,
            evaluate=evaluate,
            loss=loss,
            steps=steps,
            minutes=minutes,
            lr=lr,
            train=train,
            kind=output_kind,
            teacher_share=teacher_share,
            held_out=held_out,
            carry_state=carry_state,
            batches_per_step=batches_per_step,
            precision=precision,
            seed=seed,
            device=device,
            allow_pickle=allow_pickle,
            overwrite=force,
            resume=resume,
            progress=progress,
        )
    tuning = report.tuning[-1]
    if is_first_process():
        with printing(output):
            if as_json:
                click.echo(report.to_json(indent=2))
            else:
                console = stdout()
                show_tuning(tuning, console)
                console.print()
                console.print(labelled(" ".join(tuning.verdict()), "Verdict", "bold"), highlight=False)
                click.echo(f"\nWrote {output}. `mpocompress inspect {output}` shows this and the layers.")
                if tuning.is_interrupted:
                    click.echo("The same command with --resume goes on.")
    ctx.exit(INTERRUPTED if tuning.is_interrupted else 3 if tuning.is_broken or not tuning.best_step else 0)


def _texts(length: int, batches: int) -> object:
    return mpocompress.SelfGenerated(length=length, batches=batches)


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
