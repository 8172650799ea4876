"""Learning rate of a run: its size for every tensor, the warm-up and the schedule."""

from __future__ import annotations

import math

WARM_UP_SHARE, WARM_UP_STEPS = 0.2, 100
"""The learning rate rises over this share of the run, but over at most this many steps."""
RATE_PER_ROOT, OTHER_RATE_PER_ROOT = 0.04, 0.02
"""Relative learning rate for a divergence of 1: for classification, where that is one nat, and for other kinds."""
RELATIVE_RATE_RANGE, USUAL_RELATIVE_RATE = (0.0005, 0.03), 0.01
"""Limits of the relative learning rate, and its value if no divergence is known."""
LAST_FACTOR = 0.01
"""Learning rate at the end, as a share of the largest one."""


def relative_learning_rate(divergence: float | None, kind: str = "classification") -> float:
    """Return the largest learning rate of a tensor, relative to the root mean square of its entries.

    Near another model, the divergence grows with the square of the distance of the weights. The distance is therefore
    in proportion to the root of the divergence: a good start gets a small rate, a bad one a large rate.

    Args:
        divergence: mean divergence from the teacher at the start; None without a teacher.
        kind: kind of the outputs.

    Example:
        >>> [relative_learning_rate(divergence) for divergence in (0.25, 1e-6, 9.0, None)]
        [0.02, 0.0005, 0.03, 0.01]
    """
    if divergence is None:
        return USUAL_RELATIVE_RATE
    least, most = RELATIVE_RATE_RANGE
    per_root = RATE_PER_ROOT if kind == "classification" else OTHER_RATE_PER_ROOT
    return min(most, max(least, per_root * math.sqrt(divergence)))


def schedule_factor(share: float, step: int, warm_up: int) -> float:
    """Return the learning rate as a share of the largest one: a linear warm-up, times half a cosine wave.

    Args:
        share: how much of the run is done, from 0 to 1.
        step: steps done.
        warm_up: steps of the warm-up.

    Source:
        Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", arXiv 1608.03983 (cosine).

    Example:
        >>> schedule_factor(0.0, 0, 4), schedule_factor(1.0, 100, 4)
        (0.25, 0.01)
    """
    wave = LAST_FACTOR + (1 - LAST_FACTOR) * (1 + math.cos(math.pi * share)) / 2
    return min(1.0, (step + 1) / warm_up) * wave


def warm_up_steps(expected: int) -> int:
    """Return the number of steps of the warm-up.

    Args:
        expected: steps of the run.
    """
    return max(1, min(WARM_UP_STEPS, round(WARM_UP_SHARE * expected)))
