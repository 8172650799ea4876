"""Length of a run, and how often the model is evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass

DEFAULT_STEPS = 1000
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
