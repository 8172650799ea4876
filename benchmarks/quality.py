"""What is left of a trained model after compression, with and without calibration inputs, beside other methods.

    python -m benchmarks.quality --quick
    python -m benchmarks.quality --fashion FOLDER --resemblyzer FOLDER --audio FOLDER --kjv FILE --text FILE

How to get the models and data is in `benchmarks/README.md`.
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
from benchmarks.quality_goals import asked as goals
from benchmarks.quality_models import Subject
from benchmarks.quality_plot import draw
from benchmarks.quality_rows import DENSE, FRACTIONS, METHODS, WHOLE, Row, rows
from benchmarks.tables import WIDTH, command_line, environment, markdown_table, rich_table

DETAILS = ("method", "keep", "parameters", "times fewer", "bytes", "score", "CPU s")
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OUTPUT = click.Path(dir_okay=False, path_type=Path)

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def tables(subject: Subject, found: Sequence[Row]) -> Iterator[Table]:
    """The measurements of a model: each figure by method and fraction, then what each costs.

    Args:
        subject: the model.
        found: its measurements.

    Yields:
        Title, header, rows.
    """
    dense = next(row.scores for row in found if row.method == DENSE)
    keeps = [keep for keep in FRACTIONS if any(row.keep == keep for row in found)]
    methods = dict.fromkeys(row.method for row in found if row.scores and row.method != DENSE)
    better = "larger" if subject.larger_is_better else "smaller"
    for place, figure in enumerate(subject.figures):
        title = f"{subject.name}: {figure}, {better} is better; dense {subject.shown(dense[place])}"
        if not place:
            title += f"; one answer to everything {subject.shown(subject.constant)}"
        shown = {(row.method, row.keep): subject.shown(row.scores[place]) for row in found if row.scores}
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
        for row in found
        if row.scores
    ]
    yield f"{subject.name}: {found[0].dense_parameters:,} parameters in the compressed layers", DETAILS, details


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
    """The models that were asked for, or all whose files were given.

    Raises:
        click.UsageError: a model whose files were not given, or only some of them.
    """
    if (resemblyzer is None) != (audio is None) or (kjv is None) != (text is None):
        raise click.UsageError("--resemblyzer goes with --audio, and --kjv with --text.")
    made: dict[str, Callable[[], Subject]] = {}
    if quick:
        made["fashion"] = lambda: quality_models.fashion(None, calibration=200, test=500)
    elif fashion is not None:
        made["fashion"] = lambda: quality_models.fashion(fashion)
    if resemblyzer is not None and audio is not None:
        made["resemblyzer"] = lambda: quality_models.resemblyzer(resemblyzer, audio, cache)
    if kjv is not None and text is not None:
        made["kjv"] = lambda: quality_models.kjv(kjv, text)
    wanted = only or list(made)
    if lacking := [name for name in wanted if name not in made]:
        raise click.UsageError(f"No files were given for {', '.join(lacking)}.")
    if not wanted:
        raise click.UsageError("Give the files of a model (see benchmarks/README.md), or --quick.")
    yield from (made[name]() for name in wanted)


def document(subjects: Sequence[Subject], found: Sequence[Row]) -> dict[str, Any]:
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
        "rows": [{**asdict(row), "times_fewer": row.times_fewer if row.scores else None} for row in found],
    }


@click.command()
@click.option("--fashion", type=FOLDER, help="The four files of Fashion-MNIST.")
@click.option("--resemblyzer", type=FOLDER, help="The package: its pretrained.pt.")
@click.option("--audio", type=FOLDER, help="Spoken .wav files.")
@click.option("--kjv", type=FILE, help="What benchmarks/kjv_lm.py wrote.")
@click.option("--text", type=FILE, help="What it was trained on.")
@click.option("--cache", type=FOLDER, help="Keep the sounds here as the encoder reads them; 90 MB.")
@click.option("--only", type=click.Choice(["fashion", "resemblyzer", "kjv"]), multiple=True, help="Models; all.")
@click.option("--method", "methods", type=click.Choice(METHODS), multiple=True, help="Methods; all by default.")
@click.option("--keep", "keeps", type=click.Choice(list(FRACTIONS)), multiple=True, help="Fractions; all by default.")
@click.option("--quick", is_flag=True, help="Few bundled images: does everything run?")
@click.option("--asked", is_flag=True, help="Show what was asked for beside what was reached.")
@click.option("--markdown", type=OUTPUT, help="Write the tables here.")
@click.option("--json", "json_path", type=OUTPUT, help="Write all measurements here.")
@click.option("--plot", type=OUTPUT, help="Write an SVG figure here; needs matplotlib.")
def main(
    *,
    methods: tuple[str, ...],
    keeps: tuple[str, ...],
    asked: bool,
    markdown: Path | None,
    json_path: Path | None,
    plot: Path | None,
    **files: Any,
) -> None:
    """Compress trained models in many ways, none with training, and measure what they still do."""
    torch.set_num_threads(1)
    if plot is not None:
        extra("matplotlib")
    console = Console(width=WIDTH, highlight=False)
    page = [f"Made by `{command_line('-m benchmarks.quality')}`; {versions('torch', 'librosa')}."]
    subjects: list[Subject] = []
    measured: list[Row] = []

    def show(title: str, header: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
        console.print(rich_table(title, header, cells))
        page.extend(markdown_table(title, header, cells))

    for subject in chosen(**files):
        found = list(rows(subject, methods or METHODS, keeps or tuple(FRACTIONS)))
        subjects.append(subject)
        measured.extend(found)
        refused: dict[str, list[str]] = {}
        for row in found:
            if row.refused:
                refused.setdefault(f"{row.method}: {row.refused}", []).append(row.keep)
        for title, header, cells in tables(subject, found):
            show(title, header, cells)
        left_out = (f"{said.rstrip('.')} (left out at keep {', '.join(at)})." for said, at in refused.items())
        for said in (f"{subject.name}: {subject.note}.", *left_out):
            console.print(f"  {said}\n", markup=False)
            page.extend(("", said))
    if asked and (verdicts := list(goals(measured))):
        show("what was asked for", GOALS_HEADER, verdicts)
    if markdown is not None:
        markdown.write_text("\n".join(page) + "\n")
    if json_path is not None:
        json_path.write_text(json.dumps(document(subjects, measured), indent=1) + "\n")
    if plot is not None:
        draw(subjects, measured, plot)


if __name__ == "__main__":
    main()
