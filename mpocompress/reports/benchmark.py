"""The report of `bench`: dense layers and compressed ones timed side by side, as plain numbers."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import Any, Literal

from mpocompress.errors import ReportError
from mpocompress.reports.documents import fields_of

BENCH_FORMAT, BENCH_VERSION = "mpocompress-bench", 1

ContenderKind = Literal["dense", "int8", "compressed"]
"""torch's own layer, the same with weights of 8 bits, or cores."""
BenchedKind = Literal["lstm", "lstm_cell", "linear", "conv1d", "model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One way to run a layer or a model, on one size of input.

    Args:
        contender: its name, such as `dense, oneDNN` or `factorised`.
        kind: `dense`, `int8` or `compressed`.
        times_s: seconds of one call, from every sample; empty where it did not run.
        calls: calls in a sample; its time is divided by them.
        size_bytes: bytes of the weights that it holds, with what it has prepared beside them.
        largest_difference: the largest absolute difference of its outputs to those of the first dense contender; None
            where one of them is not finite.
        unavailable: why it did not run, in words; empty where it did.

    Raises:
        ReportError: neither times nor a reason, both, or a time that is not positive.
    """

    contender: str
    kind: ContenderKind
    times_s: tuple[float, ...] = ()
    calls: int = 0
    size_bytes: int = 0
    largest_difference: float | None = None
    unavailable: str = ""

    def __post_init__(self) -> None:
        """Check that there are figures or a reason."""
        if bool(self.times_s) == bool(self.unavailable) or not all(time > 0 for time in self.times_s):
            _fail(
                self.contender,
                f"times {self.times_s}, reason {self.unavailable!r}",
                "what ran has positive times, and what did not has a reason",
            )

    @property
    def median_s(self) -> float:
        """Median of the times, in seconds; 0 where there are none."""
        return statistics.median(self.times_s) if self.times_s else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All contenders on one size of input.

    Args:
        batch: inputs in a batch.
        length: steps of a sequence; None where there is no sequence.
        contenders: what was timed, in one run.

    Raises:
        ReportError: two contenders of one name, or no dense one that ran.
    """

    batch: int
    length: int | None
    contenders: tuple[Timed, ...]

    def __post_init__(self) -> None:
        """Check that there is something to compare with."""
        names = [one.contender for one in self.contenders]
        if len(set(names)) != len(names) or not any(one.kind == "dense" and one.times_s for one in self.contenders):
            _fail(
                f"batch {self.batch}, length {self.length}",
                f"contenders {', '.join(names) or 'none'}",
                "they have names of their own, and a dense one is compared with",
            )

    @property
    def best_dense(self) -> Timed:
        """The fastest dense contender, by its median."""
        return min(
            (one for one in self.contenders if one.kind == "dense" and one.times_s), key=lambda one: one.median_s
        )

    def times_faster(self, contender: Timed) -> float | None:
        """How many times faster than the best dense contender of the same run.

        Args:
            contender: one of this case.

        Returns:
            Median of the best dense contender over its own median; None where it did not run.
        """
        return self.best_dense.median_s / contender.median_s if contender.times_s else None

    def document(self) -> dict[str, Any]:
        """The fields as JSON takes them, and beside the times of each contender what follows from them."""
        fields = fields_of(self)
        for one, timed in zip(self.contenders, fields["contenders"], strict=True):
            timed |= {
                "median_s": one.median_s if one.times_s else None,
                "fastest_s": min(one.times_s, default=None),
                "slowest_s": max(one.times_s, default=None),
                "times_faster": self.times_faster(one),
            }
        return fields | {"best_dense": self.best_dense.contender}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchedMatrix:
    """One compressed matrix of a layer that was timed.

    Args:
        name: its name in the layer, as `weight_hh_l0`.
        shape: (rows, columns).
        row_dims: row dim of each site.
        col_dims: column dim of each site.
        anti_aligned: whether the last site's row digit is the slowest.
        bonds: bond of each cut.
    """

    name: str
    shape: tuple[int, int]
    row_dims: tuple[int, ...]
    col_dims: tuple[int, ...]
    anti_aligned: bool
    bonds: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Benched:
    """What was timed: one of a number of equal layers, or a whole model.

    Args:
        kind: `lstm`, `lstm_cell`, `linear`, `conv1d`, or `model`.
        layers: paths of the layers that have these shapes, sites and bonds, the measured one first; of a model, those
            that are compressed.
        matrices: the compressed matrices of the measured layer; empty for a model.
        dense_parameters: of the compressed matrices of one layer, or of all in a model, dense.
        parameters: of their cores.
        cases: one for every size of input.
    """

    kind: BenchedKind
    layers: tuple[str, ...]
    matrices: tuple[BenchedMatrix, ...]
    dense_parameters: int
    parameters: int
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the figures depend on.

    Args:
        processor: its name.
        device: where the layers ran: `cpu`, or `cuda` and the name of the card.
        threads: threads of torch.
        torch: its version.
    """

    processor: str
    device: str
    threads: int
    torch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """Dense against compressed, side by side, on one machine.

    Args:
        tool_version: version of mpocompress that measured.
        file: name of the compressed file.
        model: where the user's own model came from; empty where layers were measured alone.
        machine: what the figures depend on.
        measured: the layers, or the model.
        notes: what else the reader should know, a sentence each.
    """

    tool_version: str
    file: str
    model: str
    machine: Machine
    measured: tuple[Benched, ...]
    notes: tuple[str, ...] = ()

    def verdict(self) -> str:
        """What the figures say of the mode that is used when none is named, in words.

        Returns:
            A sentence.
        """
        found = [
            (case.times_faster(one) or 0.0, one)
            for benched in self.measured
            for case in benched.cases
            for one in case.contenders
            if one.contender == "auto"
        ]
        slow, fast = (pick(ratio for ratio, _ in found) for pick in (min, max))
        reach = f"{fast:.3g}" if f"{slow:.3g}" == f"{fast:.3g}" else f"{slow:.3g} to {fast:.3g}"
        return f"auto is {reach} times as fast as the best dense path of this run."

    def to_json(self, *, indent: int | None = None) -> str:
        """The report as a JSON document; its schema is `mpocompress/reports/schema/bench-1.json`.

        Args:
            indent: spaces to indent by, or None for one line.

        Returns:
            The document: the fields, and beside the times of each contender what follows from them.
        """
        document = {"format": BENCH_FORMAT, "version": BENCH_VERSION, **fields_of(self)}
        for benched, entry in zip(self.measured, document["measured"], strict=True):
            entry["cases"] = [case.document() for case in benched.cases]
        return json.dumps(document, indent=indent, allow_nan=False)


def _fail(where: str, found: str, why: str) -> None:
    raise ReportError(where=where, found=found, why=why, action="Report this as a bug, with the command and the file.")
