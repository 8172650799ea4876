"""The matrix product operator (MPO): cores, canonical form, norm, parameter count, dense matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpocompress.errors import SitesError
from mpocompress.mpo.contraction import to_matrix
from mpocompress.mpo.sites import Sites
from mpocompress.mpo.tensorly_backend import tensorly_on_torch

if TYPE_CHECKING:
    from tensorly.tt_matrix import TTMatrix


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MPO:
    """A matrix as a chain of cores.

    Args:
        cores: one tensor a site, of shape (left_bond, row, col, right_bond); the outer bonds are 1.
        sites: the site dims and the order of the row index.

    Raises:
        SitesError: cores that do not fit the sites or each other.

    Example:
        >>> sites = Sites(row_dims=(3, 1), col_dims=(1, 2))
        >>> mpo = MPO(cores=(torch.ones(1, 3, 1, 2), torch.ones(2, 1, 2, 1)), sites=sites)
        >>> mpo.bonds, mpo.parameters, mpo.to_matrix().tolist()[0]
        ((2,), 10, [2.0, 2.0])
    """

    __module__ = "mpocompress"

    cores: tuple[Tensor, ...]
    sites: Sites

    def __post_init__(self) -> None:
        """Check the chain."""
        _check_dimensions(self.cores)
        chain = (1, *(core.shape[-1] for core in self.cores))
        wanted = tuple(zip(chain, self.sites.row_dims, self.sites.col_dims, chain[1:], strict=False))
        found = tuple(tuple(core.shape) for core in self.cores)
        if found != wanted or chain[-1] != 1 or len(found) != len(self.sites.dims):
            raise SitesError(
                where=f"MPO of rows {self.sites.row_dims} x columns {self.sites.col_dims}",
                found=f"cores of shapes {', '.join(map(str, found))}",
                why="a core has shape (left_bond, row, col, right_bond), and the outer bonds are 1",
                action="Pass one core per site, with equal bonds on both sides of every cut.",
            )

    def __repr__(self) -> str:
        """Return shapes in place of the entries of the cores."""
        dtype = str(self.cores[0].dtype).removeprefix("torch.")
        return f"MPO(sites={self.sites!r}, bonds={self.bonds}, dtype={dtype})"

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the matrix."""
        return self.sites.shape

    @property
    def bonds(self) -> tuple[int, ...]:
        """The bond of every cut between two sites."""
        return tuple(core.shape[-1] for core in self.cores[:-1])

    @property
    def parameters(self) -> int:
        """Number of entries of all cores."""
        return sum(core.numel() for core in self.cores)

    def to_matrix(self, *, precise: bool = False) -> Tensor:
        """Contract the cores to the dense matrix, a new tensor of shape (rows, columns).

        Args:
            precise: whether to contract half types in float32; the matrix then has that dtype.
        """
        return to_matrix(self.precise().cores if precise else self.cores, self.sites)

    def precise(self) -> MPO:
        """Return the MPO with its cores in float32 at least; cores that are so are shared."""
        return self.to(torch.promote_types(self.cores[0].dtype, torch.float32))

    def to(self, dtype: torch.dtype) -> MPO:
        """Return the MPO with its cores in a floating dtype; cores that have the dtype already are shared."""
        return MPO(cores=tuple(core.to(dtype) for core in self.cores), sites=self.sites)

    def canonical(self, centre: int) -> MPO:
        """Return the MPO in mixed canonical form: the cores on both sides of the centre are isometries.

        Args:
            centre: index of the site that carries the norm; negative counts from the end.

        Returns:
            A new MPO of the same matrix, up to rounding. Bonds above `Sites.max_bonds` are reduced to that.

        Raises:
            SitesError: no such site.

        Source:
            Schollwoeck 2011, "The density-matrix renormalization group in the age of matrix product states",
            Annals of Physics 326, doi:10.1016/j.aop.2010.09.012.

        Example:
            >>> mpo = MPO.from_cores([torch.ones(1, 3, 1, 2), torch.ones(2, 1, 2, 1)]).canonical(0)
            >>> mpo.bonds
            (2,)
        """
        if not -len(self.cores) <= centre < len(self.cores):
            raise SitesError(
                where="centre of a canonical form",
                found=f"got {centre}",
                why=f"the MPO has {len(self.cores)} sites",
                action="Pass the index of a site.",
            )
        dtype = self.cores[0].dtype
        cores = list(self.precise().cores)
        centre %= len(cores)
        for site in range(centre):
            left, row, col, right = cores[site].shape
            isometry, rest = torch.linalg.qr(cores[site].reshape(left * row * col, right))
            cores[site] = isometry.reshape(left, row, col, -1)
            cores[site + 1] = torch.tensordot(rest, cores[site + 1], dims=1)
        for site in range(len(cores) - 1, centre, -1):
            left, row, col, right = cores[site].shape
            isometry, rest = torch.linalg.qr(cores[site].reshape(left, row * col * right).T)
            cores[site] = isometry.T.reshape(-1, row, col, right)
            cores[site - 1] = torch.tensordot(cores[site - 1], rest.T, dims=1)
        return MPO(cores=tuple(core.to(dtype).contiguous() for core in cores), sites=self.sites)

    def norm(self) -> float:
        """Return the Frobenius norm of the matrix, computed from the cores in float64."""
        transfer = torch.ones(1, 1, dtype=torch.float64)
        for core in self.cores:
            wide = core.double()
            half = torch.tensordot(transfer, wide, dims=([1], [0]))
            transfer = torch.tensordot(wide, half, dims=([0, 1, 2], [0, 1, 2]))
        return float(transfer.squeeze().clamp_min(0).sqrt())

    def to_tensorly(self) -> TTMatrix:
        """Return the matrix as a tensorly `TTMatrix` on the pytorch backend, sharing the cores.

        Raises:
            SitesError: anti-aligned sites; in a TTMatrix the row digit of the first site is the slowest.
        """
        if self.sites.anti_aligned:
            raise SitesError(
                where=f"MPO of rows {self.sites.row_dims} x columns {self.sites.col_dims}",
                found="anti-aligned sites",
                why="in a TTMatrix the row digit of the first site is the slowest, so its rows would be permuted",
                action="Decompose with Sites(..., anti_aligned=False), or with the low-rank shape.",
            )
        with tensorly_on_torch() as tensorly:
            return tensorly.tt_matrix.TTMatrix(list(self.cores))

    @staticmethod
    def from_tensorly(tt_matrix: TTMatrix) -> MPO:
        """Return a tensorly `TTMatrix` as an MPO with aligned sites, sharing its factors.

        Args:
            tt_matrix: a TTMatrix on the pytorch backend, as `tensor_train_matrix` returns it.

        Raises:
            SitesError: factors that are not torch tensors, or do not form a chain of two or more sites.
        """
        factors = list(tt_matrix.factors)
        if not all(isinstance(factor, Tensor) for factor in factors):
            raise SitesError(
                where="TTMatrix",
                found=f"factors of {type(factors[0]).__module__}",
                why="the cores of an MPO are torch tensors",
                action="Decompose on tensorly's pytorch backend, or convert the factors with torch.as_tensor.",
            )
        return MPO.from_cores(factors)

    @staticmethod
    def from_cores(cores: Sequence[Tensor], *, anti_aligned: bool = False) -> MPO:
        """Return the MPO of some cores, with the site dims of their shapes.

        Args:
            cores: tensors of shape (left_bond, row, col, right_bond).
            anti_aligned: the order of the row index, see `Sites`.

        Raises:
            SitesError: cores that do not form a chain.
        """
        _check_dimensions(cores)
        rows, cols = (tuple(int(core.shape[axis]) for core in cores) for axis in (1, 2))
        return MPO(cores=tuple(cores), sites=Sites(row_dims=rows, col_dims=cols, anti_aligned=anti_aligned))


def _check_dimensions(cores: Sequence[Tensor]) -> None:
    """Refuse cores that are not 4-D."""
    if any(core.dim() != 4 for core in cores):
        raise SitesError(
            where="MPO cores",
            found=f"tensors of {', '.join(str(core.dim()) for core in cores)} dimensions",
            why="a core has four: (left_bond, row, col, right_bond)",
            action="Reshape them.",
        )
