"""The JSON file of `benchmarks/finetuning.py`: written after every run, read to resume or to merge."""

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
    """Description of a model for its tables.

    Args:
        name: Name of the model.
        figures: Names of the scores, the main score first.
        larger_is_better: Whether larger scores are better.
        decimals: Decimals of all scores.
        dense: The scores of the dense model.
        constant: Main score of a constant output.
        note: Description of the scores for the reader.
        settings: Settings of the fine-tuning.
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
        """A score as text."""
        return f"{figure:.{self.decimals}f}"


def described(subject: Subject, settings: Settings) -> Described:
    """Describe a model; evaluates its dense weights."""
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
        commands: The commands that measured them, each with its environment.
        models: Name -> model.
        rows: Key -> row.
        path: The file written after every change, or None.
    """

    commands: list[dict[str, str]] = field(default_factory=list)
    models: dict[str, Described] = field(default_factory=dict)
    rows: dict[tuple[str, str, str, int], Row] = field(default_factory=dict)
    path: Path | None = None

    def add_model(self, model: Described) -> None:
        """Add a model.

        Raises:
            click.ClickException: If its rows were measured with other settings or another dense model.
        """
        known = self.models.get(model.name)
        if known is not None and replace(known, settings=_shared_settings(known)) != replace(
            model, settings=_shared_settings(model)
        ):
            raise click.ClickException(
                f"{model.name}: existing rows have other settings or another dense model; write to a new file"
            )
        self.models[model.name] = model
        self._write()

    def add_row(self, row: Row) -> None:
        """Add a row, replacing one with the same key."""
        self.rows[row.key] = row
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
    """The measurements of several files; of rows with the same key, that of the last file counts.

    Raises:
        click.ClickException: If they were measured with different settings or models.
    """
    ledger = Ledger()
    for path in paths:
        document = json.loads(path.read_text())
        ledger.commands.extend(command for command in document["commands"] if command not in ledger.commands)
        for model in document["models"]:
            ledger.add_model(_model(model))
        for row in document["rows"]:
            ledger.add_row(Row(**{**row, "before": tuple(row["before"]), "after": tuple(row["after"])}))
    return ledger


def _model(document: Mapping[str, Any]) -> Described:
    settings = Settings(**{**document["settings"], "keeps": tuple(document["settings"]["keeps"])})
    return Described(
        **{**document, "figures": tuple(document["figures"]), "dense": tuple(document["dense"]), "settings": settings}
    )


def _shared_settings(model: Described) -> Settings:
    """The settings that all rows must share."""
    return replace(model.settings, keeps=())
