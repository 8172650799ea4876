"""The truncation rule: singular values in, bond and discarded weight out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def tail_weights(
    singular_values: NDArray[np.float64],  # shape: (n,), falling
    residual: float = 0.0,
) -> NDArray[np.float64]:
    """Compute the weight discarded by each possible bond.

    Args:
        singular_values: the largest singular values of an unfolding.
        residual: sum of the squares of the other singular values.

    Returns:
        Shape (n + 1,): entry `b` is the sum of the squared singular values that bond `b` discards, summed from the
        smallest, so that small values are not lost in rounding.

    Example:
        >>> tail_weights(np.array([2.0, 1.0])).tolist()
        [5.0, 1.0, 0.0]
    """
    squares = np.empty(len(singular_values) + 1)
    np.square(singular_values, out=squares[:-1], dtype=np.float64)
    squares[-1] = max(residual, 0.0)
    return np.cumsum(squares[::-1])[::-1]


def smallest_bond(
    tails: NDArray[np.float64],  # shape: (n + 1,), from `tail_weights`
    *,
    max_bond: int | None = None,
    discarded_budget: float | None = None,
) -> int:
    """Choose the bond of one cut: the smallest within the budget, at most the cap, at least 1.

    Args:
        tails: the weight discarded by each bond.
        max_bond: cap of the bond, or None.
        discarded_budget: largest discarded weight; None for the smallest that the cap allows.

    Source:
        Oseledets 2011, "Tensor-Train Decomposition", SIAM J. Sci. Comput. 33(5), doi:10.1137/090752286.

    Example:
        >>> smallest_bond(tail_weights(np.array([2.0, 1.0, 0.5])), discarded_budget=0.25)
        2
    """
    largest = len(tails) - 1
    bond = largest if discarded_budget is None else int(np.argmax(tails <= discarded_budget))
    if discarded_budget is not None and tails[bond] > discarded_budget:
        bond = largest
    return max(1, min(bond, largest if max_bond is None else max_bond))
