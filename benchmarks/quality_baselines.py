"""Baselines of `benchmarks/quality.py`: other methods that keep a fraction of the parameters, without training.

All get the same weights, the same fraction and the same second moments, and return dense weights. Their size is counted
as stored: two factors of a low rank; for a pruned matrix the remaining values and their positions in the cheaper of two
encodings, a column index of 16 bits per value or one bit per entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.second_moments import Group

FLOAT_BYTES = 4
COLUMN_INDEX, BIT = 16 / 32, 1 / 32
"""Cost of the positions of a pruned matrix's values, in parameters: per value, or per entry."""
DAMPING = 1e-5
"""Added to the diagonal of a second moment, as a fraction of the mean of the diagonal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The result of a method.

    Args:
        weights: The dense weights that it multiplies with.
        parameters: Stored parameters, including positions of values.
    """

    weights: Mapping[str, Tensor]
    parameters: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the stored parameters in float32."""
        return self.parameters * FLOAT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """The weights to compress, in double precision, and the moments of their inputs.

    Args:
        weights: Name -> weight.
        moments: Group of names -> second moment of their stacked inputs.
    """

    weights: Mapping[str, Tensor]
    moments: Mapping[Group, Tensor]

    @property
    def parameters(self) -> int:
        """Entries of all weights."""
        return sum(weight.numel() for weight in self.weights.values())

    def joined(self) -> Iterator[tuple[Group, Tensor, Tensor]]:
        """Each group, its weights side by side, and its moment."""
        for group, moment in self.moments.items():
            yield group, torch.cat([self.weights[name] for name in group], 1), moment

    def single(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Each weight, and the moment of its own inputs."""
        for group, moment in self.moments.items():
            start = 0
            for name in group:
                end = start + self.weights[name].shape[1]
                yield name, self.weights[name], moment[start:end, start:end]
                start = end

    def split(self, group: Group, joined: Tensor) -> dict[str, Tensor]:
        """The separate weights of a group that is side by side."""
        parts = torch.split(joined, [self.weights[name].shape[1] for name in group], 1)
        return dict(zip(group, parts, strict=True))


def magnitude(layers: Layers, keep: float, *, positions_free: bool = False) -> Baseline:
    """Keep the largest values of all weights together."""
    count = int(_value_share(keep, positions_free) * layers.parameters)
    sizes = torch.cat([weight.abs().flatten() for weight in layers.weights.values()])
    least = sizes.kthvalue(len(sizes) - count).values
    weights = {name: torch.where(weight.abs() > least, weight, 0.0) for name, weight in layers.weights.items()}
    return _pruned(weights, positions_free)


def wanda(layers: Layers, keep: float, *, positions_free: bool = False) -> Baseline:
    """Keep in every row the values with the largest product with the norm of their input, then fit them to the outputs.

    Source:
        Selection: Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models",
        arXiv:2306.11695. Fit: least squares of each row in the metric of the inputs. The two weights of an LSTM layer
        are pruned and fitted together, which is better than separately.
    """
    weights: dict[str, Tensor] = {}
    for group, weight, moment in layers.joined():
        count = max(1, int(_value_share(keep, positions_free) * weight.shape[1]))
        columns = (weight.abs() * moment.diagonal().sqrt()).topk(count, dim=1).indices.sort(dim=1).values
        weights |= layers.split(group, _refitted(weight, columns, _damped(moment)))
    return _pruned(weights, positions_free)


def projection(layers: Layers, keep: float) -> Baseline:
    """Project the inputs of every weight on their principal components; every weight keeps the same share of variance.

    The method of MATLAB's `compressNetworkUsingProjection`: W Q and Q are stored, for inputs and for hidden states.
    """
    spectra = []
    for name, weight, moment in layers.single():
        values, vectors = torch.linalg.eigh(moment)
        share = values.clamp_min(0).flip(0).cumsum(0) / values.clamp_min(0).sum()
        spectra.append((name, weight, vectors.flip(1), share))

    def ranks(variance: float) -> list[int]:
        return [min(int((share < variance).sum()) + 1, len(share)) for *_, share in spectra]

    def cost(variance: float) -> int:
        return sum(
            min(rank * sum(weight.shape), weight.numel())
            for rank, (_, weight, *_) in zip(ranks(variance), spectra, strict=True)
        )

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= keep * layers.parameters else (low, middle)
    weights = {
        name: weight if rank * sum(weight.shape) >= weight.numel() else weight @ vectors[:, :rank] @ vectors[:, :rank].T
        for rank, (name, weight, vectors, _) in zip(ranks(low), spectra, strict=True)
    }
    return Baseline(weights=weights, parameters=cost(low))


