"""Arguments and results of the engines: a compression job, compressed matrices in the spool, and the outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.checkpoint.writing.spool import Spool, Spooled
from mpocompress.compression.survey import CheckpointSurvey
from mpocompress.layers.selection import Selection
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.quantisation import QuantisedMPO, restore
from mpocompress.mpo.sites import Sites, SitesChoice
from mpocompress.planning.targets import TruncationTarget
from mpocompress.reports.calibration import CalibrationReport
from mpocompress.reports.matrix import MatrixReport
from mpocompress.user.model import UserModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompressionJob:
    """One compression of a checkpoint.

    Args:
        checkpoint: the checkpoint, open.
        spool: the temporary file for finished cores.
        target: the target.
        sites: the site shape choice for every matrix.
        selection: which layers, and in what form.
        model: the user's model, to recognise layers by their classes.
        dtype: dtype of the stored cores; None for that of the weight.
    """

    checkpoint: Checkpoint
    spool: Spool
    target: TruncationTarget
    sites: SitesChoice
    selection: Selection
    model: UserModel | None
    dtype: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedMatrix:
    """One finished matrix: its report, and its cores in the spool.

    Args:
        report: its report.
        sites: its site shape; None if it stays dense.
        cores: its cores in the spool; empty if it stays dense.
        scales: the scales of int8 cores in the spool; empty for other dtypes.
    """

    report: MatrixReport
    sites: Sites | None = None
    cores: tuple[Spooled, ...] = ()
    scales: tuple[Spooled, ...] = ()

    def stored(self, spool: Spool) -> MPO | QuantisedMPO | None:
        """Return the decomposition as it is stored, mapped from the spool; None if the matrix stays dense."""
        if self.sites is None:
            return None
        cores, scales = (tuple(map(spool.tensor, spooled)) for spooled in (self.cores, self.scales))
        if scales:
            return QuantisedMPO(codes=cores, scales=scales, sites=self.sites)
        return MPO(cores=cores, sites=self.sites)

    def mpo(self, spool: Spool) -> MPO | None:
        """Return the decomposition as it is read back, int8 cores restored; None if the matrix stays dense."""
        stored = self.stored(spool)
        return restore(stored) if isinstance(stored, QuantisedMPO) else stored


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """The result of a compression.

    Args:
        survey: the survey of the checkpoint.
        matrices: every matrix of the chosen forms, in file order.
        biases: name -> new values of the biases that correct mean errors.
        notes: notes for the report.
        calibration: the calibration section of the report; None without calibration data.
    """

    survey: CheckpointSurvey
    matrices: tuple[CompressedMatrix, ...]
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    calibration: CalibrationReport | None = None


def spool_matrix(report: MatrixReport, mpo: MPO | QuantisedMPO, spool: Spool) -> CompressedMatrix:
    """Write the cores of a finished matrix to the spool, as they will be stored.

    Args:
        report: the report of the matrix.
        mpo: its cores.
        spool: the spool.

    Raises:
        OutputError: the disk is full.
    """
    if isinstance(mpo, MPO):
        return CompressedMatrix(report=report, sites=mpo.sites, cores=tuple(map(spool.add, mpo.cores)))
    codes, scales = (tuple(map(spool.add, tensors)) for tensors in (mpo.codes, mpo.scales))
    return CompressedMatrix(report=report, sites=mpo.sites, cores=codes, scales=scales)
