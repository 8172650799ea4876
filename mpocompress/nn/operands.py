"""Operands of the product of a batch with a matrix: the matrix, or the cores of an MPO merged into two operands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpocompress.mpo.sites import Sites


@dataclass(frozen=True, slots=True, kw_only=True)
class OperandLayout:
    """How two operands cover the rows and columns of a matrix.

    The column index has the digits `(col_1, col_2)`, the first one slowest; the row index has `(row_2, row_1)` if it is
    anti-aligned, and `(row_1, row_2)` otherwise.

    Args:
        rows: (row_1, row_2): row dims of the first and of the second group of sites.
        cols: (col_1, col_2): column dims of the same groups.
        bond: bond between the groups.
        anti_aligned: order of the row index.
        before: columns of zeros to insert before those of an input.
        behind: columns of zeros to append.

    Example:
        >>> OperandLayout(rows=(64, 64), cols=(32, 32), bond=16).multiplications
        3145728
    """

    rows: tuple[int, int]
    cols: tuple[int, int]
    bond: int
    anti_aligned: bool = True
    before: int = 0
    behind: int = 0

    @property
    def multiplications(self) -> int:
        """Multiplications for one row of a batch."""
        return self.bond * (math.prod(self.cols) * self.rows[1] + math.prod(self.rows) * self.cols[0])

    @property
    def operand_entries(self) -> int:
        """Entries of the two operands."""
        return self.bond * (self.cols[1] * self.rows[1] + self.cols[0] * self.rows[0])

    @property
    def is_low_rank(self) -> bool:
        """Whether the second product takes the result of the first as it is, without reordering."""
        return self.rows[1] == 1 and self.cols[0] == 1

    @property
    def in_order(self) -> bool:
        """Whether the second product gives the rows in the order of the matrix."""
        return self.anti_aligned or 1 in self.rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Product:
    """The operands that a batch of row vectors is multiplied with to give `x @ W.T`.

    Args:
        operands: the transposed matrix, of shape (columns, rows); or two operands, of shapes (col_2, row_2 * bond) and
            (col_1 * bond, row_1).
        layout: of two operands; None for a matrix.

    Example:
        >>> weight = torch.randn(6, 4)
        >>> torch.equal(Product(operands=(weight.T,))(torch.eye(4)), weight.T)
        True
    """

    operands: tuple[Tensor, ...]
    layout: OperandLayout | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The operands."""
        return self.operands

    @property
    def intermediate_entries(self) -> int:
        """Entries between the two products, for one row of a batch."""
        return 0 if self.layout is None else self.layout.cols[0] * self.layout.rows[1] * self.layout.bond

    @property
    def entries(self) -> int:
        """Entries of all operands."""
        return sum(operand.numel() for operand in self.operands)

    def __call__(
        self,
        x: Tensor,  # shape: (batch, columns)
    ) -> Tensor:  # shape: (batch, rows)
        """Multiply a batch, in the dtype of the operands; differentiable."""
        if self.layout is None:
            return x @ self.operands[0]
        return to_row_order(first_product(x, self.operands[0], self.layout) @ self.operands[1], self.layout)

    def scaled(
        self,
        scale: Tensor,  # shape: (rows,)
    ) -> Product | None:
        """Return the product with every row of the matrix scaled; None if the operands cannot represent it."""
        if self.layout is not None and self.layout.rows[1] != 1:
            return None
        return Product(operands=(*self.operands[:-1], self.operands[-1] * scale), layout=self.layout)


def first_product(
    x: Tensor,  # shape: (batch, columns)
    first: Tensor,  # shape: (col_2, row_2 * bond)
    layout: OperandLayout,
) -> Tensor:  # shape: (batch * row_2, col_1 * bond)
    """Multiply a batch with the first operand, and reorder the result for the second; differentiable."""
    return to_second(padded(x, layout).reshape(-1, layout.cols[1]) @ first, layout)


def padded(
    x: Tensor,  # shape: (batch, columns)
    layout: OperandLayout,
) -> Tensor:  # shape: (batch, col_1 * col_2)
    """Add the columns of zeros of a layout to a batch; return the batch itself if there are none."""
    if not (layout.before or layout.behind):
        return x
    return torch.nn.functional.pad(x, (layout.before, layout.behind))


def to_second(
    inner: Tensor,  # shape: (batch * col_1, row_2 * bond)
    layout: OperandLayout,
) -> Tensor:  # shape: (batch * row_2, col_1 * bond)
    """Reorder the result of the first product for the second one."""
    (col, row), bond = (layout.cols[0], layout.rows[1]), layout.bond
    if col == 1 or row == 1:
        return inner.reshape(-1, col * bond)
    return inner.reshape(-1, col, row, bond).transpose(1, 2).reshape(-1, col * bond)


def to_first(
    inner: Tensor,  # shape: (batch * row_2, col_1 * bond)
    layout: OperandLayout,
) -> Tensor:  # shape: (batch * col_1, row_2 * bond)
    """Invert `to_second`."""
    (col, row), bond = (layout.cols[0], layout.rows[1]), layout.bond
    if col == 1 or row == 1:
        return inner.reshape(-1, row * bond)
    return inner.reshape(-1, row, col, bond).transpose(1, 2).reshape(-1, row * bond)


def to_row_order(
    outer: Tensor,  # shape: (batch * row_2, row_1)
    layout: OperandLayout,
) -> Tensor:  # shape: (batch, rows)
    """Reorder the result of the second product to the rows of the matrix."""
    if layout.in_order:
        return outer.reshape(-1, math.prod(layout.rows))
    return outer.reshape(-1, layout.rows[1], layout.rows[0]).transpose(1, 2).reshape(-1, math.prod(layout.rows))


