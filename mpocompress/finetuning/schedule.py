"""How long is trained, and with which step size."""

from __future__ import annotations

import math
from dataclasses import dataclass

DEFAULT_STEPS = 1000
WARM_UP_SHARE, WARM_UP_STEPS = 0.2, 100
"""The step size rises over this share of the run, but over no more steps than that."""
STEP_PER_ROOT, OTHER_STEP_PER_ROOT = 0.04, 0.02
"""The relative step size for a divergence of 1: of classifiers, where that is one nat, and of other models."""
STEP_RANGE, USUAL_STEP = (0.0005, 0.03), 0.01
"""Its bounds, and that where no divergence is known."""
LAST_SHARE = 0.01
"""What is left of the step size at the end."""
EVALUATIONS, FEWEST_EVALUATIONS = 20, 5
"""So often the model is measured in a run; less often where that would take long, but not below the second number."""
STEPS_PER_HELD_OUT = 4
"""Measuring one batch takes a third of a step or so: with this many steps for each, a twelfth of the time."""
PATIENCE = 4
"""When so many evaluations in a row found nothing better, the run goes back to the best weights and on from there."""
STEP_CUT = 0.4
"""What becomes of the step size then."""
MOST_CUTS = 2
"""After so many cuts the next time ends the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How long is trained.

    Args:
        steps: at most so many steps; None for no bound.
        seconds: at most so long; None for no bound.
    """

    steps: int | None
    seconds: float | None

    def share(self, step: int, elapsed_s: float) -> float:
        """How much of a run is done, from 0 to 1.

        Args:
            step: steps done.
            elapsed_s: seconds spent.
        """
        parts = [step / self.steps] if self.steps else []
        parts += [elapsed_s / self.seconds] if self.seconds else []
        return min(1.0, max(parts))

    def expected_steps(self, step: int, elapsed_s: float) -> int:
        """How many steps the run will have, as far as can be told.

        Args:
            step: steps done; at least one where there is no bound on them.
            elapsed_s: seconds spent.
        """
        by_time = math.ceil(self.seconds * step / elapsed_s) if self.seconds and elapsed_s > 0 else math.inf
        found = min(self.steps or math.inf, by_time)
        return max(step, int(found)) if found < math.inf else max(step, DEFAULT_STEPS)


def step_size_share(share: float, step: int, warm_up: int) -> float:
    """The step size of a step as a share of the largest one: a straight rise, then a half wave of the cosine.

    Args:
        share: how much of the run is done.
        step: steps done.
        warm_up: steps over which it rises.

    Source:
        Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", arXiv 1608.03983 (cosine).

    Example:
        >>> step_size_share(0.0, 0, 4), step_size_share(1.0, 100, 4)
        (0.25, 0.01)
    """
    wave = LAST_SHARE + (1 - LAST_SHARE) * (1 + math.cos(math.pi * share)) / 2
    return min(1.0, (step + 1) / warm_up) * wave


def warm_up_steps(expected: int) -> int:
    """Over how many steps the step size rises.

    Args:
        expected: steps of the run.
    """
    return max(1, min(WARM_UP_STEPS, round(WARM_UP_SHARE * expected)))


def steps_between(expected: int, held_out: int) -> int:
    """How many steps lie between two measurements.

    Args:
        expected: steps of the run.
        held_out: batches that are measured on.

    Example:
        >>> steps_between(1000, 4), steps_between(200, 16), steps_between(3, 1)
        (50, 40, 1)
    """
    wanted = max(expected // EVALUATIONS, STEPS_PER_HELD_OUT * held_out)
    return max(1, min(wanted, expected // FEWEST_EVALUATIONS))


def relative_step(divergence: float | None, kind: str = "classification") -> float:
    """The largest step size of a tensor, as a share of the root mean square of its entries.

    The divergence of a model that is near to another grows with the square of the distance of their weights. So the way
    to go is in proportion to its root: a good start is moved by small steps, which would not leave it, a bad one by
    large ones.

    Args:
        divergence: of the outputs from those of the teacher, at the start; None without a teacher.
        kind: what the models put out, which says what a divergence is.

    Example:
        >>> relative_step(0.25), relative_step(1e-6), relative_step(9.0), relative_step(None)
        (0.02, 0.0005, 0.03, 0.01)
    """
    if divergence is None:
        return USUAL_STEP
    least, most = STEP_RANGE
    each = STEP_PER_ROOT if kind == "classification" else OTHER_STEP_PER_ROOT
    return min(most, max(least, each * math.sqrt(divergence)))
