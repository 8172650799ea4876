"""Length of a run, its learning rate, and its interval between evaluations."""

from __future__ import annotations

import math
from dataclasses import dataclass

DEFAULT_STEPS = 1000
WARM_UP_SHARE, WARM_UP_STEPS = 0.2, 100
"""The learning rate rises over this share of the run, but over at most this many steps."""
RATE_PER_ROOT, OTHER_RATE_PER_ROOT = 0.04, 0.02
"""Relative learning rate for a divergence of 1: for classification, where that is one nat, and for other kinds."""
RELATIVE_RATE_RANGE, USUAL_RELATIVE_RATE = (0.0005, 0.03), 0.01
"""Limits of the relative learning rate, and its value if no divergence is known."""
LAST_FACTOR = 0.01
"""Learning rate at the end, as a share of the largest one."""
EVALUATIONS, FEWEST_EVALUATIONS = 20, 5
"""Evaluations in a run; fewer if they would take long, but not below the second number."""
STEPS_PER_HELD_OUT = 4
"""Smallest number of steps between evaluations for each held-out batch, which takes about a third of a step."""
PATIENCE = 4
"""After this many evaluations without improvement, the run returns to the best weights."""
LEARNING_RATE_CUT = 0.4
"""Factor on the learning rate then."""
MOST_CUTS = 2
"""The run ends instead of a further cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """Length of a run; the limit that is reached first ends it.

    Args:
        steps: largest number of steps; None without that limit.
        seconds: largest duration; None without that limit.
    """

    steps: int | None
    seconds: float | None

    @classmethod
    def of(cls, steps: int | None, minutes: float | None) -> Length:
        """Return the length for the options of a run; 1,000 steps if neither is given."""
        steps = DEFAULT_STEPS if steps is None and minutes is None else steps
        return cls(steps=steps, seconds=None if minutes is None else 60.0 * minutes)

    def share(self, step: int, elapsed_s: float) -> float:
        """Return how much of the run is done, from 0 to 1.

        Args:
            step: steps done.
            elapsed_s: seconds spent.
        """
        parts = [step / self.steps] if self.steps else []
        parts += [elapsed_s / self.seconds] if self.seconds else []
        return min(1.0, max(parts))

    def expected_steps(self, step: int, elapsed_s: float) -> int:
        """Return how many steps the run will probably have.

        Args:
            step: steps done; at least one if there is no limit on them.
            elapsed_s: seconds spent.
        """
        by_time = math.ceil(self.seconds * step / elapsed_s) if self.seconds and elapsed_s > 0 else math.inf
        expected = min(self.steps or math.inf, by_time)
        return max(step, int(expected)) if expected < math.inf else max(step, DEFAULT_STEPS)


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


def steps_between(expected: int, held_out: int) -> int:
    """Return the number of steps between two evaluations.

    Args:
        expected: steps of the run.
        held_out: number of held-out batches.

    Example:
        >>> steps_between(1000, 4), steps_between(200, 16), steps_between(3, 1)
        (50, 40, 1)
    """
    steps = max(expected // EVALUATIONS, STEPS_PER_HELD_OUT * held_out)
    return max(1, min(steps, expected // FEWEST_EVALUATIONS))


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
