"""Site shapes: how the rows and columns of a matrix are factored over the sites of an MPO."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from mpocompress.errors import SitesError

SitesChoice = Literal["auto", "lowrank"] | int
"""The best of the candidates, the low-rank shape, or a number of balanced sites."""

MIN_SITES, MAX_SITES = 2, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sites:
    """The site dims of a matrix product operator, and the order of its row index.

    Site `k` has a row digit with `row_dims[k]` values and a column digit with `col_dims[k]` values. In the column index
    the digit of the first site is the slowest. In the row index it is the slowest too (*aligned*, the convention of
    tensorly), or that of the last site is (*anti-aligned*), so that a product with a batch ends in the right order.

    Args:
        row_dims: row dim of each site; their product is the number of rows (outputs).
        col_dims: column dim of each site; their product is the number of columns (inputs).
        anti_aligned: whether the row digit of the last site is the slowest.

    Raises:
        SitesError: dims below 1, different numbers of row and column dims, or fewer than two sites.

    Example:
        >>> sites = Sites(row_dims=(32, 32), col_dims=(16, 16))
        >>> sites.shape, sites.max_bonds, sites.parameters((16,))
        ((1024, 256), (512,), 16384)
    """

    __module__ = "mpocompress"

    row_dims: tuple[int, ...]
    col_dims: tuple[int, ...]
    anti_aligned: bool = False

    def __post_init__(self) -> None:
        """Check the dims."""
        where = f"sites rows {self.row_dims} x columns {self.col_dims}"
        if len(self.row_dims) != len(self.col_dims) or len(self.row_dims) < MIN_SITES:
            raise SitesError(
                where=where,
                found=f"{len(self.row_dims)} row dims and {len(self.col_dims)} column dims",
                why="every site has one of each, and an MPO has at least two sites",
                action="Pass as many row dims as column dims; a site without rows or columns has a dim of 1.",
            )
        if any(dim < 1 for dim in (*self.row_dims, *self.col_dims)):
            raise SitesError(
                where=where,
                found="a dim below 1",
                why="a digit has at least one value",
                action="Pass dims of 1 or more.",
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the matrix."""
        return math.prod(self.row_dims), math.prod(self.col_dims)

    @property
    def dims(self) -> tuple[int, ...]:
        """Row dim times column dim of each site."""
        return _dims(tuple(self.row_dims), tuple(self.col_dims))

    @property
    def max_bonds(self) -> tuple[int, ...]:
        """The largest useful bond of every cut: the rank of an unfolding cannot exceed it."""
        return _max_bonds(self.dims)

    @property
    def label(self) -> str:
        """Short name for tables: `low rank`, `split 4`, `fold 1x4`, or the number of sites."""
        (first_row, *more_rows), (first_col, *more_cols) = self.row_dims, self.col_dims
        if len(self.row_dims) == MIN_SITES:
            if first_col == 1 and more_rows[0] == 1:
                return "low rank"
            if more_rows[0] == first_col and self.anti_aligned and first_row > first_col and more_cols[0] > first_col:
                return f"split {first_col}"
            if first_col == 1 or more_rows[0] == 1:
                return f"fold {more_rows[0]}x{first_col}"
        return f"{len(self.row_dims)} sites"

    def capped(self, max_bond: int) -> tuple[int, ...]:
        """Return the largest useful bonds under one cap, one per cut."""
        return tuple(min(max_bond, bond) for bond in self.max_bonds)

    def parameters(self, bonds: Sequence[int]) -> int:
        """Return the number of entries of all cores with these bonds, one per cut."""
        chain = (1, *bonds, 1)
        return sum(left * dim * right for left, dim, right in zip(chain, self.dims, chain[1:], strict=False))


def low_rank(rows: int, cols: int) -> Sites:
    """Return the two-site shape of a plain low-rank product, (rows, 1) x (1, cols): rows first, columns second.

    Args:
        rows: rows of the matrix.
        cols: columns of the matrix.

    Example:
        >>> low_rank(1024, 256).row_dims
        (1024, 1)
    """
    return Sites(row_dims=(rows, 1), col_dims=(1, cols))