def from_row_order(
    outer: Tensor,  # shape: (batch, rows)
    layout: OperandLayout,
) -> Tensor:  # shape: (batch * row_2, row_1)
    """Invert `to_row_order`."""
    if layout.in_order:
        return outer.reshape(-1, layout.rows[0])
    return outer.reshape(-1, layout.rows[0], layout.rows[1]).transpose(1, 2).reshape(-1, layout.rows[0])


def layout_of(sites: Sites, bonds: tuple[int, ...]) -> tuple[OperandLayout, int]:
    """Find the cut at which merging the cores of an MPO into two operands needs the fewest multiplications.

    Args:
        sites: the site dims.
        bonds: the bonds.

    Returns:
        The layout, and the number of sites of the first operand.

    Example:
        >>> layout, cut = layout_of(Sites(row_dims=(8, 1, 1), col_dims=(1, 2, 4), anti_aligned=True), (2, 4))
        >>> layout.rows, layout.cols, layout.bond, cut
        ((8, 1), (1, 8), 2, 1)
    """
    layouts = [
        OperandLayout(
            rows=(math.prod(sites.row_dims[:cut]), math.prod(sites.row_dims[cut:])),
            cols=(math.prod(sites.col_dims[:cut]), math.prod(sites.col_dims[cut:])),
            bond=bond,
            anti_aligned=sites.anti_aligned,
        )
        for cut, bond in enumerate(bonds, start=1)
    ]
    cheapest = min(layouts, key=lambda layout: layout.multiplications)
    return cheapest, layouts.index(cheapest) + 1


def as_product(
    cores: Sequence[Tensor],  # each of shape: (left_bond, row, col, right_bond)
    layout: OperandLayout,
    cut: int,
) -> Product:
    """Merge the cores of an MPO into two operands; differentiable.

    Args:
        cores: the cores.
        layout: result of `layout_of`.
        cut: number of sites of the first operand; result of `layout_of`.

    Example:
        >>> sites = Sites(row_dims=(3, 2), col_dims=(2, 3), anti_aligned=True)
        >>> cores = [torch.randn(1, 3, 2, 4), torch.randn(4, 2, 3, 1)]
        >>> as_product(cores, *layout_of(sites, (4,)))(torch.eye(6)).shape
        torch.Size([6, 6])
    """
    left = _merged(cores[:cut], layout.anti_aligned)  # (1, row_1, col_1, bond)
    right = _merged(cores[cut:], layout.anti_aligned)  # (bond, row_2, col_2, 1)
    first = right.permute(2, 1, 0, 3).reshape(layout.cols[1], -1)
    second = left.permute(2, 3, 1, 0).reshape(-1, layout.rows[0])
    return Product(operands=(first.contiguous(), second.contiguous()), layout=layout)


def _merged(cores: Sequence[Tensor], anti_aligned: bool) -> Tensor:
    """Merge adjacent cores, with row and column digits in the order of the matrix."""
    merged = cores[0]
    for core in cores[1:]:
        left, row, col, _ = merged.shape
        _, more_row, more_col, right = core.shape
        wide = torch.tensordot(merged, core, dims=1)  # (left, row, col, more_row, more_col, right)
        order = (0, 3, 1, 2, 4, 5) if anti_aligned else (0, 1, 3, 2, 4, 5)
        merged = wide.permute(order).reshape(left, row * more_row, col * more_col, right)
    return merged


def split_columns(product: Product, columns: int) -> tuple[Product, Product]:
    """Split a product into one over the first columns and one over the others; their sum is the product.

    Args:
        product: the product of a joint matrix, such as [W_ih W_hh].
        columns: number of columns of the first part.

    Returns:
        The two products; they share an operand if possible.

    Example:
        >>> joint = Product(operands=(torch.randn(5, 3),))
        >>> [part.operands[0].shape[0] for part in split_columns(joint, 2)]
        [2, 3]
    """
    if product.layout is None:
        whole = product.operands[0]
        return Product(operands=(whole[:columns],)), Product(operands=(whole[columns:],))
    (left, right), (first, second) = split_layout(product.layout, columns), product.operands
    if product.layout.cols[0] == 1:
        return (
            Product(operands=(first[:columns], second), layout=left),
            Product(operands=(first[columns:], second), layout=right),
        )
    end, start = left.cols[0] * left.bond, len(second) - right.cols[0] * right.bond
    return (
        Product(operands=(first, second[:end]), layout=left),
        Product(operands=(first, second[start:]), layout=right),
    )


def split_layout(layout: OperandLayout, columns: int) -> tuple[OperandLayout, OperandLayout]:
    """Return the layouts of the two products of `split_columns`.

    Args:
        layout: layout of the joint matrix.
        columns: number of columns of the first part.

    Example:
        >>> [part.cols for part in split_layout(OperandLayout(rows=(4, 2), cols=(3, 4), bond=2), 6)]
        [(2, 4), (2, 4)]
    """
    outer, inner = layout.cols
    if outer == 1:
        return _with_cols(layout, 1, columns), _with_cols(layout, 1, inner - columns)
    # Every part gets whole blocks of `inner` columns; a block with columns of both goes to both, padded with zeros.
    whole, rest = divmod(columns, inner)
    return (
        _with_cols(layout, whole + (rest > 0), inner, behind=-columns % inner),
        _with_cols(layout, outer - whole, inner, before=rest),
    )


def _with_cols(layout: OperandLayout, outer: int, inner: int, *, before: int = 0, behind: int = 0) -> OperandLayout:
    return OperandLayout(
        rows=layout.rows,
        cols=(outer, inner),
        bond=layout.bond,
        anti_aligned=layout.anti_aligned,
        before=before,
        behind=behind,
    )
