"""Scores of trained models after compression, with and without calibration inputs, beside other methods.

    python -m benchmarks.quality --quick
    python -m benchmarks.quality --fashion FOLDER --resemblyzer FOLDER --audio FOLDER --kjv FILE --text FILE

`benchmarks/README.md` describes how to get the models and data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from benchmarks import quality_models
from benchmarks.inputs import extra, versions
from benchmarks.quality_goals import HEADER as GOALS_HEADER
from benchmarks.quality_goals import verdicts
from benchmarks.quality_models import Subject
from benchmarks.quality_plot import draw
from benchmarks.quality_rows import DENSE, FRACTIONS, METHODS, WHOLE, Row, rows
from benchmarks.tables import WIDTH, command_line, environment, markdown_table, rich_table

DETAILS = ("method", "keep", "parameters", "times fewer", "bytes", "score", "CPU s")
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OUTPUT = click.Path(dir_okay=False, path_type=Path)

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def tables(subject: Subject, measurements: Sequence[Row]) -> Iterator[Table]:
    """The tables of a model, as title, header and rows: each score by method and fraction, then the details."""
    dense = next(row.scores for row in measurements if row.method == DENSE)
    keeps = [keep for keep in FRACTIONS if any(row.keep == keep for row in measurements)]
    methods = dict.fromkeys(row.method for row in measurements if row.scores and row.method != DENSE)
    better = "larger" if subject.larger_is_better else "smaller"
    for index, figure in enumerate(subject.figures):
        title = f"{subject.name}: {figure}, {better} is better; dense {subject.shown(dense[index])}"
        if not index:
            title += f"; constant output {subject.shown(subject.constant)}"
        shown = {(row.method, row.keep): subject.shown(row.scores[index]) for row in measurements if row.scores}
        cells = [(method, *(shown.get((method, keep), "") for keep in (*keeps, WHOLE))) for method in methods]
        yield title, ("method", *(f"keep {keep}" for keep in (*keeps, WHOLE))), cells
    details = [
        (
            row.method,
            row.keep,
            f"{row.parameters:,}",
            f"{row.times_fewer:.2f}",
            f"{row.size_bytes:,}",
            subject.shown(row.scores[0]),
            "" if row.cpu_s is None else f"{row.cpu_s:.1f}",
        )
        for row in measurements
        if row.scores
    ]
    yield f"{subject.name}: {measurements[0].dense_parameters:,} parameters in the compressed layers", DETAILS, details


def chosen(
    *,
    only: Sequence[str],
    quick: bool,
    fashion: Path | None,
    resemblyzer: Path | None,
    audio: Path | None,
    kjv: Path | None,
    text: Path | None,
    cache: Path | None,
) -> Iterator[Subject]:
    """Yield the requested models, or all whose files were given.

    Raises:
        click.UsageError: If the files of a model are missing or incomplete.
    """
    if (resemblyzer is None) != (audio is None) or (kjv is None) != (text is None):
        raise click.UsageError("--resemblyzer goes with --audio, and --kjv with --text.")
    builders: dict[str, Callable[[], Subject]] = {}
    if quick:
        builders["fashion"] = lambda: quality_models.fashion(None, calibration=200, test=500)
    elif fashion is not None:
        builders["fashion"] = lambda: quality_models.fashion(fashion)
    if resemblyzer is not None and audio is not None:
        builders["resemblyzer"] = lambda: quality_models.resemblyzer(resemblyzer, audio, cache)
    if kjv is not None and text is not None:
        builders["kjv"] = lambda: quality_models.kjv(kjv, text)
    names = only or list(builders)
    if lacking := [name for name in names if name not in builders]:
        raise click.UsageError(f"Give the files of {', '.join(lacking)} (see benchmarks/README.md).")
    if not names:
        raise click.UsageError("Give the files of a model (see benchmarks/README.md), or --quick.")
    yield from (builders[name]() for name in names)


def document(subjects: Sequence[Subject], measurements: Sequence[Row]) -> dict[str, Any]:
    """All measurements as plain values for JSON."""
    return {
        "environment": environment([versions("torch", "librosa")], "cpu"),
        "models": [
            {
                "name": subject.name,
                "figures": subject.figures,
                "larger_is_better": subject.larger_is_better,
                "constant": subject.constant,
                "note": subject.note,
            }
            for subject in subjects
        ],
        "rows": [{**asdict(row), "times_fewer": row.times_fewer if row.scores else None} for row in measurements],
    }


@click.command()
@click.option("--fashion", type=FOLDER, help="The four files of Fashion-MNIST.")
@click.option("--resemblyzer", type=FOLDER, help="The package: its pretrained.pt.")
@click.option("--audio", type=FOLDER, help="Speech recordings, .wav.")
@click.option("--kjv", type=FILE, help="Output of benchmarks/kjv_lm.py.")
@click.option("--text", type=FILE, help="Its training text.")
@click.option("--cache", type=FOLDER, help="Store the preprocessed recordings here; 90 MB.")
@click.option(
    "--only", type=click.Choice(["fashion", "resemblyzer", "kjv"]), multiple=True, help="Models; all by default."
)
@click.option("--method", "methods", type=click.Choice(METHODS), multiple=True, help="Methods; all by default.")
@click.option("--keep", "keeps", type=click.Choice(list(FRACTIONS)), multiple=True, help="Fractions; all by default.")
@click.option("--quick", is_flag=True, help="A functional test on a few bundled images.")
@click.option("--goals", is_flag=True, help="Compare the scores with the goals.")
@click.option("--markdown", type=OUTPUT, help="Write the tables to this file.")
@click.option("--json", "json_path", type=OUTPUT, help="Write all measurements to this file.")
@click.option("--plot", type=OUTPUT, help="Write an SVG figure to this file; needs matplotlib.")
def main(
    *,
    methods: tuple[str, ...],
    keeps: tuple[str, ...],
    goals: bool,
    markdown: Path | None,
    json_path: Path | None,
    plot: Path | None,
    **files: Any,
) -> None:
    """Compress trained models with several methods, without training, and print their scores."""
    torch.set_num_threads(1)
    if plot is not None:
        extra("matplotlib")
    console = Console(width=WIDTH, highlight=False)
    page = [f"Command: `{command_line('-m benchmarks.quality')}`; {versions('torch', 'librosa')}."]
    subjects: list[Subject] = []
    measured: list[Row] = []

    def show(title: str, header: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
        console.print(rich_table(title, header, cells))
        page.extend(markdown_table(title, header, cells))

    for subject in chosen(**files):
        new_rows = list(rows(subject, methods or METHODS, keeps or tuple(FRACTIONS)))
        subjects.append(subject)
        measured.extend(new_rows)
        refused: dict[str, list[str]] = {}
        for row in new_rows:
            if row.refused:
                refused.setdefault(f"{row.method}: {row.refused}", []).append(row.keep)
        for title, header, cells in tables(subject, new_rows):
            show(title, header, cells)
        left_out = (f"{text.rstrip('.')} (left out at keep {', '.join(keep)})." for text, keep in refused.items())
        for line in (f"{subject.name}: {subject.note}.", *left_out):
            console.print(f"  {line}\n", markup=False)
            page.extend(("", line))
    if goals and (results := list(verdicts(measured))):
        show("goals", GOALS_HEADER, results)
    if markdown is not None:
        markdown.write_text("\n".join(page) + "\n")
    if json_path is not None:
        json_path.write_text(json.dumps(document(subjects, measured), indent=1) + "\n")
    if plot is not None:
        draw(subjects, measured, plot)


if __name__ == "__main__":
    main()
