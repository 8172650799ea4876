"""The metric of a matrix: the second moment of its inputs, and weights of its output errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

SHRINKAGE = 1e-5
"""Smallest variance of an input, as a share of the mean variance."""
SCARCITY = 1e-3
"""Addition to that share with as many samples as inputs; with more samples it falls in proportion."""
FULL_ROWS = 2048
"""Largest number of outputs for a full G; for more, only its diagonal is kept."""
OUTPUT_FLOOR = 1e-3
"""Smallest weight of an output, as a share of the mean weight."""
SMALLEST = 1e-9
"""Smallest variance in a whitening, as a share of the largest."""


class OutputWeights:
    """Weights of the output errors of a matrix: the second moment G of the gradients of its outputs.

    Args:
        moment: G, symmetric and positive semidefinite, shape (rows, rows); or its diagonal, shape (rows,).

    Example:
        >>> weights = OutputWeights(torch.ones(2))
        >>> weights.times(torch.eye(2)).diagonal().tolist()
        [1.001..., 1.001...]
    """

    def __init__(self, moment: Tensor) -> None:
        self.moment = moment

    @cached_property
    def floored(self) -> Tensor:
        """G with a smallest weight for every output, in float64, in the shape of `moment`."""
        wide = self.moment.double()
        if wide.dim() == 1:
            return wide + OUTPUT_FLOOR * wide.mean()
        wide = (wide + wide.T) / 2
        wide.diagonal().add_(OUTPUT_FLOOR * float(wide.diagonal().mean()))
        return wide

    @cached_property
    def roots(self) -> tuple[Tensor, Tensor]:
        """The square root of G and its inverse, in the shape of `moment`."""
        floored = self.floored
        return (floored.sqrt(), floored.rsqrt()) if floored.dim() == 1 else whitening(floored)

    @property
    def scale(self) -> float:
        """The mean weight of an output."""
        return float((self.moment if self.moment.dim() == 1 else self.moment.diagonal()).mean())

    def times(
        self,
        matrix: Tensor,  # shape: (rows, n)
    ) -> Tensor:
        """Return G times a matrix of any floating dtype, in float64."""
        return scaled(self.floored, matrix.double())


def scaled(
    weights: Tensor,  # shape: (rows,) or (rows, rows)
    matrix: Tensor,  # shape: (rows, n)
) -> Tensor:
    """Multiply a matrix from the left by a diagonal or full matrix.

    Args:
        weights: the full matrix, or its diagonal.
        matrix: the matrix, in the same dtype.

    Example:
        >>> scaled(torch.tensor([2.0, 3.0]), torch.eye(2)).tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    return weights[:, None] * matrix if weights.dim() == 1 else weights @ matrix


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Metric:
    """The metric of errors E of a matrix, the weighted square tr(G E C E').

    Args:
        second: second moment C of the inputs, E[z z'], float64, shape (cols, cols).
        mean: mean of the inputs, float64, shape (cols,).
        outputs: weights G of the output errors.
        count: number of samples of the moments.

    Source:
        Martens, Grosse 2015, "Optimizing neural networks with Kronecker-factored approximate curvature",
        arXiv 1503.05671 (the same two moments, as an approximation of the Fisher information of a layer).

    Example:
        >>> second, outputs = 2 * torch.eye(3).double(), OutputWeights(torch.ones(2))
        >>> metric = Metric(second=second, mean=torch.zeros(3).double(), outputs=outputs, count=9)
        >>> metric.relative_error(torch.ones(2, 3), torch.zeros(2, 3))
        1.0
    """

    second: Tensor
    mean: Tensor
    outputs: OutputWeights
    count: int

    def columns(self, start: int, stop: int) -> Metric:
        """Return the metric of the columns from `start` to before `stop`; it shares memory with this one."""
        return Metric(
            second=self.second[start:stop, start:stop],
            mean=self.mean[start:stop],
            outputs=self.outputs,
            count=self.count,
        )

    def inputs(self, *, centred: bool) -> Tensor:
        """Return the second moment of the inputs, regularised to be positive definite, in float64.

        Args:
            centred: whether a bias corrects the mean error, so that only the covariance counts.
        """
        second = self.second - torch.outer(self.mean, self.mean) if centred else self.second
        return shrunk(second, self.count)

    def relative_error(
        self,
        weight: Tensor,  # shape: (rows, cols)
        other: Tensor,  # shape: (rows, cols)
        *,
        centred: bool = False,
    ) -> float:
        """Return the weighted error of an approximation, relative to the matrix.

        Args:
            weight: the matrix.
            other: its approximation.
            centred: whether a bias corrects the mean error.

        Returns:
            The root of the weighted squared error over the weighted square of `weight`; 0 if both are zero.
        """
        inputs = self.inputs(centred=centred)
        error, whole = (
            float((self.outputs.times(matrix @ inputs) * matrix).sum())
            for matrix in (weight.double() - other.double(), weight.double())
        )
        return math.sqrt(max(error, 0.0) / whole) if whole > 0.0 else math.sqrt(max(error, 0.0))


