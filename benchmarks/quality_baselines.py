"""What `benchmarks/quality.py` compares with: other ways to keep a fraction of the parameters, none of them trained.

Each gets the same weights, the same fraction and the same second moments, and returns weights of the old shape. What
they cost is counted as it would be stored: two factors of a low rank; of a pruned matrix the values that are left, and
their places in the cheaper of two ways, a column number of 16 bits for each value or one bit for each entry.
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
COLUMN_NUMBER, BIT = 16 / 32, 1 / 32
"""What it costs to store where a pruned matrix has its values, in parameters: for each value, or for each entry."""
DAMPING = 1e-5
"""Added to the diagonal of a second moment, as a share of the mean of the diagonal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A model made smaller in another way.

    Args:
        weights: the dense weights that it multiplies with.
        parameters: what is stored for them, places of values included, in parameters.
    """

    weights: Mapping[str, Tensor]
    parameters: int

    @property
    def size_bytes(self) -> int:
        """What is stored for them, float32."""
        return self.parameters * FLOAT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Weights to be made smaller, in double precision, and what they are multiplied with.

    Args:
        weights: of each name.
        moments: of each group of names, the second moment of the inputs of all of them one after the other.
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
        """Each weight by itself, and the moment of its own inputs."""
        for group, moment in self.moments.items():
            start = 0
            for name in group:
                end = start + self.weights[name].shape[1]
                yield name, self.weights[name], moment[start:end, start:end]
                start = end

    def split(self, group: Group, joined: Tensor) -> dict[str, Tensor]:
        """The weights of a group that stand side by side, each by itself again."""
        parts = torch.split(joined, [self.weights[name].shape[1] for name in group], 1)
        return dict(zip(group, parts, strict=True))


def magnitude(layers: Layers, keep: float, *, places_free: bool = False) -> Baseline:
    """Keep the largest values of all weights together."""
    kept = int(_kept_share(keep, places_free) * layers.parameters)
    sizes = torch.cat([weight.abs().flatten() for weight in layers.weights.values()])
    least = sizes.kthvalue(len(sizes) - kept).values
    weights = {name: torch.where(weight.abs() > least, weight, 0.0) for name, weight in layers.weights.items()}
    return _pruned(weights, places_free)


def wanda(layers: Layers, keep: float, *, places_free: bool = False) -> Baseline:
    """Keep in every row the values that are largest times the norm of their input, then fit them to the old products.

    Source:
        Choice: Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models", arXiv:2306.11695.
        Fit: least squares of each row by itself, in the metric of the inputs. The two weights of an LSTM level are
        pruned and fitted as one, which is better than each by itself.
    """
    weights: dict[str, Tensor] = {}
    for group, weight, moment in layers.joined():
        kept = max(1, int(_kept_share(keep, places_free) * weight.shape[1]))
        columns = (weight.abs() * moment.diagonal().sqrt()).topk(kept, dim=1).indices.sort(dim=1).values
        weights |= layers.split(group, _refitted(weight, columns, _damped(moment)))
    return _pruned(weights, places_free)


def projection(layers: Layers, keep: float) -> Baseline:
    """Project the inputs of every weight on their principal components; the same share of variance is left everywhere.

    The form of MATLAB's `compressNetworkUsingProjection`: W Q and Q are stored, for inputs and for hidden states.
    """
    found = []
    for name, weight, moment in layers.single():
        values, vectors = torch.linalg.eigh(moment)
        share = values.clamp_min(0).flip(0).cumsum(0) / values.clamp_min(0).sum()
        found.append((name, weight, vectors.flip(1), share))

    def ranks(variance: float) -> list[int]:
        return [min(int((share < variance).sum()) + 1, len(share)) for *_, share in found]

    def cost(variance: float) -> int:
        return sum(
            min(rank * sum(weight.shape), weight.numel())
            for rank, (_, weight, *_) in zip(ranks(variance), found, strict=True)
        )

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= keep * layers.parameters else (low, middle)
    weights = {
        name: weight if rank * sum(weight.shape) >= weight.numel() else weight @ vectors[:, :rank] @ vectors[:, :rank].T
        for rank, (name, weight, vectors, _) in zip(ranks(low), found, strict=True)
    }
    return Baseline(weights=weights, parameters=cost(low))


def plain_svd(layers: Layers, keep: float) -> Baseline:
    """Truncate the singular values of every weight to the same fraction of its parameters."""
    return _low_ranks(layers, keep, lambda weight, _: _nearest(weight, _rank(weight, keep)))


def whitened_svd(layers: Layers, keep: float) -> Baseline:
    """The same for the nearest products with the inputs, in place of the nearest weight."""

    def nearest(weight: Tensor, moment: Tensor) -> Tensor:
        root = torch.linalg.cholesky(_damped(moment))
        low = _nearest(weight @ root, _rank(weight, keep))
        solved: Tensor = torch.linalg.solve_triangular(root, low, upper=False, left=False)
        return solved

    return _low_ranks(layers, keep, nearest)


def rounded(layers: Layers) -> Mapping[str, Tensor]:
    """Every weight in 8 bits, with one scale a row (not counted), and multiplied with in float32."""
    scales = {
        name: weight.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127 for name, weight in layers.weights.items()
    }
    return {name: (weight / scales[name]).round() * scales[name] for name, weight in layers.weights.items()}


BASELINES: Mapping[str, Callable[[Layers, float], Baseline]] = {
    "plain SVD": plain_svd,
    "whitened SVD": whitened_svd,
    "activation PCA": projection,
    "magnitude pruning": magnitude,
    "pruning, places free": partial(magnitude, places_free=True),
    "Wanda + least squares": wanda,
    "Wanda, places free": partial(wanda, places_free=True),
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
    """Zero but in the kept columns of each row, where the products come nearest to those of `weight`."""
    wanted = weight @ moment
    fitted = torch.zeros_like(weight)
    for rows in torch.split(torch.arange(len(weight)), 64):
        places = columns[rows]
        within = moment[places[:, :, None], places[:, None, :]]
        solved = torch.linalg.solve(within, wanted[rows].gather(1, places))
        fitted[rows] = fitted[rows].scatter(1, places, solved)
    return fitted


def _kept_share(keep: float, places_free: bool) -> float:
    """The share of the values that is left when they and their places are stored in a share of the parameters."""
    return keep if places_free else max(keep / (1 + COLUMN_NUMBER), keep - BIT)


def _pruned(weights: Mapping[str, Tensor], places_free: bool) -> Baseline:
    values = sum(int(weight.count_nonzero()) for weight in weights.values())
    entries = sum(weight.numel() for weight in weights.values())
    places = 0.0 if places_free else min(COLUMN_NUMBER * values, BIT * entries)
    return Baseline(weights=weights, parameters=math.ceil(values + places))
