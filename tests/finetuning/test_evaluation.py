"""Evaluation between steps: the loss, the divergence and the agreement by hand, and scores that are refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mpocompress.calibration.divergence import Measure
from mpocompress.errors import FinetuneError
from mpocompress.finetuning import evaluation
from mpocompress.finetuning.evaluation import Evaluator, weighted_mean
from mpocompress.finetuning.objective import Objective
from mpocompress.finetuning.options import Score
from mpocompress.finetuning.recurrent_state import StatefulRNN
from mpocompress.reports.calibration import OutputKind
from mpocompress.user.batches import Batch
from tests.calibration.trial_models import Calls, numbers
from tests.finetuning.runs import Texts, batches, pair, texts


def evaluator(
    model: nn.Module,
    teacher: nn.Module | None,
    held_out: Sequence[Batch],
    *,
    kind: OutputKind = "classification",
    share: float = 1.0,
    score: Score | None = None,
    stateful: Sequence[StatefulRNN] = (),
) -> Evaluator:
    return Evaluator(
        model,
        teacher=teacher,
        objective=Objective(measure=Measure(kind=kind), share=share, loss=None),
        held_out=held_out,
        score=score,
        stateful=stateful,
        seed=0,
        device=torch.device("cpu"),
    )


def of_sizes(*sizes: int) -> list[Batch]:
    return [Batch(inputs=x[:size]) for x, size in zip(batches(len(sizes), max(sizes)), sizes, strict=True)]


def all_inputs(held_out: Sequence[Batch]) -> Tensor:
    return torch.cat([batch.inputs for batch in held_out])  # type: ignore[misc]


@torch.no_grad()
def test_figures_are_those_of_all_held_out_rows_together() -> None:
    student, teacher = pair()
    held_out = of_sizes(6, 1, 3)
    x = all_inputs(held_out)
    p, q = teacher(x), student.eval()(x)
    expected = functional.kl_div(q.log_softmax(1), p.log_softmax(1), reduction="batchmean", log_target=True)

    measurement = evaluator(student, teacher, held_out).evaluate(4)

    figures = measurement.evaluation
    assert figures.step == 4
    assert figures.loss == pytest.approx(float(expected), rel=1e-5)
    assert figures.divergence == pytest.approx(float(expected), rel=1e-5)
    assert measurement.distance == figures.loss
    assert figures.agreement == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))
    assert (figures.score, figures.training_loss) == (None, None)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["classification", "embedding", "regression"])
def test_the_divergence_is_that_of_calibration(kind: OutputKind) -> None:
    """Relative to the held-out outputs themselves, in float64."""
    student, teacher = pair()
    held_out = of_sizes(6, 1, 3)
    totals = [Measure(kind=kind).totals(teacher(each.inputs), student.eval()(each.inputs)) for each in held_out]

    figures = evaluator(student, teacher, held_out, kind=kind).evaluate(0).evaluation

    whole = totals[0] + totals[1] + totals[2]
    assert figures.divergence == whole.mean
    assert figures.agreement == (whole.agreement if kind == "classification" else None)


@torch.no_grad()
def test_padding_counts_neither_in_the_loss_nor_in_the_divergence() -> None:
    student, teacher = pair(PaddedTexts)
    ids = texts(1)[0]
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    other = ids.masked_fill(mask == 0, 7)
    padded, changed = (
        evaluator(student, teacher, [Batch(inputs={"ids": each, "attention_mask": mask})]).evaluate(0)
        for each in (ids, other)
    )
    whole = evaluator(student, teacher, [Batch(inputs={"ids": ids})]).evaluate(0)

    assert padded == changed
    assert padded.evaluation.divergence != whole.evaluation.divergence


class PaddedTexts(Texts):
    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return super().forward(ids)


@torch.no_grad()
def test_the_loss_and_the_divergence_are_different_figures() -> None:
    student, teacher = pair()
    target = torch.tensor([0, 1, 2, 3, 4, 5])
    held_out = [Batch(inputs=batch.inputs, target=target) for batch in of_sizes(6, 6)]
    expected = functional.cross_entropy(student.eval()(all_inputs(held_out)), target.repeat(2))

    figures = evaluator(student, teacher, held_out, share=0.0).evaluate(1).evaluation

    assert figures.loss == pytest.approx(float(expected), rel=1e-5)
    assert figures.divergence == evaluator(student, teacher, of_sizes(6, 6)).evaluate(1).evaluation.divergence
    alone = evaluator(student, None, held_out, share=0.0).evaluate(1)
    assert alone.evaluation.loss == figures.loss
    assert (alone.evaluation.divergence, alone.evaluation.agreement, alone.distance) == (None, None, None)


def test_a_model_is_evaluated_in_evaluation_mode_and_without_gradients() -> None:
    modes: list[tuple[bool, bool]] = []

    def noting(self: Any, x: Any) -> Any:
        modes.append((self.training, torch.is_grad_enabled()))
        return self.inner(x)

    model = Calls(noting, inner=nn.Linear(12, 10)).train()

    evaluator(model, pair()[1], of_sizes(4)).evaluate(0)

    assert modes == [(False, False)]
    assert not model.training


def test_random_numbers_are_the_same_in_every_evaluation() -> None:
    student, teacher = pair()
    noisy = nn.Sequential(student, Calls(lambda self, x: x + torch.randn_like(x)))
    state = torch.get_rng_state()
    drawn: list[float] = []

    def score(model: nn.Module) -> float:
        drawn.append(float(torch.rand(())))
        return 1.0

    evaluates = evaluator(noisy, teacher, of_sizes(4, 4), score=score)

    assert evaluates.evaluate(0) == evaluates.evaluate(0)
    assert drawn[0] == drawn[1]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size_bytes", [0, 2**28])
@pytest.mark.parametrize("carries", [False, True])
def test_the_teacher_runs_once_if_its_outputs_can_be_cached(
    size_bytes: int, carries: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "CACHE_BYTES", size_bytes)
    student, teacher = pair_of_texts()
    runs: list[int] = []
    teacher.register_forward_hook(lambda *_: runs.append(1))
    hooks = [StatefulRNN(model) for model in (student, teacher)] if carries else []
    evaluates = evaluator(student, teacher, [Batch(inputs=ids) for ids in texts(3)], stateful=hooks)

    assert evaluates.evaluate(0) == evaluates.evaluate(0)
    assert len(runs) == (3 if size_bytes else 6)
    assert all(not each.states for each in hooks), "the states of the training are not touched"


def pair_of_texts() -> tuple[Any, Any]:
    student, teacher = pair(Texts)
    return student.eval(), teacher.eval()


@torch.no_grad()
def test_states_are_carried_through_the_held_out_batches() -> None:
    student, teacher = pair_of_texts()
    parts = texts(3)
    whole = torch.cat(parts, dim=1)
    hooks = [StatefulRNN(student), StatefulRNN(teacher)]

    carried = evaluator(student, teacher, [Batch(inputs=ids) for ids in parts], stateful=hooks).evaluate(0).evaluation
    for each in hooks:
        each.remove()
    at_once = evaluator(student, teacher, [Batch(inputs=whole)]).evaluate(0).evaluation

    assert carried.loss == pytest.approx(at_once.loss, rel=1e-5)
    assert carried.agreement == pytest.approx(at_once.agreement)


@pytest.mark.parametrize("value", [0.25, torch.tensor([0.25]), torch.tensor(0.25, dtype=torch.float64)])
def test_a_score_is_one_number(value: Any) -> None:
    student, teacher = pair()
    seen: list[bool] = []

    def score(model: nn.Module) -> Any:
        seen.append(model.training or torch.is_grad_enabled())
        return value

    figures = evaluator(student, teacher, of_sizes(4), score=score).evaluate(0).evaluation

    assert (figures.score, figures.selection_metric) == (0.25, 0.25)
    assert seen == [False]


def fails(model: nn.Module) -> object:
    raise RuntimeError("no answers here")


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda model: "good", "score: .*ValueError: could not convert string to float: 'good'; a score is a number"),
        (
            lambda model: None,
            "score: .*TypeError: .*; a score is a number; higher is better. Fix the error above: return a float",
        ),
        (lambda model: torch.ones(3), "score: .*Error: .*; a score is a number"),
        (fails, r"score: test_evaluation.py, line \d+: RuntimeError: no answers here"),
        (lambda model: math.nan, r"a score of nan; improvements could not be measured from it"),
        (lambda model: math.inf, "a score of inf; improvements could not be measured from it"),
    ],
)
def test_a_score_that_is_no_number_is_refused(score: Score, message: str) -> None:
    student, teacher = pair()
    with pytest.raises(FinetuneError, match=message):
        evaluator(student, teacher, of_sizes(4), score=score).evaluate(0)


def test_outputs_of_nan_are_refused_at_the_start_and_reported_later() -> None:
    student, teacher = pair()
    with torch.no_grad():
        student[2].bias[0] = math.nan
    evaluates = evaluator(student, teacher, of_sizes(4))

    with pytest.raises(
        FinetuneError, match="Sequential: outputs that are NaN or Inf; improvements could not be measured from it"
    ):
        evaluates.evaluate(0)
    later = evaluates.evaluate(3).evaluation
    assert (later.step, later.score) == (3, None)
    assert later.loss is not None
    assert math.isnan(later.loss)


@torch.no_grad()
def test_the_divergence_for_different_inputs_is_that_of_neighbouring_samples() -> None:
    student, teacher = pair()
    held_out = of_sizes(6, 1, 4)
    outputs = [teacher(held_out[0].inputs), teacher(held_out[2].inputs)]
    squares = sum(float((rows - rows.roll(1, 0)).double().square().sum()) for rows in outputs)
    scale = sum(float(rows.double().square().sum()) for rows in outputs)

    unrelated = evaluator(student, teacher, held_out, kind="regression").unrelated()

    assert unrelated == pytest.approx(squares / scale, rel=1e-6)
    assert evaluator(student, None, held_out).unrelated() is None
    assert evaluator(student, teacher, of_sizes(1)).unrelated() is None


def test_a_model_that_writes_into_its_inputs_changes_no_batch() -> None:
    student, teacher = pair()
    writes = nn.Sequential(Calls(lambda self, x: x.mul_(2)), student)
    x = numbers(4, 12)
    before = x.clone()
    evaluates = evaluator(writes, teacher, [Batch(inputs=x)])

    assert evaluates.evaluate(0) == evaluates.evaluate(0)
    assert torch.equal(x, before)


def test_a_mean_is_weighted() -> None:
    assert weighted_mean([(1.0, 1), (4.0, 3)]) == 3.25
    assert weighted_mean([]) == 0.0
