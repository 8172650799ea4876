"""One matrix of a report: shape, cores, errors, and the check that its figures add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, get_args

import msgspec

from mpocompress.layers.names import core_name, scale_name
from mpocompress.layers.specs import KindFrom, LayerKind
from mpocompress.mpo.sites import Sites
from mpocompress.reports.json_documents import NonNegative, Number, Positive, choice, contradiction

FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")
INT8 = "int8"
STORED_DTYPES = (*FLOAT_DTYPES, INT8)
"""Dtypes of stored cores; dense weights have one of `FLOAT_DTYPES`."""

Kind = Annotated[str, choice(*get_args(LayerKind))]
KindSource = Annotated[str, choice(*get_args(KindFrom))]

SUM_TOLERANCE = 1e-5
"""Largest difference between the discarded weights and the squared relative error, as a share of the squared norm."""

ROUNDING_TOLERANCE = {**dict.fromkeys(FLOAT_DTYPES, SUM_TOLERANCE), "bfloat16": 1e-4, INT8: 1e-2}
"""Largest squared error from storing the cores in a dtype, as a share of the squared norm.

In int8 it was 1e-4 for the median matrix, 1.3e-3 at most in trained LSTMs and 5.4e-3 in random ones with heavy tails,
where a single entry determines the scale of its channel.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixReport:
    """A matrix that was compressed, or considered and kept dense.

    Args:
        name: prefix of the names of its cores (`NAME.core.0`, ...), a new name for a joint LSTM matrix; for a dense
            matrix, the name of its first member.
        layer: path of the module.
        kind: kind of the layer.
        members: names of the original tensors, left to right; two for a joint LSTM matrix.
        member_columns: number of columns of each member.
        shape: rows and columns of the decomposed matrix.
        row_dims: row dim of each site; their product is the number of rows. Empty if dense.
        col_dims: column dim of each site; their product is the number of columns. Empty if dense.
        anti_aligned: whether the row index counts with the digit of the last site slowest.
        bonds: bond of each cut between two sites; empty if dense.
        dense_parameters: number of entries of the dense matrix.
        parameters: number of entries of the cores, without scales; of the dense matrix if it was kept dense.
        relative_error: Frobenius norm of the difference between the product of the stored cores and the dense matrix,
            divided by the norm of the dense matrix.
        squared_norm: squared Frobenius norm of the dense matrix.
        discarded_weights: for each cut the sum of the squared singular values that were dropped; empty for cores that
            were fitted to calibration inputs.
        rounding_weight: squared error from storing the cores in `dtype`, measured; 0 for cores that were fitted to
            calibration inputs.
        source_dtype: dtype of the original tensors.
        dtype: dtype of the stored cores; `int8` for codes with scales.
        reason: why the matrix was kept dense; empty if it was compressed.
        kind_from: source of `kind`, the most certain first: the user, a class recorded in the file, the given model,
            `config.json`, or name and shape.
        transposed: whether the original tensor is the transpose of the decomposed matrix, as that of a Conv1D is.
        weighted_error: relative error weighted with the calibration inputs; None without them, and for a matrix that
            was compressed without them.
        sensitivity: divergence of the model's outputs if only this matrix is compressed, before any refit; None if
            it was not measured.
        corrected_bias: name of the bias that compensates the mean error of the matrix and has new values in the file;
            empty if there is none.
    """

    name: str
    layer: str
    kind: Kind
    members: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    member_columns: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1)]
    shape: tuple[Positive, Positive]
    row_dims: tuple[Positive, ...]
    col_dims: tuple[Positive, ...]
    anti_aligned: bool
    bonds: tuple[Positive, ...]
    dense_parameters: Positive
    parameters: Positive
    relative_error: NonNegative
    squared_norm: NonNegative
    discarded_weights: tuple[NonNegative, ...]
    rounding_weight: Number
    source_dtype: Annotated[str, choice(*FLOAT_DTYPES)]
    dtype: Annotated[str, choice(*STORED_DTYPES)]
    reason: str
    kind_from: KindSource
    transposed: bool = False
    weighted_error: NonNegative | None = None
    sensitivity: NonNegative | None = None
    corrected_bias: str = ""

    @property
    def is_compressed(self) -> bool:
        """Whether the matrix is stored as cores."""
        return bool(self.bonds)

    @property
    def member_names(self) -> tuple[str, ...]:
        """Names of the original tensors, as `MatrixSpec` has them."""
        return self.members

    @property
    def sites(self) -> Sites:
        """Site shape of a compressed matrix."""
        return Sites(row_dims=self.row_dims, col_dims=self.col_dims, anti_aligned=self.anti_aligned)

    @property
    def core_names(self) -> tuple[str, ...]:
        """Names of its cores in the file, in the order of the sites."""
        return tuple(core_name(self.name, site) for site in range(len(self.row_dims)))

    @property
    def scale_names(self) -> tuple[str, ...]:
        """Names of the scales of its cores in the file; empty unless the cores are in int8."""
        return tuple(map(scale_name, self.core_names)) if self.dtype == INT8 else ()

    @property
    def times_smaller(self) -> float:
        """Dense parameters divided by MPO parameters."""
        return self.dense_parameters / self.parameters

    def check(self) -> None:
        """Check that the figures add up.

        Raises:
            ReportError: they contradict each other.
        """
        if not self.is_compressed and self.dtype not in FLOAT_DTYPES:
            raise contradiction(
                self.name, f"dtype {self.dtype!r}", f"the dtype of a dense matrix is one of {', '.join(FLOAT_DTYPES)}"
            )
        if self.is_compressed and not len(self.row_dims) == len(self.col_dims) == len(self.bonds) + 1:
            dims = f"{len(self.row_dims)} row dims, {len(self.col_dims)} column dims, {len(self.bonds)} bonds"
            raise contradiction(self.name, dims, "every site has one dim of each kind, every cut one bond")
        if self.is_compressed and self.sites.shape != self.shape:
            sides = f"sites for {self.sites.shape}, shape {self.shape}"
            raise contradiction(self.name, sides, "both must describe the same matrix")
        self._check_counts()
        if self.weighted_error is None:
            self._check_sum()
        elif self.discarded_weights or self.rounding_weight:
            found = "discarded weights and a weighted error"
            raise contradiction(self.name, found, "cores fitted to calibration inputs have no discarded weights")

    def _check_counts(self) -> None:
        """Check that the members fill the columns and that the parameters are counted right."""
        rows, cols = self.shape
        if sum(self.member_columns) != cols or len(self.member_columns) != len(self.members):
            columns = f"member columns {self.member_columns}, shape {self.shape}"
            raise contradiction(self.name, columns, "the members must fill the columns")
        if self.transposed and len(self.members) != 1:
            members = f"{len(self.members)} transposed members"
            raise contradiction(self.name, members, "only a matrix of one tensor can be transposed")
        expected = self.sites.parameters(self.bonds) if self.is_compressed else rows * cols
        if self.dense_parameters != rows * cols or self.parameters != expected:
            counts = f"{self.dense_parameters} -> {self.parameters} parameters, counted {rows * cols} -> {expected}"
            raise contradiction(self.name, counts, "both counts must be equal")

    def _check_sum(self) -> None:
        """Check that the discarded weights add up to the squared error."""
        if self.is_compressed and len(self.discarded_weights) != len(self.bonds):
            weights = f"{len(self.discarded_weights)} discarded weights"
            raise contradiction(self.name, weights, "there must be one for every cut")
        discarded = sum(self.discarded_weights)
        if not abs(self.rounding_weight) <= ROUNDING_TOLERANCE[self.dtype] * self.squared_norm:
            losses = f"{discarded:.6g} discarded, {self.rounding_weight:.6g} lost in rounding"
            raise contradiction(self.name, losses, f"rounding cores to {self.dtype} loses less")
        total = discarded + self.rounding_weight
        if not abs(total - self.relative_error**2 * self.squared_norm) <= SUM_TOLERANCE * self.squared_norm:
            errors = f"discarded weights of {total:.6g}, relative error {self.relative_error:.6g}"
            raise contradiction(self.name, errors, "the discarded weights of all cuts must add up to the squared error")
