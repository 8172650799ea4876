"""A matrix as what a batch is multiplied with: itself, or the cores of an MPO merged into two operands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpocompress.mpo.sites import Sites


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How two operands are laid over the rows and columns of a matrix; whole numbers only.

    The column index counts `(col_1, col_2)`, the first digit slowest; the row index `(row_2, row_1)` where it is
    anti-aligned, `(row_1, row_2)` where it is not.

    Args:
        rows: (row_1, row_2): row dims of the first and of the second group of sites.
        cols: (col_1, col_2): the same for columns.
        bond: the bond between the groups.
        anti_aligned: the order of the row index.
        before: columns of zeros that stand before those of an input.
        behind: the same, behind them.

    Example:
        >>> Layout(rows=(64, 64), cols=(32, 32), bond=16).multiplications
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
        """Whether the two products follow on each other without a change of order between them."""
        return self.rows[1] == 1 and self.cols[0] == 1

    @property
    def in_order(self) -> bool:
        """Whether the rows of the second product are those of the matrix."""
        return self.anti_aligned or 1 in self.rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Product:
    """What a batch of row vectors is multiplied with to give `x @ W.T`.

    Args:
        operands: the transposed matrix, of shape (columns, rows); or the operands of a layout, of shapes
            (col_2, row_2 * bond) and (col_1 * bond, row_1).
        layout: None for a matrix.

    Example:
        >>> weight = torch.randn(6, 4)
        >>> torch.equal(Product(operands=(weight.T,))(torch.eye(4)), weight.T)
        True
    """

    operands: tuple[Tensor, ...]
    layout: Layout | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The operands."""
        return self.operands

    @property
    def middle_entries(self) -> int:
        """Numbers between the two products, for one row of a batch."""
        return 0 if self.layout is None else self.layout.cols[0] * self.layout.rows[1] * self.layout.bond

    @property
    def entries(self) -> int:
        """Entries that are read for a product."""
        return sum(operand.numel() for operand in self.operands)

    def __call__(
        self,
        x: Tensor,  # shape: (batch, columns)
    ) -> Tensor:  # shape: (batch, rows)
        """Multiply, differentiably.

        Args:
            x: the batch, in the dtype of the operands.

        Returns:
            A new tensor.
        """
        if self.layout is None:
            return x @ self.operands[0]
        return finished(middle(x, self.operands[0], self.layout) @ self.operands[1], self.layout)

    def scaled(
        self,
        scale: Tensor,  # shape: (rows,)
    ) -> Product | None:
        """The same with every row of the matrix multiplied by a number.

        Args:
            scale: the numbers.

        Returns:
            The product; None where the operands cannot hold them.
        """
        if self.layout is not None and self.layout.rows[1] != 1:
            return None
        return Product(operands=(*self.operands[:-1], self.operands[-1] * scale), layout=self.layout)


def middle(
    x: Tensor,  # shape: (batch, columns)
    first: Tensor,  # shape: (col_2, row_2 * bond)
    layout: Layout,
) -> Tensor:  # shape: (batch * row_2, col_1 * bond)
    """The first product, put into the order of the second.

    Args:
        x: the batch.
        first: the first operand.
        layout: its layout.

    Returns:
        A tensor, differentiable.
    """
    return forth(padded(x, layout).reshape(-1, layout.cols[1]) @ first, layout)


def padded(
    x: Tensor,  # shape: (batch, columns)
    layout: Layout,
) -> Tensor:  # shape: (batch, col_1 * col_2)
    """A batch with the columns of zeros that a layout has before and behind it; itself where there are none."""
    if not (layout.before or layout.behind):
        return x
    return torch.nn.functional.pad(x, (layout.before, layout.behind))


def forth(
    inner: Tensor,  # shape: (batch * col_1, row_2 * bond)
    layout: Layout,
) -> Tensor:  # shape: (batch * row_2, col_1 * bond)
    """From the order in which the first product comes out to that in which the second goes in."""
    (col, row), bond = (layout.cols[0], layout.rows[1]), layout.bond
    if col == 1 or row == 1:
        return inner.reshape(-1, col * bond)
    return inner.reshape(-1, col, row, bond).transpose(1, 2).reshape(-1, col * bond)


def back(
    inner: Tensor,  # shape: (batch * row_2, col_1 * bond)
    layout: Layout,
) -> Tensor:  # shape: (batch * col_1, row_2 * bond)
    """The reverse of `forth`."""
    (col, row), bond = (layout.cols[0], layout.rows[1]), layout.bond
    if col == 1 or row == 1:
        return inner.reshape(-1, row * bond)
    return inner.reshape(-1, row, col, bond).transpose(1, 2).reshape(-1, row * bond)


