"""A model measured between steps: the loss, the distance and the agreement by hand, and scores that are none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mpocompress.calibration.divergence import Measure
from mpocompress.errors import TuningError
from mpocompress.finetuning import evaluation as judging
from mpocompress.finetuning.data import Example
from mpocompress.finetuning.evaluation import Judge
from mpocompress.finetuning.objective import Objective
from mpocompress.finetuning.options import Score
from mpocompress.finetuning.recurrent_state import Carrier
from mpocompress.reports.calibration import OutputKind
from tests.calibration.rigs import Calls, numbers
from tests.finetuning.runs import Texts, batches, pair, texts


def judge(
    model: nn.Module,
    teacher: nn.Module | None,
    held_out: Sequence[Example],
    *,
    kind: OutputKind = "classification",
    share: float = 1.0,
    score: Score | None = None,
    carriers: Sequence[Carrier] = (),
) -> Judge:
    return Judge(
        model,
        teacher=teacher,
        objective=Objective(measure=Measure(kind=kind), share=share, loss=None),
        held_out=held_out,
        score=score,
        carriers=carriers,
        seed=0,
        device=torch.device("cpu"),
    )


def of_sizes(*sizes: int) -> list[Example]:
    return [Example(inputs=x[:size]) for x, size in zip(batches(len(sizes), max(sizes)), sizes, strict=True)]


@torch.no_grad()
def test_figures_are_those_of_all_held_out_rows_together() -> None:
    student, teacher = pair()
    held_out = of_sizes(6, 1, 3)
    x = torch.cat([one.inputs for one in held_out])  # type: ignore[misc]
    p, q = teacher(x), student.eval()(x)

    found = judge(student, teacher, held_out).measured(4)

    assert found.step == 4
    wanted = functional.kl_div(q.log_softmax(1), p.log_softmax(1), reduction="batchmean", log_target=True)
    assert found.loss == pytest.approx(float(wanted), rel=1e-5)
    assert found.divergence == pytest.approx(float(wanted), rel=1e-5)
    assert found.agreement == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))
    assert (found.score, found.training_loss) == (None, None)


@torch.no_grad()
def test_the_loss_and_the_distance_are_told_apart() -> None:
    student, teacher = pair()
    target = torch.tensor([0, 1, 2, 3, 4, 5])
    held_out = [Example(inputs=one.inputs, target=target) for one in of_sizes(6, 6)]
    x = torch.cat([one.inputs for one in held_out])  # type: ignore[misc]
    task = functional.cross_entropy(student.eval()(x), target.repeat(2))

    found = judge(student, teacher, held_out, share=0.0).measured(1)

    assert found.loss == pytest.approx(float(task), rel=1e-5)
    assert found.divergence == judge(student, teacher, of_sizes(6, 6)).measured(1).divergence
    alone = judge(student, None, held_out, share=0.0).measured(1)
    assert (alone.loss, alone.divergence, alone.agreement) == (found.loss, None, None)


def test_a_model_is_measured_in_evaluation_mode_and_without_gradients() -> None:
    modes: list[tuple[bool, bool]] = []

    def noting(self: Any, x: Any) -> Any:
        modes.append((self.training, torch.is_grad_enabled()))
        return self.inner(x)

    model = Calls(noting, inner=nn.Linear(12, 10)).train()

    judge(model, pair()[1], of_sizes(4)).measured(0)

    assert modes == [(False, False)]
    assert not model.training


def test_what_a_model_draws_is_the_same_at_every_measurement() -> None:
    student, teacher = pair()
    noisy = nn.Sequential(student, Calls(lambda self, x: x + torch.randn_like(x)))
    state = torch.get_rng_state()
    drawn: list[float] = []

    def score(model: nn.Module) -> float:
        drawn.append(float(torch.rand(())))
        return 1.0

    found = judge(noisy, teacher, of_sizes(4, 4), score=score)

    assert found.measured(0) == found.measured(0)
    assert drawn[0] == drawn[1]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("remembered", [0, 2**28])
@pytest.mark.parametrize("carries", [False, True])
def test_the_teacher_is_run_once_where_its_outputs_can_be_kept(
    remembered: int, carries: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "REMEMBERED_BYTES", remembered)
    from_texts = pair_of_texts()
    student, teacher = from_texts
    runs: list[int] = []
    teacher.register_forward_hook(lambda *_: runs.append(1))
    carriers = [Carrier(one) for one in from_texts] if carries else []
    found = judge(student, teacher, [Example(inputs=one) for one in texts(3)], carriers=carriers)

    first, second = found.measured(0), found.measured(0)

    assert first == second
    assert len(runs) == (3 if remembered else 6)
    assert all(not one.memory for one in carriers), "what is carried in training is not touched"


def pair_of_texts() -> tuple[Any, Any]:
    from_there = pair(texts_model)
    return from_there[0].eval(), from_there[1].eval()


def texts_model() -> nn.Module:
    return Texts()


@torch.no_grad()
def test_a_state_is_carried_through_the_held_out_batches() -> None:
    student, teacher = pair_of_texts()
    parts = texts(3)
    whole = [torch.cat(parts, dim=1)]
    carriers = [Carrier(student), Carrier(teacher)]

    carried = judge(student, teacher, [Example(inputs=one) for one in parts], carriers=carriers).measured(0)
    for one in carriers:
        one.remove()
    at_once = judge(student, teacher, [Example(inputs=one) for one in whole]).measured(0)

    assert carried.loss == pytest.approx(at_once.loss, rel=1e-5)
    assert carried.agreement == pytest.approx(at_once.agreement)


@pytest.mark.parametrize("value", [0.25, torch.tensor([0.25]), torch.tensor(0.25, dtype=torch.float64)])
def test_a_score_is_one_number(value: Any) -> None:
    student, teacher = pair()
    seen: list[bool] = []

    def score(model: nn.Module) -> Any:
        seen.append(model.training or torch.is_grad_enabled())
        return value

    found = judge(student, teacher, of_sizes(4), score=score).measured(0)

    assert (found.score, found.merit) == (0.25, 0.25)
    assert seen == [False]


def fails(model: nn.Module) -> object:
    raise RuntimeError("no answers here")


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda model: "good", "score: .*ValueError: could not convert string to float: 'good'; a score is one number"),
        (lambda model: None, "score: .*TypeError: .*; a score is one number, larger being better. Return a float"),
        (lambda model: torch.ones(3), "score: .*Error: .*; a score is one number"),
        (fails, r"score: test_evaluation.py, line \d+: RuntimeError: no answers here"),
        (lambda model: math.nan, r"a score of nan; it could not be told whether training makes it better"),
        (lambda model: math.inf, "a score of inf; it could not be told"),
    ],
)
def test_a_score_that_is_no_number_is_told(score: Score, message: str) -> None:
    student, teacher = pair()
    with pytest.raises(TuningError, match=message):
        judge(student, teacher, of_sizes(4), score=score).measured(0)


def test_a_model_that_puts_out_nan_is_refused_at_the_start_and_told_later() -> None:
    student, teacher = pair()
    with torch.no_grad():
        student[2].bias[0] = math.nan
    found = judge(student, teacher, of_sizes(4))

    with pytest.raises(TuningError, match="Sequential: outputs that are NaN or Inf; it could not be told"):
        found.measured(0)
    later = found.measured(3)
    assert (later.step, later.score) == (3, None)
    assert later.loss is not None
    assert math.isnan(later.loss)


@torch.no_grad()
def test_outputs_for_different_inputs_are_as_far_apart_as_those_of_neighbours() -> None:
    student, teacher = pair()
    held_out = of_sizes(6, 1, 4)
    wanted: list[Tensor] = []
    for one in (held_out[0], held_out[2]):
        rows = teacher(one.inputs)
        wanted += [(rows[n] - rows[n - 1]).square().mean() for n in range(len(rows))]

    found = judge(student, teacher, held_out, kind="regression").unrelated()

    assert found == pytest.approx(float(torch.stack(wanted).mean()), rel=1e-5)
    assert judge(student, None, held_out).unrelated() is None
    assert judge(student, teacher, of_sizes(1)).unrelated() is None


def test_a_model_that_writes_into_its_inputs_spoils_none() -> None:
    student, teacher = pair()
    writes = nn.Sequential(Calls(lambda self, x: x.mul_(2)), student)
    x = numbers(4, 12)
    before = x.clone()
    found = judge(writes, teacher, [Example(inputs=x)])

    assert found.measured(0) == found.measured(0)
    assert torch.equal(x, before)