def folded(rows: int, cols: int, row_fold: int, col_fold: int) -> Sites:
    """Return a two-site shape between low rank and balanced: a small row and a small column digit change sites.

    Args:
        rows: rows of the matrix.
        cols: columns of the matrix.
        row_fold: row dim of the second site (its digit is the slow one); a divisor of `rows`.
        col_fold: column dim of the first site (its digit is the slow one); a divisor of `cols`.

    Returns:
        Anti-aligned sites (rows / row_fold, row_fold) x (col_fold, cols / col_fold).

    Raises:
        SitesError: a fold that does not divide its side.

    Example:
        >>> folded(1024, 28, 4, 1).dims
        (256, 112)
    """
    for side, fold, name in ((rows, row_fold, "rows"), (cols, col_fold, "columns")):
        if fold < 1 or side % fold:
            raise SitesError(
                where=f"matrix {rows} x {cols}",
                found=f"a fold of {fold} for {side} {name}",
                why="a fold must be a divisor",
                action=f"Pass a divisor of {side}.",
            )
    row_dims = (rows // row_fold, row_fold)
    return Sites(row_dims=row_dims, col_dims=(col_fold, cols // col_fold), anti_aligned=_has_order(row_dims))


def balanced(rows: int, cols: int, sites: int) -> Sites:
    """Return the shape of the paper: rows and columns factored as evenly as their divisors allow.

    Args:
        rows: rows of the matrix.
        cols: columns of the matrix.
        sites: number of sites, 2 to 5.

    Returns:
        Anti-aligned sites, with falling row dims and rising column dims, so that the sites have similar sizes.

    Raises:
        SitesError: a number of sites outside 2 to 5, or too few divisors.

    Source:
        Gao, Sun, Gao, Li, Lu 2020, "Compressing LSTM Networks by Matrix Product Operators", arXiv 2012.11943.

    Example:
        >>> balanced(1024, 768, 2).dims
        (768, 1024)
    """
    where = f"matrix {rows} x {cols}"
    if not MIN_SITES <= sites <= MAX_SITES:
        raise SitesError(
            where=where,
            found=f"got {sites} sites",
            why=f"balanced shapes have {MIN_SITES} to {MAX_SITES} sites",
            action=f"Use {MIN_SITES} to {MAX_SITES} sites, or the low-rank shape.",
        )
    row_dims, col_dims = _even_factors(rows, sites), _even_factors(cols, sites)[::-1]
    if any(row * col == 1 for row, col in zip(row_dims, col_dims, strict=True)):
        raise SitesError(
            where=where,
            found=f"{rows} = {_product(row_dims)} and {cols} = {_product(col_dims)}",
            why=f"its sides have too few divisors to fill {sites} sites",
            action="Use fewer sites, or the low-rank shape.",
        )
    return Sites(row_dims=row_dims, col_dims=col_dims, anti_aligned=_has_order(row_dims))


def check_choice(choice: object) -> None:
    """Refuse an unknown site shape choice.

    Args:
        choice: the choice.

    Raises:
        SitesError: it is not `auto`, `lowrank` or a number from 2 to 5.
    """
    if choice not in ("auto", "lowrank") and not (isinstance(choice, int) and MIN_SITES <= choice <= MAX_SITES):
        raise SitesError(
            where="sites",
            found=f"got {choice!r}",
            why=f"it must be auto, lowrank, or a number of sites from {MIN_SITES} to {MAX_SITES}",
            action="Pass one of these.",
        )


def candidates(rows: int, cols: int, choice: SitesChoice) -> tuple[Sites, ...]:
    """Return the candidate shapes, the one that runs fastest first, so that a tie goes to the faster one.

    Args:
        rows: rows of the matrix.
        cols: columns of the matrix.
        choice: `auto`, `lowrank`, or a number of balanced sites.

    Returns:
        At least one shape, without duplicates.

    Raises:
        SitesError: the matrix has too few divisors for the number of sites.

    Example:
        >>> [sites.label for sites in candidates(384, 384, "auto")]
        ['low rank', 'split 2', 'split 4', 'split 8', 'split 16', '3 sites']
    """
    return _candidates(rows, cols, choice)


@lru_cache(maxsize=4096)
def _candidates(rows: int, cols: int, choice: SitesChoice) -> tuple[Sites, ...]:
    """See `candidates`; cached, as a model has many matrices of one shape."""
    if choice == "lowrank":
        return (low_rank(rows, cols),)
    if choice != "auto":
        return (balanced(rows, cols, choice),)
    shapes = [low_rank(rows, cols)]
    shapes += [folded(rows, cols, fold, fold) for fold in (2, 4, 8) if rows % fold == 0 and cols % fold == 0]
    shapes += _square_folds(rows, cols)
    for count in (2, 3):
        try:
            shapes.append(balanced(rows, cols, count))
        except SitesError:
            continue
    return tuple(dict.fromkeys(shapes))


def _square_folds(rows: int, cols: int) -> Iterator[Sites]:
    """Yield the folds that make a tall or wide matrix more square, with fewer parameters for the same bond."""
    long, short = max(rows, cols), min(rows, cols)
    fold = 2
    while long // fold >= short * fold:
        if long % fold == 0:
            yield folded(rows, cols, fold, 1) if rows > cols else folded(rows, cols, 1, fold)
        fold *= 2


def _has_order(dims: Sequence[int]) -> bool:
    """Return whether the order of the digits matters: more than one of them has several values."""
    return sum(dim > 1 for dim in dims) > 1


@lru_cache(maxsize=4096)
def _dims(row_dims: tuple[int, ...], col_dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(row * col for row, col in zip(row_dims, col_dims, strict=True))


@lru_cache(maxsize=4096)
def _max_bonds(dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(min(math.prod(dims[:cut]), math.prod(dims[cut:])) for cut in range(1, len(dims)))


@lru_cache(maxsize=4096)
def _even_factors(number: int, count: int) -> tuple[int, ...]:
    """Return `number` as a product of `count` falling factors, as even as its divisors allow."""
    return min(_factorisations(number, count, number), key=lambda dims: sum(math.log(dim) ** 2 for dim in dims))


def _factorisations(number: int, count: int, largest: int) -> Iterator[tuple[int, ...]]:
    """Yield every product of `count` falling factors that is `number`, none above `largest`."""
    if count == 1:
        if number <= largest:
            yield (number,)
        return
    for first in _divisors(number):
        if first <= largest and first**count >= number:
            for rest in _factorisations(number // first, count - 1, first):
                yield (first, *rest)


@lru_cache(maxsize=4096)
def _divisors(number: int) -> tuple[int, ...]:
    """Return all divisors, rising."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return tuple(sorted({*small, *(number // d for d in small)}))


def _product(dims: Sequence[int]) -> str:
    return " x ".join(map(str, dims))