class Moments:
    """Sums over samples, in float64, for a metric.

    Args:
        rows: outputs of the matrix.
        cols: inputs of the matrix.
    """

    def __init__(self, rows: int, cols: int) -> None:
        self.second = torch.zeros(cols, cols, dtype=torch.float64)
        self.rows = rows
        self.first = torch.zeros(cols, dtype=torch.float64)
        self.gradients = torch.zeros(*(rows,) * (2 if rows <= FULL_ROWS else 1), dtype=torch.float64)
        self.count = self.gradient_count = 0

    def add_inputs(
        self,
        inputs: Tensor,  # shape: (samples, cols)
    ) -> None:
        """Add inputs of the matrix, in any floating dtype and on any device."""
        wide = inputs.detach().double()
        self.second += (wide.T @ wide).cpu()
        self.first += wide.sum(dim=0).cpu()
        self.count += len(wide)

    def add_gradients(
        self,
        gradients: Tensor,  # shape: (samples, rows)
    ) -> None:
        """Add gradients of the outputs, in any floating dtype and on any device."""
        wide = gradients.detach().double()
        self.gradients += (wide.T @ wide if self.gradients.dim() == 2 else wide.square().sum(dim=0)).cpu()
        self.gradient_count += len(wide)

    @property
    def is_sound(self) -> bool:
        """Whether there are samples, all of them finite."""
        return self.count > 0 and bool(self.second.isfinite().all()) and bool(self.first.isfinite().all())

    def metric(self) -> Metric:
        """Return the metric of the samples; without usable gradients all outputs have the same weight."""
        weights = OutputWeights(_towards_diagonal(self.gradients, self.gradient_count))
        is_usable = bool(self.gradients.isfinite().all()) and weights.scale > 0.0
        return Metric(
            second=self.second / self.count,
            mean=self.first / self.count,
            outputs=weights if is_usable else OutputWeights(torch.ones(len(self.gradients), dtype=torch.float64)),
            count=self.count,
        )


def _towards_diagonal(moment: Tensor, count: int) -> Tensor:
    """Shrink the off-diagonal part of a second moment of few samples, which chance makes too large."""
    if moment.dim() == 1:
        return moment
    share = count / (count + len(moment))
    return share * moment + (1.0 - share) * torch.diag(moment.diagonal())


def shrunk(
    second: Tensor,  # shape: (cols, cols)
    count: int,
) -> Tensor:
    """Regularise a second moment by adding a share of its mean variance to the diagonal.

    Args:
        second: a symmetric, positive semidefinite matrix, up to rounding.
        count: its number of samples.

    Returns:
        A new symmetric matrix; the identity if all variances are zero.

    Source:
        Ledoit, Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices",
        doi:10.1016/S0047-259X(03)00096-4 (shrinkage towards a multiple of the identity; the share here is fixed).

    Example:
        >>> shrunk(torch.zeros(2, 2), 5).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    side = len(second)
    scale = float(second.diagonal().mean())
    if not scale > 0.0:
        return torch.eye(side, dtype=second.dtype)
    share = SHRINKAGE + SCARCITY * min(1.0, side / max(count, 1))
    wide = (second + second.T) / 2
    wide.diagonal().add_(share * scale)
    return wide


def whitening(
    second: Tensor,  # shape: (cols, cols)
) -> tuple[Tensor, Tensor]:
    """Compute the symmetric square root of a second moment, and its inverse.

    Args:
        second: a symmetric matrix, as `shrunk` returns it.

    Returns:
        Root and inverse root, shape (cols, cols) each. Variances that rounding made tiny or negative are raised to
        `SMALLEST`.

    Example:
        >>> root, inverse = whitening(4 * torch.eye(2).double())
        >>> root.tolist(), inverse.tolist()
        ([[2.0, 0.0], [0.0, 2.0]], [[0.5, 0.0], [0.0, 0.5]])
    """
    variances, directions = torch.linalg.eigh(second)
    lengths = variances.clamp_min(float(variances[-1]) * SMALLEST).sqrt()
    return (directions * lengths) @ directions.T, (directions / lengths) @ directions.T
