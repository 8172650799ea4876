"""Compute the best low-rank products of a matrix in a metric, in closed form, for every bond at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpocompress.mpo.metric import OutputWeights, scaled, whitening
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.sites import low_rank
from mpocompress.mpo.truncation import tail_weights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightedProduct:
    """A matrix as a product left x right, its directions in the order of their weighted square.

    Args:
        left: shape (rows, k).
        right: shape (k, cols).
        tails: weighted square that each bond discards, as a share of `total`; shape (k + 1,).
        total: the weighted square of the matrix.
    """

    left: Tensor
    right: Tensor
    tails: NDArray[np.float64]
    total: float

    def matrix(self, bond: int) -> Tensor:
        """Return the best approximation by `bond` directions, shape (rows, cols), in float64."""
        return self.left[:, :bond] @ self.right[:bond]

    def mpo(self, bond: int) -> MPO:
        """Return the best approximation by `bond` directions as an MPO of two sites.

        The cores are in float64 and balanced: in every direction both have the same norm.
        """
        left, right = self.left[:, :bond], self.right[:bond]
        sizes = torch.linalg.vector_norm(left, dim=0), torch.linalg.vector_norm(right, dim=1)
        balance = torch.where((sizes[0] > 0) & (sizes[1] > 0), (sizes[1] / sizes[0]).sqrt(), 1.0)
        rows, cols = len(left), right.shape[1]
        cores = ((left * balance).reshape(1, rows, 1, -1), (right / balance[:, None]).reshape(-1, 1, cols, 1))
        return MPO(cores=tuple(core.contiguous() for core in cores), sites=low_rank(rows, cols))


def weighted_product(
    weight: Tensor,  # shape: (rows, cols)
    second: Tensor,  # shape: (cols, cols)
    outputs: OutputWeights,
) -> WeightedProduct:
    """Compute the weighted SVD of a matrix.

    The squared error tr(G E C E') is the Frobenius error of G^(1/2) E C^(1/2), so that the singular value decomposition
    of G^(1/2) W C^(1/2) gives the best product for every bond.

    Args:
        weight: the matrix W, finite.
        second: second moment C of its inputs, positive definite.
        outputs: weights G of the output errors.

    Returns:
        The product, in float64.

    Source:
        Eckart, Young 1936, "The approximation of one matrix by another of lower rank", doi:10.1007/BF02288367, after
        the change of variables above.

    Example:
        >>> product = weighted_product(torch.diag(torch.tensor([1.0, 2.0])), torch.eye(2), OutputWeights(torch.ones(2)))
        >>> product.tails.round(2).tolist(), product.matrix(1).round(decimals=2).abs().tolist()
        ([1.0, 0.2, 0.0], [[0.0, 0.0], [0.0, 2.0]])
    """
    wide, (root, inverse_root) = weight.double(), outputs.roots
    whiten, unwhiten = whitening(second.double())
    white = scaled(root, wide @ whiten)
    if white.shape[0] < white.shape[1]:
        squares, directions = _falling(white @ white.T)
        left, right = scaled(inverse_root, directions), directions.T @ scaled(root, wide)
    else:
        squares, directions = _falling(white.T @ white)
        left, right = wide @ (whiten @ directions), directions.T @ unwhiten
    total = float(squares.sum())
    tails = tail_weights(squares.sqrt().numpy(), 0.0) / (total or 1.0)
    return WeightedProduct(left=left, right=right, tails=tails, total=total)


def _falling(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues and eigenvectors of a Gram matrix, the largest first."""
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0).clamp_min(0.0), vectors.flip(1)
