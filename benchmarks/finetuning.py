"""What fine-tuning brings a compressed model, beside pruned ones that are fine-tuned in the same way.

    python -m benchmarks.finetuning --quick
    python -m benchmarks.finetuning --fashion FOLDER --resemblyzer FOLDER --audio FOLDER --kjv FILE --text FILE --json FILE
    python -m benchmarks.finetuning --merge FILE --merge FILE --markdown FILE

How to get the models and data is in `benchmarks/README.md`; steps, batches, fractions and goals are the table in
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
from benchmarks.finetuning_settings import GOALS, METHODS, QUICK, RIVALS, SEEDS, SETTINGS, USUAL, Settings
from benchmarks.finetuning_tables import GOALS_HEADER, notes, tables, verdicts
from benchmarks.inputs import versions
from benchmarks.quality import FILE, FOLDER, OUTPUT, chosen
from benchmarks.quality_rows import DATA_AWARE, FRACTIONS
from benchmarks.tables import command_line, environment, markdown_table, rich_table

WIDTH = 120


class _Seeds(click.ParamType[tuple[int, ...]]):
    """Whole numbers with commas between them."""

    name = "numbers"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(dict.fromkeys(int(one) for one in value.split(",")))
        except ValueError:
            self.fail(f"{value!r}: whole numbers with commas between them are wanted, such as 0,1,2.", param, ctx)


def measure(
    ledger: Ledger,
    *,
    files: dict[str, Any],
    quick: bool,
    asked: bool,
    methods: Sequence[str],
    keeps: Sequence[str],
    seeds: Sequence[int],
    steps: int | None,
) -> None:
    """Measure all that was asked for and is not in the ledger, into the ledger.

    Args:
        ledger: what is known.
        files: of the models, as `chosen` takes them.
        quick: few steps on few images.
        asked: only what the goals name.
        methods: names of methods; none for the usual ones.
        keeps: names of fractions; none for those of the settings.
        seeds: of training.
        steps: others than in the settings.
    """
    for subject in chosen(quick=quick, **files):
        settings: Settings = QUICK if quick else SETTINGS[subject.name]
        settings = replace(settings, steps=steps, steps_at={}) if steps else settings
        ledger.add_model(described(subject, settings))
        usual_keeps = tuple(GOALS[subject.name]) if asked and not quick else settings.keeps
        found = rows(
            subject,
            settings,
            methods=methods or ((DATA_AWARE, *RIVALS) if asked else USUAL),
            keeps=keeps or usual_keeps,
            seeds=seeds,
            is_known=lambda place: place in ledger.rows,
        )
        for row in found:
            ledger.add_row(row)


def show(ledger: Ledger, *, is_quick: bool) -> list[str]:
    """Print all tables.

    Args:
        ledger: the measurements.
        is_quick: whether the goals do not concern them.

    Returns:
        The same as lines of Markdown.
    """
    console = Console(width=WIDTH, highlight=False)
    page = [f"Made by `{each['command']}`; {each['tools']}." for each in ledger.commands]

    def table(title: str, header: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
        console.print(rich_table(title, header, cells, WIDTH))
        page.extend(markdown_table(title, header, cells))

    for name, model in ledger.models.items():
        found = ledger.of(name)
        if not found:
            continue
        for title, header, cells in tables(model, found):
            table(title, header, cells)
        for said in notes(model, found):
            console.print(f"  {said}", markup=False)
            page.extend(("", said))
        console.print()
    if not is_quick and (judged := list(verdicts(ledger))):
        table("what was asked for", GOALS_HEADER, judged)
    return page


@click.command()
@click.option("--fashion", type=FOLDER, help="The four files of Fashion-MNIST.")
@click.option("--resemblyzer", type=FOLDER, help="The package: its pretrained.pt.")
@click.option("--audio", type=FOLDER, help="Spoken .wav files.")
@click.option("--kjv", type=FILE, help="What benchmarks/kjv_lm.py wrote.")
@click.option("--text", type=FILE, help="What it was trained on.")
@click.option("--cache", type=FOLDER, help="Keep the sounds here as the encoder reads them; 90 MB.")
@click.option("--only", type=click.Choice(list(SETTINGS)), multiple=True, help="Models; all by default.")
@click.option("--method", "methods", type=click.Choice(METHODS), multiple=True, help="Methods; the usual four.")
@click.option("--keep", "keeps", type=click.Choice(list(FRACTIONS)), multiple=True, help="Fractions; see the settings.")
@click.option("--seeds", type=_Seeds(), help="Such as 0,1,2, which is the default; with --quick 0.")
@click.option("--steps", type=click.IntRange(min=1), help="Others than in the settings.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--quick", is_flag=True, help="Few bundled images and steps: does everything run?")
@click.option("--asked", is_flag=True, help="Only what the goals name.")
@click.option("--markdown", type=OUTPUT, help="Write the tables here.")
@click.option("--json", "json_path", type=OUTPUT, help="Write all measurements here, after every run.")
@click.option("--resume", is_flag=True, help="Keep what is in the file of --json, and make only what is not.")
@click.option("--merge", type=FILE, multiple=True, help="Measure nothing; show the measurements of such files.")
def main(
    *,
    methods: tuple[str, ...],
    keeps: tuple[str, ...],
    seeds: tuple[int, ...] | None,
    steps: int | None,
    threads: int,
    quick: bool,
    asked: bool,
    markdown: Path | None,
    json_path: Path | None,
    resume: bool,
    merge: tuple[Path, ...],
    **files: Any,
) -> None:
    """Compress trained models, fine-tune them towards the original ones, and measure what they still do."""
    torch.set_num_threads(threads)
    if resume and json_path is None:
        raise click.UsageError("--resume needs --json.")
    held = merge if merge else (json_path,) if resume and json_path is not None and json_path.is_file() else ()
    ledger = merged(held)
    ledger.path = json_path
    if not merge:
        made_by = environment([versions("torch", "librosa")], "cpu") | {"threads": str(threads)}
        ledger.commands.append({"command": command_line("-m benchmarks.finetuning"), **made_by})
        measure(
            ledger,
            files=files,
            quick=quick,
            asked=asked,
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
