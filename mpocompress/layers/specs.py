"""Compressible layers as names and shapes: the tensors that form each matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal, Protocol, Self, TypeVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A tensor that is copied unchanged.

    Args:
        name: name of the tensor.
        shape: its dimensions.
        reason: why it is not compressed.
    """

    name: str
    shape: tuple[int, ...]
    reason: str


LayerKind = Literal["lstm", "lstm_cell", "linear", "conv1d"]


KindFrom = Literal["as asked", "recorded class", "model", "config", "name and shape"]
"""Source of the kind of a layer, the most reliable first."""


MIN_SIDE = 64
"""Matrices with a side below this stay dense by default: truncating a small output layer like the rest ruins models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One tensor of a checkpoint that is part of a matrix.

    Args:
        name: name in the state dict.
        shape: (rows, columns) in the matrix; rows are outputs.
        dtype: name of its dtype, as `float32`.
        transposed: whether the file holds it as (columns, rows).
        aliases: its other names, if it is tied.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    transposed: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names that patterns are compared with: all its names, and the modules of its aliases."""
        modules = (alias.rpartition(".")[0] for alias in self.aliases)
        return (self.name, *self.aliases, *(module for module in modules if module))


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixSpec:
    """One matrix to decompose: a tensor, or several side by side that share their rows.

    Args:
        name: first part of the names of its cores: the name of the tensor, or that of the joint matrix.
        members: the tensors, left to right.
        kind_from: source of the kind of its layer.

    Example:
        >>> from mpocompress.layers.names import joint_name
        >>> ih = Member(name="lstm.weight_ih_l0", shape=(1024, 28), dtype="float32")
        >>> hh = Member(name="lstm.weight_hh_l0", shape=(1024, 256), dtype="float32")
        >>> MatrixSpec(name=joint_name(ih.name), members=(ih, hh)).shape
        (1024, 284)
    """

    name: str
    members: tuple[Member, ...]
    kind_from: KindFrom = "name and shape"

    @property
    def member_names(self) -> tuple[str, ...]:
        """Names of the members."""
        return tuple(member.name for member in self.members)

    @property
    def member_columns(self) -> tuple[int, ...]:
        """Columns of each member."""
        return tuple(member.shape[1] for member in self.members)

    @property
    def transposed(self) -> bool:
        """Whether the file holds the matrix as (columns, rows)."""
        return self.members[0].transposed

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the matrix."""
        return self.members[0].shape[0], sum(member.shape[1] for member in self.members)

    @property
    def dense_parameters(self) -> int:
        """Number of entries."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One layer, or one level and direction of a stacked LSTM, with the possible matrices of its weights.

    Args:
        name: path of the module in the model; empty for the model itself.
        kind: kind of the layer.
        forms: alternatives, each a set of matrices that holds every compressible tensor of the layer once.
    """

    name: str
    kind: LayerKind
    forms: tuple[tuple[MatrixSpec, ...], ...]

    @property
    def dense_parameters(self) -> int:
        """Number of entries of its compressible tensors."""
        return sum(matrix.dense_parameters for matrix in self.forms[0])


class Membership(Protocol):
    """How a matrix is made of tensors; `MatrixSpec` and `MatrixReport` say it."""

    @property
    def member_names(self) -> Sequence[str]:
        """Names of the tensors, left to right."""

    @property
    def member_columns(self) -> Sequence[int]:
        """Columns of each tensor in the matrix."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the matrix."""

    @property
    def transposed(self) -> bool:
        """Whether the file holds the tensors as (columns, rows)."""


def member_shapes(matrix: Membership) -> dict[str, tuple[int, int]]:
    """Return the shapes of the tensors of a matrix, as in the file.

    Args:
        matrix: the matrix.

    Example:
        >>> ih, hh = (Member(name=name, shape=(8, cols), dtype="float32") for name, cols in (("ih", 3), ("hh", 2)))
        >>> member_shapes(MatrixSpec(name="joint", members=(ih, hh)))
        {'ih': (8, 3), 'hh': (8, 2)}
    """
    rows = matrix.shape[0]
    return {
        name: (columns, rows) if matrix.transposed else (rows, columns)
        for name, columns in zip(matrix.member_names, matrix.member_columns, strict=True)
    }


class _Matrix(Protocol):
    """A torch tensor of two dimensions."""

    @property
    def T(self) -> Self: ...  # noqa: N802 - the name that torch uses

    def __getitem__(self, part: Any, /) -> Self: ...


_DenseMatrix = TypeVar("_DenseMatrix", bound=_Matrix)


def split_members(dense: _DenseMatrix, matrix: Membership) -> dict[str, _DenseMatrix]:
    """Split a dense matrix into its tensors, in the shapes that they have in the file.

    Args:
        dense: the matrix, shape (rows, columns).
        matrix: its tensors.

    Returns:
        Name -> view of `dense`.
    """
    edges = pairwise(accumulate(matrix.member_columns, initial=0))
    parts = (dense[:, start:stop] for start, stop in edges)
    return {name: part.T if matrix.transposed else part for name, part in zip(matrix.member_names, parts, strict=True)}
