"""The fine-tuning section of a report: selection of the best weights, contradictions, and the verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mpocompress.reports.calibration import OutputKind
from mpocompress.reports.finetuning import Evaluation, FinetuningReport


def at(step: int, loss: float | None = None, **more: float | None) -> Evaluation:
    return Evaluation(step=step, loss=loss, **more)


REPORT = FinetuningReport(
    tool_version="1.0",
    data="a list",
    teacher="Net",
    loss="KL divergence to the outputs of the teacher",
    kind="classification",
    kind_from="as asked",
    trained="all",
    trained_parameters=100,
    steps=20,
    requested_steps=20,
    batches_per_step=1,
    samples=640,
    learning_rate=None,
    precision="float32",
    seed=0,
    selection_metric="the loss on held-out batches",
    held_out_samples=32,
    best_step=10,
    evaluations=(
        at(0, 0.5, divergence=0.5, agreement=0.6),
        at(10, 0.01, divergence=0.01, agreement=0.99),
        at(20, 0.2, divergence=0.2, agreement=0.8),
    ),
    stop_reason="finished",
)
SCORED = replace(
    REPORT, evaluations=(at(0, 0.1, score=0.5), at(10, 0.9, score=0.75), at(20, 0.0, score=0.6)), kind="regression"
)


def test_weights_are_selected_by_the_score_or_by_the_loss() -> None:
    assert (REPORT.before.step, REPORT.after.step, REPORT.is_finished) == (0, 10, True)
    assert [evaluation.selection_metric for evaluation in REPORT.evaluations] == [-0.5, -0.01, -0.2]
    assert [evaluation.selection_metric for evaluation in SCORED.evaluations] == [0.5, 0.75, 0.6]
    assert (REPORT.inconsistency(), SCORED.inconsistency()) == ("", "")
    assert not replace(REPORT, stop_reason="interrupted").is_finished


def test_the_repr_is_one_short_line() -> None:
    assert repr(REPORT) == "<FinetuningReport: a list, 20 steps, loss 0.5 before, 0.01 after>"
    assert repr(SCORED) == "<FinetuningReport: a list, 20 steps, score 0.5 before, 0.75 after>"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"evaluations": ()}, "evaluations are not in order from step 0 on"),
        ({"evaluations": REPORT.evaluations[1:]}, "evaluations are not in order from step 0 on"),
        ({"evaluations": REPORT.evaluations[::-1]}, "evaluations are not in order"),
        ({"evaluations": (at(0, 1.0), at(10, 0.5), at(10, 0.5))}, "evaluations are not in order"),
        ({"best_step": 5}, "the best step, 5, was not evaluated"),
        ({"best_step": 20}, "step 20 was selected, but another one is better"),
        ({"steps": 19}, "step 20 was evaluated, but only 19 were done"),
    ],
)
def test_figures_that_contradict_each_other_are_found(change: dict[str, Any], problem: str) -> None:
    assert problem in replace(REPORT, **change).inconsistency()


@pytest.mark.parametrize(
    ("report", "sentences"),
    [
        (
            REPORT,
            (
                (
                    "Fine-tuning: loss 0.5 before, 0.01 after. Compared with the original on held-out batches, the "
                    "outputs hardly changed, with the same answer for 99.0%."
                ),
                "Evaluate the model on your own task before you use it.",
            ),
        ),
        (
            replace(REPORT, held_out_samples=0, best_step=20, evaluations=(REPORT.before, REPORT.evaluations[2])),
            (
                (
                    "Fine-tuning: loss 0.5 before, 0.2 after. Compared with the original on the training batches "
                    "themselves, the outputs changed clearly, with the same answer for 80.0%."
                ),
                "More steps or more data may reduce the difference; so does keeping more parameters.",
            ),
        ),
        (SCORED, ("Fine-tuning: score 0.5 before, 0.75 after. Evaluate the model on your own task.",)),
        (
            replace(REPORT, best_step=0),
            (
                "Fine-tuning did not improve the model: its weights are unchanged.",
                "Try more steps, other data or a lower learning rate.",
            ),
        ),
        (
            replace(REPORT, best_step=0, stop_reason="interrupted"),
            ("Fine-tuning did not improve the model: its weights are unchanged.", "Resume it."),
        ),
        (
            replace(REPORT, best_step=0, stop_reason="the loss was NaN at step 3"),
            (
                "Training failed: the loss was NaN at step 3. A lower learning rate may help.",
                "Fine-tuning did not improve the model: its weights are unchanged.",
            ),
        ),
    ],
    ids=["classifier", "no held-out batches", "score", "not better", "interrupted", "failed"],
)
def test_the_verdict_says_what_the_figures_mean(report: FinetuningReport, sentences: tuple[str, ...]) -> None:
    assert report.verdict() == sentences


@pytest.mark.parametrize(
    ("kind", "unrelated", "evaluation", "change"),
    [
        ("classification", None, at(1, 0.1, divergence=0.1), 0.1),
        ("classification", None, at(1, 0.1, divergence=0.1, agreement=0.75), 0.25),
        ("classification", None, at(1, 0.1, divergence=0.1, agreement=0.95), 0.1),
        ("regression", 2.0, at(1, 0.1, divergence=0.1), 0.05),
        ("embedding", None, at(1, 0.1, divergence=0.1), None),
        ("embedding", 0.5, at(1, 0.1), None),
    ],
)
def test_the_change_of_outputs_depends_on_their_kind(
    kind: OutputKind, unrelated: float | None, evaluation: Evaluation, change: float | None
) -> None:
    measured = replace(REPORT, kind=kind, unrelated_divergence=unrelated).output_change(evaluation)

    assert measured == (None if change is None else pytest.approx(change))


@pytest.mark.parametrize(("change", "meaning"), [(0.02, "hardly changed"), (0.1, "a little"), (9.0, "too much")])
def test_a_change_means_the_same_as_in_a_calibration(change: float, meaning: str) -> None:
    report = replace(
        REPORT, kind="regression", unrelated_divergence=1.0, evaluations=(at(0, 99.0), at(10, 1.0, divergence=change))
    )

    assert meaning in report.verdict()[0]


def test_a_loss_that_was_not_measured_is_unknown() -> None:
    sentence = replace(REPORT, evaluations=(at(0), at(10, 0.123456))).verdict()[0]

    assert sentence.startswith("Fine-tuning: loss unknown before, 0.123 after.")


def test_a_score_is_shown_in_place_of_a_loss() -> None:
    sentence = replace(REPORT, evaluations=(at(0, 0.5, score=1.0), at(10, 0.4, score=12.34567))).verdict()[0]

    assert sentence.startswith("Fine-tuning: score 1 before, 12.35 after.")
