"""The report of a compression: plain numbers that check their own sums, and its JSON document."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpocompress.errors import FormatError, ReportError
from mpocompress.layers.names import core_name, scale_name
from mpocompress.layers.specs import Skipped
from mpocompress.mpo.sites import Sites
from mpocompress.reports.calibration import CalibrationReport
from mpocompress.reports.documents import build, fields_of, read_document, typed
from mpocompress.reports.finetuning import Evaluation, TuningReport

FORMAT, VERSION = "mpocompress", 1


SUM_TOLERANCE = 1e-5
"""How far the discarded weights may be from the squared relative error, as a share of the squared norm."""


FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")


INT8 = "int8"


STORED_DTYPES = (*FLOAT_DTYPES, INT8)
"""What cores are stored in; dense weights have one of `FLOAT_DTYPES`."""


ROUNDING_TOLERANCE = {**dict.fromkeys(FLOAT_DTYPES, SUM_TOLERANCE), "bfloat16": 1e-4, INT8: 1e-2}
"""The most that storing the cores in a dtype may add to the squared error, as a share of the squared norm.

In int8 it was 1e-4 for the median matrix, 1.3e-3 at most in trained LSTMs and 5.4e-3 in random ones with heavy tails,
where one entry takes the codes of its whole channel.
"""


FRAGILE_ERROR = 0.3
"""Relative error above which some real models are known to stop working without data or fine-tuning."""


RUINOUS_ERROR = 0.6
"""Relative error above which nearly all do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The checkpoint that was compressed.

    Args:
        file: its name, without the folder.
        sha256: digest of the file with the weights, hexadecimal; of several, that of their digests.
        container: the kind of file, such as `torch-zip`.
        key: where the state dict sits in it; empty for the top.
        file_size_bytes: size of the file.
    """

    file: str
    sha256: str
    container: str
    key: str
    file_size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What was asked for, and what came out.

    Args:
        kind: `bond`, `energy`, `max_error`, `keep` or `max_params`.
        asked: the value; None when bonds were given for single layers only.
        achieved: the largest bond, the least energy kept, the largest relative error, the fraction of the eligible
            parameters, or the parameters of the whole model. None when nothing was compressed.
        by_layer: bonds asked for single layers, glob -> bond.
    """

    kind: str
    asked: float | None
    achieved: float | None
    by_layer: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixReport:
    """One matrix: what it was, what it became, what was lost.

    Args:
        name: what its cores are filed under (`NAME.core.0`, ...); for a dense matrix, the name of the first member.
        layer: path of the module.
        kind: `lstm`, `lstm_cell`, `linear` or `conv1d`.
        members: original tensor names, left to right; two for a joint LSTM matrix.
        member_columns: columns of each member.
        shape: (rows, columns) of what was decomposed.
        row_dims: row dim of each site; empty when dense.
        col_dims: column dim of each site; empty when dense.
        anti_aligned: whether the last site's row digit is the slowest.
        bonds: bond of each cut; empty when dense.
        dense_parameters: entries of the dense matrix.
        parameters: entries of the cores, or of the dense matrix where it was kept.
        relative_error: relative Frobenius error of the cores as stored, measured on the matrix they multiply out to.
        squared_norm: squared Frobenius norm of the dense matrix.
        discarded_weights: sum of the squared singular values dropped at each cut; empty where the cores were found with
            calibration inputs, which drop nothing of the plain norm.
        rounding_weight: squared error that storing the cores in `dtype` added.
        source_dtype: dtype of the members.
        dtype: dtype of the stored cores; `int8` where they are codes with scales beside them.
        reason: why the matrix was kept dense; empty where it was not.
        kind_from: from where `kind` is known: `as asked`, `recorded class`, `model`, `config` or `name and shape`.
        transposed: whether the original tensor is the transpose of what was decomposed.
        weighted_error: relative error as the model feels it, in the metric of the calibration inputs; None without.
        sensitivity: divergence of the model's outputs when this matrix alone is compressed so; None where it was not
            measured.
        corrected_bias: the bias that takes up the mean of its error; empty where none does.
    """

    name: str
    layer: str
    kind: str
    members: tuple[str, ...]
    member_columns: tuple[int, ...]
    shape: tuple[int, int]
    row_dims: tuple[int, ...]
    col_dims: tuple[int, ...]
    anti_aligned: bool
    bonds: tuple[int, ...]
    dense_parameters: int
    parameters: int
    relative_error: float
    squared_norm: float
    discarded_weights: tuple[float, ...]
    rounding_weight: float
    source_dtype: str
    dtype: str
    reason: str
    kind_from: str = "name and shape"
    transposed: bool = False
    weighted_error: float | None = None
    sensitivity: float | None = None
    corrected_bias: str = ""

    @property
    def is_compressed(self) -> bool:
        """Whether the matrix is stored as cores."""
        return bool(self.bonds)

    @property
    def member_names(self) -> tuple[str, ...]:
        """Original tensor names, as `MatrixSpec` has them."""
        return self.members

    @property
    def sites(self) -> Sites:
        """The site shape of a compressed matrix."""
        return Sites(row_dims=self.row_dims, col_dims=self.col_dims, anti_aligned=self.anti_aligned)

    @property
    def core_names(self) -> tuple[str, ...]:
        """What its cores are filed under, in the order of the sites."""
        return tuple(core_name(self.name, site) for site in range(len(self.row_dims)))

    @property
    def scale_names(self) -> tuple[str, ...]:
        """What the scales of its cores are filed under; none where the cores need none."""
        return tuple(map(scale_name, self.core_names)) if self.dtype == INT8 else ()

    @property
    def times_smaller(self) -> float:
        """Dense parameters over MPO parameters."""
        return self.dense_parameters / self.parameters

    def check(self) -> None:
        """Add the figures up.

        Raises:
            ReportError: when they contradict each other.
        """
        stored = STORED_DTYPES if self.is_compressed else FLOAT_DTYPES
        for dtype, known in ((self.source_dtype, FLOAT_DTYPES), (self.dtype, stored)):
            if dtype not in known:
                _fail(self.name, f"dtype {dtype!r}", f"a matrix has one of {', '.join(known)}")
        rows, cols = self.shape
        wanted = self.sites.parameters(self.bonds) if self.is_compressed else rows * cols
        if self.is_compressed and self.sites.shape != self.shape:
            _fail(self.name, f"sites for {self.sites.shape}, shape {self.shape}", "they describe the same matrix")
        if sum(self.member_columns) != cols or len(self.member_columns) != len(self.members):
            _fail(self.name, f"member columns {self.member_columns}, shape {self.shape}", "members fill the columns")
        if self.transposed and len(self.members) != 1:
            _fail(self.name, f"{len(self.members)} transposed members", "only a tensor by itself is transposed")
        if self.dense_parameters != rows * cols or self.parameters != wanted:
            _fail(self.name, f"{self.parameters} parameters, counted {wanted}", "a count has one value")
        if self.weighted_error is not None:
            self._check_weighted()
            return
        if self.is_compressed and len(self.discarded_weights) != len(self.bonds):
            _fail(self.name, f"{len(self.discarded_weights)} discarded weights", "there is one for every cut")
        if not abs(self.rounding_weight) <= ROUNDING_TOLERANCE[self.dtype] * self.squared_norm:
            _fail(
                self.name,
                f"{sum(self.discarded_weights):.6g} discarded, {self.rounding_weight:.6g} lost in rounding",
                f"rounding cores to {self.dtype} loses less",
            )
        added = sum(self.discarded_weights) + self.rounding_weight
        if not abs(added - self.relative_error**2 * self.squared_norm) <= SUM_TOLERANCE * self.squared_norm:
            _fail(
                self.name,
                f"discarded weights of {added:.6g}, relative error {self.relative_error:.6g}",
                "the discarded weights of all cuts add up to the squared error",
            )

    def _check_weighted(self) -> None:
        """Add up the figures of cores that were found with calibration inputs."""
        if self.discarded_weights or self.rounding_weight:
            _fail(self.name, "discarded weights beside a weighted error", "cores fitted to inputs have none")
        for what, value in (("weighted error", self.weighted_error), ("sensitivity", self.sensitivity)):
            if value is not None and value < 0:
                _fail(self.name, f"a {what} of {value:.6g}", "it is not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over the checkpoint; tied tensors count once.

    Args:
        dense_parameters: of the whole model before.
        parameters: of the whole model after.
        eligible_parameters: of the matrices that could be compressed, before.
        eligible_parameters_after: of the same, after.
        size_bytes_before: bytes of all tensors before.
        size_bytes_after: bytes of all tensors after.
        file_size_bytes_before: bytes of the input file, with whatever else it holds.
        file_size_bytes_after: bytes of the output file; None inside the file itself, and before it is written.
    """

    dense_parameters: int
    parameters: int
    eligible_parameters: int
    eligible_parameters_after: int
    size_bytes_before: int
    size_bytes_after: int
    file_size_bytes_before: int
    file_size_bytes_after: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a compression did. `to_json` and `from_json` are the document inside a compressed file.

    Args:
        tool_version: version of mpocompress that wrote it.
        source: the checkpoint that was compressed.
        target: asked and achieved; None for a checkpoint as it is.
        matrices: every eligible matrix, in file order.
        skipped: every tensor passed through.
        aliases: tied tensors, name -> the name that holds the values.
        totals: sums.
        unmet: what was asked for and not met, a sentence each.
        notes: what else the reader should know, a sentence each.
        calibration: what the model's outputs lost; None where it was compressed without calibration inputs.
        tuning: every fine-tuning since, in order. All other figures stay those of the compression.
    """

    tool_version: str
    source: Source
    target: Target | None
    matrices: tuple[MatrixReport, ...]
    skipped: tuple[Skipped, ...]
    aliases: Mapping[str, str]
    totals: Totals
    unmet: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    calibration: CalibrationReport | None = None
    tuning: tuple[TuningReport, ...] = ()

    @property
    def compressed(self) -> tuple[MatrixReport, ...]:
        """The matrices that are stored as cores."""
        return tuple(matrix for matrix in self.matrices if matrix.is_compressed)

    @property
    def relative_error(self) -> float:
        """Relative Frobenius error over all eligible matrices together."""
        norm = sum(matrix.squared_norm for matrix in self.matrices)
        missed = sum(matrix.relative_error**2 * matrix.squared_norm for matrix in self.matrices)
        return math.sqrt(missed / norm) if norm else 0.0

    def verdict(self) -> tuple[str, ...]:
        """What the figures mean, in words.

        Returns:
            A sentence or two; they never call a weight error a quality figure.
        """
        if not self.compressed:
            return ("Nothing was compressed: every eligible matrix was kept dense, for the reason beside it.",)
        if self.tuning:
            return self.tuning[-1].verdict()
        if self.calibration is not None:
            return self.calibration.verdict({matrix.name: matrix.sensitivity or 0.0 for matrix in self.compressed})
        worst = max(self.compressed, key=lambda matrix: matrix.relative_error)
        said = ["Weight errors are no quality figure: measure the expanded model on your own task before you use it."]
        reached = f"Relative errors reach {worst.relative_error:.2f} ({worst.name})"
        advice = "Keep more (a larger bond or fraction), leave that layer dense, or fine-tune before use."
        if worst.relative_error > RUINOUS_ERROR:
            said.append(
                f"{reached}; above about {RUINOUS_ERROR} hardly any trained model still works as it is. {advice}"
            )
        elif worst.relative_error > FRAGILE_ERROR:
            said.append(
                f"{reached}; above about {FRAGILE_ERROR} some trained models stop working as they are. {advice}"
            )
        return tuple(said)

    def check(self) -> None:
        """Add all figures up.

        Raises:
            ReportError: when they contradict each other.
        """
        for matrix in self.matrices:
            matrix.check()
        for what, names in (
            ("matrices", [matrix.name for matrix in self.matrices]),
            ("tensors", [member for matrix in self.matrices for member in matrix.members]),
        ):
            twice = next((name for name, count in Counter(names).items() if count > 1), None)
            if twice is not None:
                _fail(twice, f"two {what} of this name", "a name means one thing")
        before = sum(matrix.dense_parameters for matrix in self.matrices)
        after = sum(matrix.parameters for matrix in self.matrices)
        totals = self.totals
        if (before, after) != (totals.eligible_parameters, totals.eligible_parameters_after):
            _fail(
                "totals",
                f"eligible {totals.eligible_parameters} -> {totals.eligible_parameters_after}, "
                f"added up {before} -> {after}",
                "totals are the sums of their parts",
            )
        if totals.dense_parameters - totals.parameters != before - after:
            _fail(
                "totals",
                f"{totals.dense_parameters} -> {totals.parameters} parameters, saved {before - after}",
                "only eligible matrices change",
            )
        for number, one in enumerate(self.tuning, start=1):
            if flaw := one.flaw():
                _fail(f"fine-tuning {number}", flaw, "its figures tell one story")

    def to_json(self, *, indent: int | None = None) -> str:
        """The report as a JSON document; its schema is `mpocompress/reports/schema/report-1.json`.

        Args:
            indent: spaces to indent by, or None for one line.

        Returns:
            The document.
        """
        document = {"format": FORMAT, "version": VERSION, **fields_of(self)}
        return json.dumps(document, indent=indent, allow_nan=False)

    @staticmethod
    def from_json(text: str, *, where: str = "report") -> Report:
        """Read a report back and check it.

        Args:
            text: the document.
            where: the file it came from, for messages.

        Returns:
            The report. Unknown fields are ignored.

        Raises:
            FormatError: not a report, or of a newer format version.
            ReportError: figures that contradict each other.
        """
        document = read_document(text, name=FORMAT, version=VERSION, where=where)
        try:
            report = Report(
                tool_version=str(document["tool_version"]),
                source=build(Source, document["source"]),
                target=build(Target, document["target"]) if document["target"] is not None else None,
                matrices=tuple(build(MatrixReport, entry) for entry in document["matrices"]),
                skipped=tuple(build(Skipped, entry) for entry in document["skipped"]),
                aliases=typed(document["aliases"], "Mapping[str, str]", "aliases"),
                totals=build(Totals, document["totals"]),
                unmet=typed(document.get("unmet", []), "tuple[str, ...]", "unmet"),
                notes=typed(document.get("notes", []), "tuple[str, ...]", "notes"),
                calibration=build(CalibrationReport, document["calibration"]) if document.get("calibration") else None,
                tuning=tuple(_tuning(entry) for entry in document.get("tuning", [])),
            )
            report.check()
        except ReportError as error:
            raise ReportError(
                where=f"{where}, {error.where}",
                found=error.found,
                why=error.why,
                action="The file is damaged or was edited: compress the original checkpoint again.",
            ) from error
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FormatError(
                where=where,
                found=f"a report without a usable {error}",
                why="the compressed layers cannot be told from the rest without it",
                action="Compress the original checkpoint again.",
            ) from error
        return report


def _tuning(entry: Mapping[str, Any]) -> TuningReport:
    stored = entry.get("as_stored")
    found: TuningReport = build(
        TuningReport,
        entry,
        evaluations=tuple(build(Evaluation, one) for one in entry["evaluations"]),
        as_stored=build(Evaluation, stored) if stored is not None else None,
    )
    return found


def _fail(where: str, found: str, why: str) -> None:
    raise ReportError(where=where, found=found, why=why, action="Report this as a bug, with the command and the file.")
