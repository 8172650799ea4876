"""What fine-tuning did, as numbers: which measurement is the best, what contradicts itself, and the words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mpocompress.reports.finetuning import Evaluation, TuningReport


def at(step: int, loss: float | None = None, **more: float | None) -> Evaluation:
    return Evaluation(step=step, loss=loss, **more)


REPORT = TuningReport(
    tool_version="1.0",
    data="a list",
    teacher="Net",
    loss="KL divergence to the outputs of the teacher",
    kind="classification",
    said="as asked",
    trained="all",
    trained_parameters=100,
    steps=20,
    asked_steps=20,
    batches_per_step=1,
    samples=640,
    learning_rate=None,
    precision="float32",
    seed=0,
    measured_on="the loss on held-out batches",
    held_out=32,
    best_step=10,
    evaluations=(
        at(0, 0.5, divergence=0.5, agreement=0.6),
        at(10, 0.01, divergence=0.01, agreement=0.99),
        at(20, 0.2, divergence=0.2, agreement=0.8),
    ),
    stopped="finished",
)
SCORED = replace(
    REPORT, evaluations=(at(0, 0.1, score=0.5), at(10, 0.9, score=0.75), at(20, 0.0, score=0.6)), kind="regression"
)


def test_the_best_is_told_by_the_score_or_by_the_loss() -> None:
    assert (REPORT.before.step, REPORT.after.step, REPORT.is_finished) == (0, 10, True)
    assert [one.merit for one in REPORT.evaluations] == [-0.5, -0.01, -0.2]
    assert [one.merit for one in SCORED.evaluations] == [0.5, 0.75, 0.6]
    assert (REPORT.flaw(), SCORED.flaw()) == ("", "")
    assert not replace(REPORT, stopped="interrupted").is_finished


@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        ({"evaluations": ()}, "evaluations are not in order from step 0 on"),
        ({"evaluations": REPORT.evaluations[1:]}, "evaluations are not in order from step 0 on"),
        ({"evaluations": REPORT.evaluations[::-1]}, "evaluations are not in order"),
        ({"evaluations": (at(0, 1.0), at(10, 0.5), at(10, 0.5))}, "evaluations are not in order"),
        ({"best_step": 5}, "the best step, 5, was not evaluated"),
        ({"best_step": 20}, "step 20 was kept, and another is better"),
        ({"steps": 19}, "counts that do not belong together"),
        ({"samples": -1}, "counts that do not belong together"),
        ({"trained_parameters": -1}, "counts that do not belong together"),
        ({"held_out": -1}, "counts that do not belong together"),
    ],
)
def test_figures_that_contradict_each_other_are_found(change: dict[str, Any], flaw: str) -> None:
    assert flaw in replace(REPORT, **change).flaw()


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (
            REPORT,
            (
                (
                    "Fine-tuning: loss 0.5 before, 0.01 after. On held-out batches the outputs hardly changed "
                    "against the original, with the same answer for 99.0%."
                ),
                "Check it on your own task all the same.",
            ),
        ),
        (
            replace(REPORT, held_out=0, best_step=20, evaluations=(REPORT.before, REPORT.evaluations[2])),
            (
                (
                    "Fine-tuning: loss 0.5 before, 0.2 after. On the training batches themselves the outputs "
                    "changed clearly against the original, with the same answer for 80.0%."
                ),
                "More steps or more data may bring it nearer; so does keeping more.",
            ),
        ),
        (SCORED, ("Fine-tuning: score 0.5 before, 0.75 after. Check it on your own task.",)),
        (
            replace(REPORT, best_step=0),
            (
                "Fine-tuning made nothing better: the weights are those from before.",
                "Give more steps or other data, or a smaller step size.",
            ),
        ),
    ],
)
def test_the_figures_are_told_in_words(report: TuningReport, words: tuple[str, ...]) -> None:
    assert report.verdict() == words


@pytest.mark.parametrize(
    ("kind", "unrelated", "one", "extent"),
    [
        ("classification", None, at(1, 0.1, divergence=0.1), 0.1),
        ("classification", None, at(1, 0.1, divergence=0.1, agreement=0.75), 0.25),
        ("classification", None, at(1, 0.1, divergence=0.1, agreement=0.95), 0.1),
        ("regression", 2.0, at(1, 0.1, divergence=0.1), 0.05),
        ("embedding", None, at(1, 0.1, divergence=0.1), None),
        ("embedding", 0.5, at(1, 0.1), None),
    ],
)
def test_how_far_outputs_are_depends_on_their_kind(
    kind: str, unrelated: float | None, one: Evaluation, extent: float | None
) -> None:
    found = replace(REPORT, kind=kind, unrelated=unrelated).extent(one)

    assert found == (None if extent is None else pytest.approx(extent))


@pytest.mark.parametrize(("extent", "meaning"), [(0.02, "hardly changed"), (0.1, "a little"), (9.0, "beyond use")])
def test_what_an_extent_means_is_what_it_means_of_calibration(extent: float, meaning: str) -> None:
    report = replace(
        REPORT, kind="regression", unrelated=1.0, evaluations=(at(0, 99.0), at(10, 1.0, divergence=extent))
    )

    assert meaning in report.verdict()[0]


def test_what_was_not_measured_is_said_not_to_be() -> None:
    said = replace(REPORT, evaluations=(at(0), at(10, 0.123456))).verdict()[0]

    assert said.startswith("Fine-tuning: loss unknown before, 0.123 after.")


def test_a_score_is_told_before_a_loss() -> None:
    said = replace(REPORT, evaluations=(at(0, 0.5, score=1.0), at(10, 0.4, score=12.34567))).verdict()[0]

    assert said.startswith("Fine-tuning: score 1 before, 12.35 after.")
