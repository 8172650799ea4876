"""The work itself: every matrix read, surveyed, planned, decomposed, measured and put aside, one after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.checkpoint.writing.spool import Spool, Spooled
from mpocompress.compression.survey import Surveyed
from mpocompress.layers.selection import Selection
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.quantisation import QuantisedMPO, restore
from mpocompress.mpo.sites import Sites, SitesChoice
from mpocompress.planning.target import Truncation
from mpocompress.reports.calibration import CalibrationReport
from mpocompress.reports.compression import MatrixReport
from mpocompress.user.model import UserModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One matrix, done.

    Args:
        report: what became of it.
        sites: its site shape; None where it stays dense.
        cores: its cores in the spool; empty where it stays dense.
        scales: their scales there; empty where they need none.
    """

    report: MatrixReport
    sites: Sites | None = None
    cores: tuple[Spooled, ...] = ()
    scales: tuple[Spooled, ...] = ()

    def stored(self, spool: Spool) -> MPO | QuantisedMPO | None:
        """The decomposition as it is stored, mapped from the spool; None where the matrix stays dense."""
        if self.sites is None:
            return None
        cores, scales = (tuple(map(spool.tensor, places)) for places in (self.cores, self.scales))
        if scales:
            return QuantisedMPO(codes=cores, scales=scales, sites=self.sites)
        return MPO(cores=cores, sites=self.sites)

    def mpo(self, spool: Spool) -> MPO | None:
        """The decomposition as it comes back; None where the matrix stays dense."""
        stored = self.stored(spool)
        return restore(stored) if isinstance(stored, QuantisedMPO) else stored


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """What is to be done to every matrix of a checkpoint.

    Args:
        checkpoint: where to read.
        spool: where finished cores go.
        truncation: what to reach.
        sites: a site shape choice.
        selection: which layers, and in what form.
        model: the user's own model, to tell layers by their classes.
        dtype: dtype of the stored cores; None for that of the weight.
    """

    checkpoint: Checkpoint
    spool: Spool
    truncation: Truncation
    sites: SitesChoice
    selection: Selection
    model: UserModel | None
    dtype: str | None


def put_aside(report: MatrixReport, mpo: MPO | QuantisedMPO, spool: Spool) -> Done:
    """Put the cores of a matrix aside, as they are to be stored.

    Args:
        report: what became of the matrix.
        mpo: its cores.
        spool: where they go.

    Returns:
        The matrix, done.

    Raises:
        OutputError: there is no room.
    """
    if isinstance(mpo, MPO):
        return Done(report=report, sites=mpo.sites, cores=tuple(map(spool.add, mpo.cores)))
    codes, scales = (tuple(map(spool.add, tensors)) for tensors in (mpo.codes, mpo.scales))
    return Done(report=report, sites=mpo.sites, cores=codes, scales=scales)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What came of a compression.

    Args:
        surveyed: the survey.
        done: every matrix of the chosen forms, in file order.
        changed: name -> new values of biases that took up mean errors.
        notes: what the reader should know.
        calibration: what the model's outputs lost; None without calibration inputs.
    """

    surveyed: Surveyed
    done: tuple[Done, ...]
    changed: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    calibration: CalibrationReport | None = None
