"""Scores of compressed models before and after fine-tuning, beside pruned models that are fine-tuned in the same way.

    python -m benchmarks.finetuning --quick
    python -m benchmarks.finetuning --fashion FOLDER --resemblyzer FOLDER --audio FOLDER --kjv FILE --text FILE
    python -m benchmarks.finetuning --merge FILE --merge FILE --markdown FILE

`benchmarks/README.md` describes how to get the models and data. Steps, batches, fractions and goals are the table in
`benchmarks/finetuning_settings.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from benchmarks.finetuning_ledger import Ledger, described, merged
from benchmarks.finetuning_rows import rows
from benchmarks.finetuning_settings import DEFAULT_METHODS, GOALS, METHODS, QUICK, RIVALS, SEEDS, SETTINGS, Settings
from benchmarks.finetuning_tables import GOALS_HEADER, notes, tables, verdicts
from benchmarks.inputs import versions
from benchmarks.quality import FILE, FOLDER, OUTPUT, chosen
from benchmarks.quality_rows import DATA_AWARE, FRACTIONS
from benchmarks.tables import command_line, environment, markdown_table, rich_table

WIDTH = 120


class _Seeds(click.ParamType[tuple[int, ...]]):
    """Integers separated by commas."""

    name = "numbers"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(dict.fromkeys(int(number) for number in value.split(",")))
        except ValueError:
            self.fail(f"{value!r} is not a list of integers such as 0,1,2.", param, ctx)


def measure(
    ledger: Ledger,
    *,
    files: dict[str, Any],
    quick: bool,
    goals_only: bool,
    methods: Sequence[str],
    keeps: Sequence[str],
    seeds: Sequence[int],
    steps: int | None,
) -> None:
    """Measure everything requested that the ledger lacks, and add it to the ledger.

    Args:
        ledger: The measurements so far.
        files: Files of the models, as for `chosen`.
        quick: Whether to use few steps and few images.
        goals_only: Whether to measure only what a goal names.
        methods: Names of methods; empty for the default ones.
        keeps: Names of fractions; empty for those of the settings.
        seeds: Seeds of training.
        steps: Number of steps, or None for that of the settings.
    """
    for subject in chosen(quick=quick, **files):
        settings: Settings = QUICK if quick else SETTINGS[subject.name]
        settings = replace(settings, steps=steps, steps_at={}) if steps else settings
        ledger.add_model(described(subject, settings))
        default_keeps = tuple(GOALS[subject.name]) if goals_only and not quick else settings.keeps
        new_rows = rows(
            subject,
            settings,
            methods=methods or ((DATA_AWARE, *RIVALS) if goals_only else DEFAULT_METHODS),
            keeps=keeps or default_keeps,
            seeds=seeds,
            is_known=lambda key: key in ledger.rows,
        )
        for row in new_rows:
            ledger.add_row(row)


def show(ledger: Ledger, *, is_quick: bool) -> list[str]:
    """Print all tables and return them as lines of Markdown.

    Args:
        ledger: The measurements.
        is_quick: Whether the goals do not apply.
    """
    console = Console(width=WIDTH, highlight=False)
    page = [f"Command: `{run['command']}`; {run['tools']}." for run in ledger.commands]

    def table(title: str, header: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
        console.print(rich_table(title, header, cells, WIDTH))
        page.extend(markdown_table(title, header, cells))

    for name, model in ledger.models.items():
        measurements = ledger.of(name)
        if not measurements:
            continue
        for title, header, cells in tables(model, measurements):
            table(title, header, cells)
        for line in notes(model, measurements):
            console.print(f"  {line}", markup=False)
            page.extend(("", line))
        console.print()
    if not is_quick and (results := list(verdicts(ledger))):
        table("goals", GOALS_HEADER, results)
    return page


@click.command()
@click.option("--fashion", type=FOLDER, help="The four files of Fashion-MNIST.")
@click.option("--resemblyzer", type=FOLDER, help="The package: its pretrained.pt.")
@click.option("--audio", type=FOLDER, help="Speech recordings, .wav.")
@click.option("--kjv", type=FILE, help="Output of benchmarks/kjv_lm.py.")
@click.option("--text", type=FILE, help="Its training text.")
@click.option("--cache", type=FOLDER, help="Store the preprocessed recordings here; 90 MB.")
@click.option("--only", type=click.Choice(list(SETTINGS)), multiple=True, help="Models; all by default.")
@click.option("--method", "methods", type=click.Choice(METHODS), multiple=True, help="Methods; four by default.")
@click.option("--keep", "keeps", type=click.Choice(list(FRACTIONS)), multiple=True, help="Fractions; see the settings.")
@click.option("--seeds", type=_Seeds(), help="Default: 0,1,2; with --quick: 0.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps, instead of those in the settings.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--quick", is_flag=True, help="A functional test with few bundled images and steps.")
@click.option("--goals-only", is_flag=True, help="Measure only what a goal names.")
@click.option("--markdown", type=OUTPUT, help="Write the tables to this file.")
@click.option("--json", "json_path", type=OUTPUT, help="Write all measurements to this file after every run.")
@click.option("--resume", is_flag=True, help="Keep the rows in the file of --json and measure only the others.")
@click.option("--merge", type=FILE, multiple=True, help="Measure nothing; show the measurements in these files.")
def main(
    *,
    methods: tuple[str, ...],
    keeps: tuple[str, ...],
    seeds: tuple[int, ...] | None,
    steps: int | None,
    threads: int,
    quick: bool,
    goals_only: bool,
    markdown: Path | None,
    json_path: Path | None,
    resume: bool,
    merge: tuple[Path, ...],
    **files: Any,
) -> None:
    """Compress trained models, fine-tune them towards the original ones, and print their scores."""
    torch.set_num_threads(threads)
    if resume and json_path is None:
        raise click.UsageError("--resume needs --json.")
    sources = merge if merge else (json_path,) if resume and json_path is not None and json_path.is_file() else ()
    ledger = merged(sources)
    ledger.path = json_path
    if not merge:
        facts = environment([versions("torch", "librosa")], "cpu") | {"threads": str(threads)}
        ledger.commands.append({"command": command_line("-m benchmarks.finetuning"), **facts})
        measure(
            ledger,
            files=files,
            quick=quick,
            goals_only=goals_only,
            methods=methods,
            keeps=keeps,
            seeds=seeds or ((0,) if quick else SEEDS),
            steps=steps,
        )
    page = show(ledger, is_quick=quick)
    if markdown is not None:
        markdown.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
