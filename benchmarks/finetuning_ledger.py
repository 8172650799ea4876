"""The JSON of `benchmarks/finetuning.py`: written after every run, read to go on with it or to put several together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.finetuning_rows import Row
from benchmarks.finetuning_settings import Settings
from benchmarks.quality_models import Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What has to be known of a model to show its rows.

    Args:
        name: of the model.
        figures: what was measured, in words, the main figure first.
        larger_is_better: whether it is.
        decimals: of all figures.
        dense: the figures of the dense model.
        constant: main figure of one answer to every input.
        note: what a reader of the figures has to know.
        settings: how it was fine-tuned.
    """

    name: str
    figures: tuple[str, ...]
    larger_is_better: bool
    decimals: int
    dense: tuple[float, ...]
    constant: float
    note: str
    settings: Settings

    def shown(self, figure: float) -> str:
        """A figure in text."""
        return f"{figure:.{self.decimals}f}"


def described(subject: Subject, settings: Settings) -> Described:
    """What has to be known of a model; measures its dense weights."""
    return Described(
        name=subject.name,
        figures=subject.figures,
        larger_is_better=subject.larger_is_better,
        decimals=subject.decimals,
        dense=subject.scores(subject.module),
        constant=subject.constant,
        note=subject.note,
        settings=settings,
    )


@dataclass(slots=True, kw_only=True)
class Ledger:
    """All measurements so far.

    Args:
        commands: those that made them, each with what its figures depend on.
        models: name -> the model.
        rows: place -> row.
        path: where they are written after every change; None for nowhere.
    """

    commands: list[dict[str, str]] = field(default_factory=list)
    models: dict[str, Described] = field(default_factory=dict)
    rows: dict[tuple[str, str, str, int], Row] = field(default_factory=dict)
    path: Path | None = None

    def add_model(self, model: Described) -> None:
        """Take in a model.

        Raises:
            click.ClickException: it is known, and its rows were made with other settings or another dense model.
        """
        known = self.models.get(model.name)
        if known is not None and replace(known, settings=_but_keeps(known)) != replace(
            model, settings=_but_keeps(model)
        ):
            raise click.ClickException(f"{model.name}: there are rows of other settings, or of another dense model")
        self.models[model.name] = model
        self._write()

    def add_row(self, row: Row) -> None:
        """Take in a row, in the place of one that was made in the same way."""
        self.rows[row.place] = row
        self._write()

    def of(self, model: str) -> list[Row]:
        """The rows of a model."""
        return [row for row in self.rows.values() if row.model == model]

    def _write(self) -> None:
        if self.path is None:
            return
        document = {
            "commands": self.commands,
            "models": [asdict(model) for model in self.models.values()],
            "rows": [asdict(row) for row in self.rows.values()],
        }
        unfinished = self.path.with_name(f"{self.path.name}.part")
        unfinished.write_text(json.dumps(document, indent=1) + "\n")
        unfinished.replace(self.path)


def merged(paths: Iterable[Path]) -> Ledger:
    """The measurements of several files; of rows made in the same way, that of the last file counts.

    Raises:
        click.ClickException: they were made with different settings, or of different models.
    """
    ledger = Ledger()
    for path in paths:
        document = json.loads(path.read_text())
        ledger.commands.extend(each for each in document["commands"] if each not in ledger.commands)
        for model in document["models"]:
            ledger.add_model(_model(model))
        for row in document["rows"]:
            ledger.add_row(Row(**{**row, "untuned": tuple(row["untuned"]), "tuned": tuple(row["tuned"])}))
    return ledger


def _model(held: Mapping[str, Any]) -> Described:
    settings = Settings(**{**held["settings"], "keeps": tuple(held["settings"]["keeps"])})
    return Described(**{**held, "figures": tuple(held["figures"]), "dense": tuple(held["dense"]), "settings": settings})


def _but_keeps(model: Described) -> Settings:
    """The settings that rows have to have in common."""
    return replace(model.settings, keeps=())