def finished(
    outer: Tensor,  # shape: (batch * row_2, row_1)
    layout: Layout,
) -> Tensor:  # shape: (batch, rows)
    """The second product in the order of the rows."""
    if layout.in_order:
        return outer.reshape(-1, math.prod(layout.rows))
    return outer.reshape(-1, layout.rows[1], layout.rows[0]).transpose(1, 2).reshape(-1, math.prod(layout.rows))


def unfinished(
    outer: Tensor,  # shape: (batch, rows)
    layout: Layout,
) -> Tensor:  # shape: (batch * row_2, row_1)
    """The reverse of `finished`."""
    if layout.in_order:
        return outer.reshape(-1, layout.rows[0])
    return outer.reshape(-1, layout.rows[0], layout.rows[1]).transpose(1, 2).reshape(-1, layout.rows[0])


def layout_of(sites: Sites, bonds: tuple[int, ...]) -> tuple[Layout, int]:
    """The cheapest way to merge the cores of an MPO into two operands.

    Args:
        sites: its site dims.
        bonds: its bonds.

    Returns:
        The layout, and how many sites the first operand has.

    Example:
        >>> layout, cut = layout_of(Sites(row_dims=(8, 1, 1), col_dims=(1, 2, 4), anti_aligned=True), (2, 4))
        >>> layout.rows, layout.cols, layout.bond, cut
        ((8, 1), (1, 8), 2, 1)
    """
    layouts = [
        Layout(
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
    layout: Layout,
    cut: int,
) -> Product:
    """The two operands of an MPO, differentiable.

    Args:
        cores: its cores.
        layout: as `layout_of` gives it.
        cut: the same.

    Returns:
        The product.

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
    """Neighbouring cores as one, its row and column digits in the order of the matrix."""
    merged = cores[0]
    for core in cores[1:]:
        left, row, col, _ = merged.shape
        _, more_row, more_col, right = core.shape
        wide = torch.tensordot(merged, core, dims=1)  # (left, row, col, more_row, more_col, right)
        order = (0, 3, 1, 2, 4, 5) if anti_aligned else (0, 1, 3, 2, 4, 5)
        merged = wide.permute(order).reshape(left, row * more_row, col * more_col, right)
    return merged


def split_columns(product: Product, columns: int) -> tuple[Product, Product]:
    """A product over columns side by side, as the sum of one over the first of them and one over the others.

    Args:
        product: the product of a joint matrix, such as [W_ih W_hh].
        columns: how many columns the first has.

    Returns:
        The two products. They share an operand where they can.

    Example:
        >>> joint = Product(operands=(torch.randn(5, 3),))
        >>> [part.operands[0].shape[0] for part in split_columns(joint, 2)]
        [2, 3]
    """
    if product.layout is None:
        whole = product.operands[0]
        return Product(operands=(whole[:columns],)), Product(operands=(whole[columns:],))
    (of_first, of_others), (first, second) = split_layout(product.layout, columns), product.operands
    if product.layout.cols[0] == 1:
        return (
            Product(operands=(first[:columns], second), layout=of_first),
            Product(operands=(first[columns:], second), layout=of_others),
        )
    ends, begins = of_first.cols[0] * of_first.bond, len(second) - of_others.cols[0] * of_others.bond
    return (
        Product(operands=(first, second[:ends]), layout=of_first),
        Product(operands=(first, second[begins:]), layout=of_others),
    )


def split_layout(layout: Layout, columns: int) -> tuple[Layout, Layout]:
    """The layouts of `split_columns`.

    Args:
        layout: of the whole.
        columns: how many columns the first has.

    Returns:
        The two layouts.

    Example:
        >>> [part.cols for part in split_layout(Layout(rows=(4, 2), cols=(3, 4), bond=2), 6)]
        [(2, 4), (2, 4)]
    """
    outer, inner = layout.cols
    if outer == 1:
        return _with_cols(layout, 1, columns), _with_cols(layout, 1, inner - columns)
    # Whole blocks of `inner` columns go to either side; one that has columns of both goes to both, with zeros.
    whole, rest = divmod(columns, inner)
    return (
        _with_cols(layout, whole + (rest > 0), inner, behind=-columns % inner),
        _with_cols(layout, outer - whole, inner, before=rest),
    )


def _with_cols(layout: Layout, outer: int, inner: int, *, before: int = 0, behind: int = 0) -> Layout:
    return Layout(
        rows=layout.rows,
        cols=(outer, inner),
        bond=layout.bond,
        anti_aligned=layout.anti_aligned,
        before=before,
        behind=behind,
    )
