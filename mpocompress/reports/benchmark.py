"""The report of `bench`: dense and compressed layers timed side by side on one machine."""

import statistics
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import msgspec

from mpocompress.reports.json_documents import LARGEST, Count, Document, NonNegative, Positive, contradiction

ContenderKind = Literal["dense", "int8", "compressed"]
"""A layer of torch, the same with weights of 8 bits, or an MPO layer."""
BenchKind = Literal["lstm", "lstm_cell", "linear", "conv1d", "model"]

Seconds = Annotated[float, msgspec.Meta(gt=0, le=LARGEST)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContenderResult:
    """One implementation of a layer or a model, timed on one size of input.

    Args:
        name: name of the implementation, such as `dense, oneDNN` or `factorised`.
        kind: whether it has dense weights, dense weights of 8 bits, or cores.
        times_s: duration of one call in every sample; empty if it did not run.
        calls_per_sample: number of calls in a sample, whose duration is divided by it.
        size_bytes: size of its weights and of the data cached for speed.
        largest_difference: largest absolute difference of its outputs from those of the first dense contender; None if
            some are not finite.
        unavailable: why it did not run; empty if it did.
        median_s: median of `times_s`; None if it did not run.
        fastest_s: smallest of `times_s`; None if it did not run.
        slowest_s: largest of `times_s`; None if it did not run.
        times_faster: median of the fastest dense contender of the same case divided by its own; below 1 it is slower.
            None if it did not run, or belongs to no case.

    Raises:
        ReportError: it has neither times nor a reason, or both, or a time that is not positive.
    """

    name: str
    kind: ContenderKind
    times_s: tuple[Seconds, ...] = ()
    calls_per_sample: Count = 0
    size_bytes: Count = 0
    largest_difference: NonNegative | None = None
    unavailable: str = ""
    median_s: Seconds | None = field(init=False, default=None)
    fastest_s: Seconds | None = field(init=False, default=None)
    slowest_s: Seconds | None = field(init=False, default=None)
    times_faster: Seconds | None = None

    def __post_init__(self) -> None:
        """Check that there are times or a reason, and set the figures that follow from the times."""
        if bool(self.times_s) == bool(self.unavailable) or not all(time > 0 for time in self.times_s):
            raise contradiction(
                self.name,
                f"times {self.times_s}, reason {self.unavailable!r}",
                "a contender that ran has positive times, and one that did not has a reason",
            )
        if self.times_s:
            object.__setattr__(self, "median_s", statistics.median(self.times_s))
            object.__setattr__(self, "fastest_s", min(self.times_s))
            object.__setattr__(self, "slowest_s", max(self.times_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All contenders on one size of input, timed in one run.

    Args:
        batch: number of inputs in a batch.
        length: number of steps of a sequence; None if there are no sequences.
        contenders: every contender.
        best_dense: name of the fastest dense contender, by its median.

    Raises:
        ReportError: two contenders have the same name, or no dense one ran.
    """

    batch: Positive
    length: Positive | None
    contenders: Annotated[tuple[ContenderResult, ...], msgspec.Meta(min_length=1)]
    best_dense: str = field(init=False, default="")

    def __post_init__(self) -> None:
        """Check that there is a baseline, and compare every contender with it."""
        names = [contender.name for contender in self.contenders]
        dense = {
            contender.name: contender.median_s
            for contender in self.contenders
            if contender.kind == "dense" and contender.median_s is not None
        }
        if len(set(names)) != len(names) or not dense:
            raise contradiction(
                f"batch {self.batch}, length {self.length}",
                f"contenders {', '.join(names) or 'none'}",
                "names must be unique, and a dense contender must have run",
            )
        best = min(dense, key=dense.__getitem__)
        object.__setattr__(self, "best_dense", best)
        compared = tuple(
            replace(contender, times_faster=dense[best] / contender.median_s if contender.median_s else None)
            for contender in self.contenders
        )
        object.__setattr__(self, "contenders", compared)

    @property
    def baseline(self) -> ContenderResult:
        """The fastest dense contender."""
        return next(contender for contender in self.contenders if contender.name == self.best_dense)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchMatrix:
    """One compressed matrix of a layer that was timed.

    Args:
        name: its name in the layer, such as `weight_hh_l0`.
        shape: rows and columns.
        row_dims: row dim of each site.
        col_dims: column dim of each site.
        anti_aligned: whether the row index counts with the digit of the last site slowest.
        bonds: bond of each cut between two sites.
    """

    name: str
    shape: tuple[Positive, Positive]
    row_dims: tuple[Positive, ...]
    col_dims: tuple[Positive, ...]
    anti_aligned: bool
    bonds: tuple[Positive, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """A layer that was timed, for all layers with the same shapes, sites and bonds; or the whole model.

    Args:
        kind: kind of the layer, or `model`.
        layers: paths of all layers with these shapes, sites and bonds, the timed one first; for a model, paths of all
            compressed layers.
        matrices: the compressed matrices of the timed layer; empty for a model.
        dense_parameters: number of entries of the dense matrices in one layer; for a model, in all layers.
        parameters: number of entries of the cores.
        cases: the results for each size of input.
    """

    kind: BenchKind
    layers: tuple[str, ...]
    matrices: tuple[BenchMatrix, ...]
    dense_parameters: Count
    parameters: Count
    cases: Annotated[tuple[Case, ...], msgspec.Meta(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine and the software that the times depend on.

    Args:
        processor: name of the processor.
        device: device of the layers: `cpu`, or `cuda` and the name of the card.
        threads: number of threads of torch.
        torch: version of torch.
    """

    processor: str
    device: str
    threads: Positive
    torch: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BenchReport(Document):
    """Times of dense and compressed layers, side by side on one machine.

    Args:
        tool_version: version of mpocompress that measured.
        file: name of the compressed file.
        model: name of the user's own model; empty if layers were timed alone.
        machine: the machine.
        results: one result for each layer that differs from the others, or one for the model.
        notes: further notes, as sentences.
    """

    __module__ = "mpocompress"
    FORMAT: ClassVar[str] = "mpocompress-bench"

    tool_version: str
    file: str
    model: str
    machine: Machine
    results: Annotated[tuple[BenchResult, ...], msgspec.Meta(min_length=1)]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return the file, what was timed, and the speed of the default execution."""
        timed = self.model or f"{len(self.results)} {'layer' if len(self.results) == 1 else 'layers'}"
        return f"<BenchReport: {self.file}, {timed}, auto {self._speed()} times as fast as dense>"

    def verdict(self) -> str:
        """Return a sentence on the speed of the default execution."""
        return f"auto is {self._speed()} times as fast as the fastest dense implementation in this run."

    def _speed(self) -> str:
        """Return the smallest and the largest speed of the default execution as text."""
        speeds = [
            contender.times_faster or 0.0
            for result in self.results
            for case in result.cases
            for contender in case.contenders
            if contender.name == "auto"
        ]
        slowest, fastest = (f"{limit(speeds, default=0.0):.3g}" for limit in (min, max))
        return fastest if slowest == fastest else f"{slowest} to {fastest}"
