"""The report of a compression: figures that are checked against each other, and the verdict."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from mpocompress.layers.specs import Skipped
from mpocompress.reports.calibration import CalibrationReport
from mpocompress.reports.finetuning import FinetuningReport
from mpocompress.reports.json_documents import Count, Document, Number, Positive, Sha256, contradiction
from mpocompress.reports.matrix import MatrixReport

FRAGILE_ERROR = 0.3
"""Relative error above which some trained models are known to fail without calibration or fine-tuning."""

RUINOUS_ERROR = 0.6
"""Relative error above which nearly all of them do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The checkpoint that was compressed.

    Args:
        file: name of the file or folder, without the folder it is in; the class of a model that was compressed in
            memory.
        sha256: digest of the file with the weights, hexadecimal, also if the file is in a folder; of shards, the digest
            of the digests of the index and each shard, in hexadecimal, one after another; of a model in memory, a
            digest of its tensors.
        container: form of the file, such as `torch-zip`, `safetensors` or `torchscript`; later releases may add
            others.
        key: path of the state dict in the checkpoint; empty if it is the checkpoint itself.
        file_size_bytes: size of the file.
    """

    file: str
    sha256: Sha256
    container: str
    key: str
    file_size_bytes: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The truncation target, requested and achieved.

    Args:
        kind: kind of the target: `bond`, `energy`, `max_error`, `keep` or `max_params`.
        requested: its value; None if bonds were requested for single layers only.
        achieved: largest bond, smallest energy, largest relative error, fraction of the eligible parameters, or number
            of parameters of the whole model, by kind; None if nothing was compressed.
        bond_by_layer: bonds requested for single layers: glob to bond.
    """

    kind: str
    requested: Count | Number | None
    achieved: Count | Number | None
    bond_by_layer: Mapping[str, Positive]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over the checkpoint; tied tensors count once.

    Args:
        dense_parameters: number of parameters of the whole model before.
        parameters: number of parameters of the whole model after.
        eligible_parameters: number of parameters of all matrices before.
        eligible_parameters_after: number of parameters of all matrices after.
        size_bytes_before: size of all tensors before.
        size_bytes_after: size of all tensors after, scales included.
        file_size_bytes_before: size of the input file with everything else in it.
        file_size_bytes_after: size of the output file; None in the file itself, whose size is not known before it is
            written.
    """

    dense_parameters: Count
    parameters: Count
    eligible_parameters: Count
    eligible_parameters_after: Count
    size_bytes_before: Count
    size_bytes_after: Count
    file_size_bytes_before: Count
    file_size_bytes_after: Count | None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report(Document):
    """The report of a compression, which a compressed file holds as a JSON document.

    Args:
        tool_version: version of mpocompress that compressed the checkpoint.
        source: the checkpoint that was compressed.
        target: the truncation target; None in the report of an uncompressed checkpoint.
        matrices: every matrix that was compressed, or considered and kept dense, in file order.
        skipped: every other tensor, with the reason.
        aliases: tied tensors: a name that is not stored, to the name that holds its values.
        totals: sums over the checkpoint.
        unmet: requests that were not met, as sentences; the exit code is 3 if there are any.
        notes: further notes, as sentences.
        calibration: divergence of the outputs; None without calibration inputs.
        finetuning: every fine-tuning since the compression, in order; all other figures are those of the compression.
    """

    __module__ = "mpocompress"
    FORMAT: ClassVar[str] = "mpocompress"
    IF_DAMAGED: ClassVar[str] = "The file is damaged or was edited: compress the original checkpoint again."

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
    finetuning: tuple[FinetuningReport, ...] = ()

    def __repr__(self) -> str:
        """Return the file, the number of compressed matrices and the compression of the whole model."""
        matrices = f"{len(self.compressed)} of {len(self.matrices)} matrices compressed"
        smaller = self.totals.dense_parameters / max(1, self.totals.parameters)
        return f"<Report: {self.source.file}, {matrices}, {smaller:.1f} times smaller>"

    @property
    def compressed(self) -> tuple[MatrixReport, ...]:
        """The matrices that are stored as cores."""
        return tuple(matrix for matrix in self.matrices if matrix.is_compressed)

    @property
    def relative_error(self) -> float:
        """Relative Frobenius error over all matrices together."""
        norm = sum(matrix.squared_norm for matrix in self.matrices)
        error = sum(matrix.relative_error**2 * matrix.squared_norm for matrix in self.matrices)
        return math.sqrt(error / norm) if norm else 0.0

    def verdict(self) -> tuple[str, ...]:
        """Return one or two sentences on what the figures mean; a weight error is never called a quality figure."""
        if not self.compressed:
            return ("Nothing was compressed: every matrix was kept dense, for the reasons given.",)
        if self.finetuning:
            return self.finetuning[-1].verdict()
        if self.calibration is not None:
            return self.calibration.verdict({matrix.name: matrix.sensitivity or 0.0 for matrix in self.compressed})
        warning = "Weight errors do not measure quality: evaluate the expanded model on your task before you use it."
        worst = max(self.compressed, key=lambda matrix: matrix.relative_error)
        if worst.relative_error <= FRAGILE_ERROR:
            return (warning,)
        largest = f"The largest relative error is {worst.relative_error:.2f} ({worst.name})"
        is_ruinous = worst.relative_error > RUINOUS_ERROR
        limit = (
            f"above about {RUINOUS_ERROR}, nearly all trained models fail without fine-tuning"
            if is_ruinous
            else f"above about {FRAGILE_ERROR}, some trained models fail without fine-tuning"
        )
        advice = "Keep more parameters (a larger bond or fraction), leave that layer dense, or fine-tune before use."
        return (warning, f"{largest}; {limit}. {advice}")

    def check(self) -> None:
        """Check that all figures add up.

        Raises:
            ReportError: they contradict each other.
        """
        for matrix in self.matrices:
            matrix.check()
        self._check_names()
        before = sum(matrix.dense_parameters for matrix in self.matrices)
        after = sum(matrix.parameters for matrix in self.matrices)
        totals = self.totals
        if (before, after) != (totals.eligible_parameters, totals.eligible_parameters_after):
            counts = f"eligible {totals.eligible_parameters} -> {totals.eligible_parameters_after}, "
            raise contradiction("totals", f"{counts}sum {before} -> {after}", "totals must be the sums of their parts")
        if totals.dense_parameters - totals.parameters != before - after:
            counts = f"{totals.dense_parameters} -> {totals.parameters} parameters, {before - after} saved in matrices"
            raise contradiction("totals", counts, "only matrices can have other numbers of parameters")
        for number, report in enumerate(self.finetuning, start=1):
            if problem := report.inconsistency():
                raise contradiction(f"fine-tuning {number}", problem, "its figures must agree")

    def _check_names(self) -> None:
        """Check that no two matrices have the same name or the same tensor."""
        for kind, names in (
            ("matrices", [matrix.name for matrix in self.matrices]),
            ("tensors", [member for matrix in self.matrices for member in matrix.members]),
        ):
            duplicate = next((name for name, count in Counter(names).items() if count > 1), None)
            if duplicate is not None:
                raise contradiction(duplicate, f"two {kind} of this name", "names must be unique")
