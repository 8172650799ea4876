"""The state of a run: what a step and an evaluation change, and when a run is stalled."""

from __future__ import annotations

import pytest

from mpocompress.finetuning.data import Position
from mpocompress.finetuning.run_state import RunState
from mpocompress.reports.finetuning import Evaluation


def evaluated(*figures: tuple[float, float | None], cuts: int = 0, last_cut: int = 0) -> RunState:
    """Return the state after evaluations with these losses and scores."""
    evaluations = tuple(Evaluation(step=step, loss=loss, score=score) for step, (loss, score) in enumerate(figures))
    return RunState(expected_steps=100, evaluations=evaluations, cuts=cuts, last_cut=last_cut)


def test_steps_and_evaluations_are_counted() -> None:
    state = RunState(expected_steps=100).after_evaluation(Evaluation(step=0, loss=3.0))
    for number, loss in enumerate((2.0, 1.0), start=1):
        state = state.after_step(samples=4, position=Position(number=0, taken=number), loss=loss)
    after = state.after_evaluation(Evaluation(step=2, loss=0.5))

    assert (state.step, state.samples, state.position.taken) == (2, 8, 2)
    assert [each.training_loss for each in after.evaluations] == [None, 1.5]
    assert (after.loss_sum, after.loss_count, after.best_step) == (0.0, 0, 2)


def test_only_a_better_evaluation_is_better() -> None:
    state = evaluated((2.0, None), (1.0, None))

    assert RunState(expected_steps=1).is_better(Evaluation(step=0, loss=9.0))
    assert [state.is_better(Evaluation(step=2, loss=loss)) for loss in (0.5, 1.0, 1.5)] == [True, False, False]
    scored = evaluated((2.0, 0.3))
    assert [scored.is_better(Evaluation(step=1, loss=9.0, score=score)) for score in (0.4, 0.3)] == [True, False]


@pytest.mark.parametrize(
    ("losses", "last_cut", "is_stalled"),
    [
        ([5.0, 6.0, 6.0, 6.0], 0, False),  # three since the start
        ([5.0, 6.0, 6.0, 6.0, 6.0], 0, True),
        ([5.0, 6.0, 6.0, 6.0, 4.0], 0, False),
        ([5.0, 4.0, 6.0, 6.0, 6.0, 6.0], 0, True),
        ([5.0, 5.0, 5.0, 5.0, 5.0], 0, True),  # as good is not better
        ([5.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0], 4, False),  # three since the cut
        ([5.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0], 4, True),
    ],
)
def test_a_run_is_stalled_after_four_evaluations_without_improvement(
    losses: list[float], last_cut: int, is_stalled: bool
) -> None:
    assert evaluated(*((loss, None) for loss in losses), last_cut=last_cut).is_stalled == is_stalled


def test_a_better_score_or_a_smaller_loss_is_an_improvement() -> None:
    worse = [(6.0, 0.1)] * 3

    assert evaluated((5.0, 0.2), *worse, (6.0, 0.2)).is_stalled
    assert not evaluated((5.0, 0.2), *worse, (6.0, 0.3)).is_stalled
    assert not evaluated((5.0, 0.2), *worse, (4.0, 0.1)).is_stalled


def test_a_cut_is_counted_from_the_last_evaluation() -> None:
    state = evaluated(*[(1.0, None)] * 5).after_cut()

    assert (state.cuts, state.last_cut, state.is_stalled) == (1, 4, False)