def plain_svd(layers: Layers, keep: float) -> Baseline:
    """Truncate the singular values of every weight to the same fraction of its parameters."""
    return _low_ranks(layers, keep, lambda weight, _: _nearest(weight, _rank(weight, keep)))


def whitened_svd(layers: Layers, keep: float) -> Baseline:
    """Truncate the singular values of the product of each weight with a root of the moment of its inputs."""

    def nearest(weight: Tensor, moment: Tensor) -> Tensor:
        root = torch.linalg.cholesky(_damped(moment))
        low = _nearest(weight @ root, _rank(weight, keep))
        solved: Tensor = torch.linalg.solve_triangular(root, low, upper=False, left=False)
        return solved

    return _low_ranks(layers, keep, nearest)


def rounded(layers: Layers) -> Mapping[str, Tensor]:
    """Every weight rounded to 8 bits with one scale per row (not counted), for computation in float32."""
    scales = {
        name: weight.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127 for name, weight in layers.weights.items()
    }
    return {name: (weight / scales[name]).round() * scales[name] for name, weight in layers.weights.items()}


BASELINES: Mapping[str, Callable[[Layers, float], Baseline]] = {
    "plain SVD": plain_svd,
    "whitened SVD": whitened_svd,
    "activation PCA": projection,
    "magnitude pruning": magnitude,
    "pruning, positions free": partial(magnitude, positions_free=True),
    "Wanda + least squares": wanda,
    "Wanda, positions free": partial(wanda, positions_free=True),
}


def _rank(weight: Tensor, keep: float) -> int:
    return max(1, math.floor(keep * weight.numel() / sum(weight.shape)))


def _low_ranks(layers: Layers, keep: float, nearest: Callable[[Tensor, Tensor], Tensor]) -> Baseline:
    return Baseline(
        weights={name: nearest(weight, moment) for name, weight, moment in layers.single()},
        parameters=sum(_rank(weight, keep) * sum(weight.shape) for weight in layers.weights.values()),
    )


def _nearest(weight: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    nearest: Tensor = (left[:, :rank] * values[:rank]) @ right[:rank]
    return nearest


def _damped(moment: Tensor) -> Tensor:
    return moment + DAMPING * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)


def _refitted(
    weight: Tensor,  # shape: (rows, columns)
    columns: Tensor,  # shape: (rows, kept)
    moment: Tensor,  # shape: (columns, columns)
) -> Tensor:  # shape: (rows, columns)
    """Zero outside the kept columns of each row; inside, the least-squares fit to the products of `weight`."""
    products = weight @ moment
    fitted = torch.zeros_like(weight)
    for rows in torch.split(torch.arange(len(weight)), 64):
        positions = columns[rows]
        within = moment[positions[:, :, None], positions[:, None, :]]
        solved = torch.linalg.solve(within, products[rows].gather(1, positions))
        fitted[rows] = fitted[rows].scatter(1, positions, solved)
    return fitted


def _value_share(keep: float, positions_free: bool) -> float:
    """The fraction of values that fits, together with their positions, into a fraction of the parameters."""
    return keep if positions_free else max(keep / (1 + COLUMN_INDEX), keep - BIT)


def _pruned(weights: Mapping[str, Tensor], positions_free: bool) -> Baseline:
    values = sum(int(weight.count_nonzero()) for weight in weights.values())
    entries = sum(weight.numel() for weight in weights.values())
    positions = 0.0 if positions_free else min(COLUMN_INDEX * values, BIT * entries)
    return Baseline(weights=weights, parameters=math.ceil(values + positions))
