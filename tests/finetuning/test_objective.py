"""The training loss: every loss against that of torch, rows that do not count, and data that do not fit."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from mpocompress.calibration.divergence import Measure
from mpocompress.calibration.options import LossFunction
from mpocompress.errors import FinetuneError, MPOCompressError
from mpocompress.finetuning.forward import run_model
from mpocompress.finetuning.objective import BatchLoss, Objective, choose_objective
from mpocompress.finetuning.target_loss import model_loss
from mpocompress.reports.calibration import OutputKind
from mpocompress.user.batches import Batch
from tests.calibration.trial_models import Calls, numbers

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
"""Losses are computed in float32."""
KINDS: tuple[OutputKind, ...] = ("classification", "embedding", "regression")


def objective(kind: OutputKind, share: float = 1.0, **options: Any) -> Objective:
    probabilities = options.pop("probabilities", False)
    return Objective(
        measure=Measure(kind=kind, probabilities=probabilities), share=share, loss=options.pop("loss", None), **options
    )


def expected_distance(kind: OutputKind, expected: Tensor, found: Tensor, scale: float = 1.0) -> Tensor:
    """The distance in functions of torch."""
    if kind == "classification":
        p, q = expected.log_softmax(1), found.log_softmax(1)
        return functional.kl_div(q, p, reduction="batchmean", log_target=True)
    if kind == "embedding":
        return 1 - functional.cosine_similarity(expected, found).mean()
    return functional.mse_loss(found, expected) / scale


@given(st.sampled_from(KINDS), st.integers(1, 5), st.integers(2, 6), st.integers(0, 50))
def test_losses_are_those_of_torch_and_so_are_their_gradients(
    kind: OutputKind, rows: int, cols: int, seed: int
) -> None:
    expected, found = numbers(rows, cols, seed=seed), numbers(rows, cols, seed=seed + 100).requires_grad_()
    scale = 2.5 if kind == "regression" else 1.0

    wanted = expected_distance(kind, expected, found, scale)
    got = objective(kind, scale=scale).of_output(found, expected, Batch(inputs=torch.zeros(rows, 2))).total

    torch.testing.assert_close(got, wanted, **CLOSE)
    gradients = [torch.autograd.grad(each, found)[0] for each in (got, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_the_loss_of_probabilities_is_that_of_the_scores_behind_them() -> None:
    one, other = numbers(6, 5, seed=1), numbers(6, 5, seed=2)
    batch = Batch(inputs=torch.zeros(6, 2))
    loss = objective("classification", probabilities=True).of_output(other.softmax(1), one.softmax(1), batch)

    torch.testing.assert_close(loss.total, expected_distance("classification", one, other), **CLOSE)


def test_classes_of_probability_0_cost_nothing_and_have_a_finite_gradient() -> None:
    one = numbers(6, 5, seed=1).masked_fill(torch.arange(5) > 2, -math.inf)
    other = numbers(6, 5, seed=2).masked_fill(torch.arange(5) > 2, -math.inf).requires_grad_()
    loss = objective("classification").of_output(other, one, Batch(inputs=torch.zeros(6, 2))).total
    loss.backward()  # type: ignore[no-untyped-call]

    torch.testing.assert_close(loss, expected_distance("classification", one[:, :3], other[:, :3]), **CLOSE)
    assert other.grad is not None
    assert other.grad[:, :3].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_computed_in_float32_whatever_the_outputs_are_in(kind: OutputKind, dtype: torch.dtype) -> None:
    expected, found = numbers(6, 5, seed=1).to(dtype), numbers(6, 5, seed=2).to(dtype)
    got = objective(kind).of_output(found, expected, Batch(inputs=torch.zeros(6, 2))).total

    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected_distance(kind, expected.float(), found.float()), **CLOSE)


KEPT = torch.tensor([[1, 1, 0], [1, 0, 0]])
SCORES = numbers(2, 3, 5, seed=1), numbers(2, 3, 5, seed=2)


def labels(kept: Tensor) -> Tensor:
    return torch.tensor([[0, 4, 2], [3, 1, 0]]).masked_fill(kept == 0, -100)


@pytest.mark.parametrize(
    ("inputs", "target", "kept"),
    [
        ({"ids": torch.zeros(2, 3), "attention_mask": KEPT}, None, KEPT),
        ({"ids": torch.zeros(2, 3), "attention_mask": KEPT.bool()}, None, KEPT),
        ({"ids": torch.zeros(2, 3), "labels": labels(KEPT)}, None, KEPT),
        ({"ids": torch.zeros(2, 3), "attention_mask": KEPT, "labels": labels(KEPT.flip(1))}, None, KEPT & KEPT.flip(1)),
        (torch.zeros(2, 3), labels(KEPT), KEPT),
        ({"ids": torch.zeros(2, 3), "attention_mask": torch.ones(2, 3)}, None, torch.ones(2, 3)),
        ({"ids": torch.zeros(2, 3), "attention_mask": torch.zeros(2, 3)}, None, torch.ones(2, 3)),
        ({"ids": torch.zeros(2, 3), "attention_mask": torch.ones(2, 1, 3, 3)}, None, torch.ones(2, 3)),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_padding_and_rows_without_a_target_do_not_count(
    kind: OutputKind, inputs: Any, target: Tensor | None, kept: Tensor
) -> None:
    expected, found = SCORES
    loss = objective(kind).of_output(found, expected, Batch(inputs=inputs, target=target))
    theirs, ours = (scores[kept.bool()] for scores in SCORES)

    torch.testing.assert_close(loss.total, expected_distance(kind, theirs, ours), **CLOSE)
    assert loss.rows == int(kept.sum())
    assert loss.compared is not None
    assert all(map(torch.equal, loss.compared, (theirs, ours)))


def mixed(share: float, target: Tensor, kind: OutputKind, **options: Any) -> tuple[BatchLoss, Tensor]:
    expected, found = SCORES
    got = objective(kind, share, **options).of_output(found, expected, Batch(inputs=torch.zeros(2, 3), target=target))
    return got, found


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_loss_is_the_sum_of_both_parts_in_their_shares(share: float) -> None:
    target = labels(KEPT)
    got, found = mixed(share, target, "classification")
    rows = [each[KEPT.bool()] for each in SCORES]
    task = functional.cross_entropy(found.reshape(-1, 5), target.reshape(-1))
    distance = expected_distance("classification", rows[0], rows[1])

    torch.testing.assert_close(got.total, share * distance + (1 - share) * task, **CLOSE)
    assert got.distance is not None
    torch.testing.assert_close(got.distance, distance, **CLOSE)


def given_loss(output: Tensor, target: Tensor) -> Tensor:
    return (output.sum() - target.sum()).abs()


TARGETS: dict[str, tuple[OutputKind, Tensor, Any]] = {
    "classes": (
        "classification",
        labels(torch.ones(2, 3)),
        lambda y, t: functional.cross_entropy(y.reshape(-1, 5), t.reshape(-1)),
    ),
    "probabilities": (
        "classification",
        numbers(2, 3, 5, seed=3).softmax(-1),
        lambda y, t: functional.cross_entropy(y.reshape(-1, 5), t.reshape(-1, 5)),
    ),
    "directions": (
        "embedding",
        numbers(2, 3, 5, seed=3),
        lambda y, t: functional.cosine_embedding_loss(y.reshape(-1, 5), t.reshape(-1, 5), torch.ones(6)),
    ),
    "values": ("regression", numbers(2, 3, 5, seed=3), lambda y, t: functional.mse_loss(y, t) / 4.0),
}


@pytest.mark.parametrize("name", TARGETS)
def test_the_loss_on_targets_is_that_of_torch(name: str) -> None:
    kind, target, loss = TARGETS[name]
    got, found = mixed(0.0, target, kind, scale=4.0 if kind == "regression" else 1.0)

    torch.testing.assert_close(got.total, loss(found, target), **CLOSE)


def test_targets_of_one_number_per_sample_fit_outputs_of_one() -> None:
    x, target = numbers(6, 1, seed=1), numbers(6, seed=2)
    for found in (x, x[:, 0]):
        got = objective("regression", 0.0).of_output(found, None, Batch(inputs=torch.zeros(6, 2), target=target))
        torch.testing.assert_close(got.total, functional.mse_loss(x[:, 0], target), **CLOSE)
        assert got.rows == 6


def test_classes_of_probabilities_and_of_small_integers() -> None:
    x, target = numbers(6, 5, seed=1), torch.tensor([0, 1, 2, 3, 4, 0], dtype=torch.int16)
    got = objective("classification", 0.0, probabilities=True).of_output(
        x.softmax(1), None, Batch(inputs=torch.zeros(6, 2), target=target)
    )

    torch.testing.assert_close(got.total, functional.cross_entropy(x, target.long()), **CLOSE)


@pytest.mark.parametrize(
    ("kind", "target", "found"),
    [
        (
            "classification",
            torch.zeros(2, 4).long(),
            r"a target of \(2, 4\) torch.int64 for outputs of shape \(2, 3, 5\)",
        ),
        ("classification", torch.zeros(2, 3).bool(), r"a target of \(2, 3\) torch.bool"),
        ("regression", torch.zeros(2, 3).long(), r"a target of \(2, 3\) torch.int64"),
        ("embedding", torch.zeros(2, 3, 4), r"a target of \(2, 3, 4\) torch.float32"),
        ("classification", "cat", "a target of str"),
    ],
)
def test_a_target_that_does_not_fit_the_outputs_is_refused(kind: OutputKind, target: Any, found: str) -> None:
    with pytest.raises(FinetuneError, match=f"training data: {found}.*; the default loss needs class .* Give a loss"):
        mixed(0.0, target, kind)


def test_a_given_loss_is_used_as_it_is() -> None:
    target = numbers(4, seed=9)
    got, found = mixed(0.0, target, "regression", loss=given_loss)
    torch.testing.assert_close(got.total, given_loss(found, target), **CLOSE)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda y, t: 1 / 0,
            r"loss: .*test_objective.py, line \d+: ZeroDivisionError: .*; the loss could not",
        ),
        (lambda y, t: y.exp(), r"loss: a Tensor of shape \(2, 3, 5\); a loss is a scalar tensor"),
        (lambda y, t: 3.0, "loss: a float; a loss is a scalar tensor"),
        (lambda y: y.sum(), "loss: .*TypeError: .*takes 1 positional argument.* a loss is a function of"),
    ],
)
def test_a_loss_that_returns_no_scalar_is_refused(loss: LossFunction, message: str) -> None:
    with pytest.raises(FinetuneError, match=message):
        mixed(0.0, numbers(4, seed=9), "regression", loss=loss)


def test_a_batch_without_a_target_after_others_is_refused() -> None:
    with pytest.raises(FinetuneError, match="a batch without a target after batches with one"):
        objective("regression", 0.0).of_output(SCORES[0], None, Batch(inputs=torch.zeros(2, 3)))


def test_outputs_of_other_shapes_are_not_compared() -> None:
    with pytest.raises(
        FinetuneError, match=r"outputs: shape \(2, 3, 5\), but \(2, 3, 4\) from the teacher; they are compared"
    ):
        objective("regression").of_output(SCORES[0], SCORES[1][..., :4], Batch(inputs=torch.zeros(2, 3)))


def linear(outputs: int = 5, seed: int = 0) -> nn.Module:
    model = nn.Linear(4, outputs)
    with torch.no_grad():
        model.weight.copy_(numbers(outputs, 4, seed=seed))
        model.bias.zero_()
    return model


def chosen(
    batch: Batch,
    *,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    loss: LossFunction | None = None,
    share: float | None = None,
    kind: OutputKind | None = None,
) -> Objective:
    return choose_objective(student or linear(), teacher, batch, loss=loss, share=share, kind=kind)


X = numbers(6, 4, seed=3)
CLASSES = torch.tensor([0, 1, 2, 3, 4, 0])


def test_the_loss_is_chosen_for_the_first_batch() -> None:
    teacher = linear(seed=1)
    only, both, targets = (
        chosen(Batch(inputs=X), teacher=teacher, kind="regression"),
        chosen(Batch(inputs=X, target=CLASSES), teacher=teacher, kind="classification"),
        chosen(Batch(inputs=X, target=CLASSES), kind="classification"),
    )

    assert [each.share for each in (only, both, targets)] == [1.0, 0.5, 0.0]
    assert only.scale == pytest.approx(float(teacher(X).detach().square().mean()))
    assert (both.scale, targets.scale) == (1.0, 1.0)
    assert str(only) == "relative squared error to the outputs of the teacher"
    assert str(both) == ("0.5 x (KL divergence to the outputs of the teacher) + 0.5 x (cross entropy on targets)")
    assert str(targets) == "cross entropy on targets"


def test_a_given_loss_needs_no_kind() -> None:
    found = chosen(Batch(inputs=X, target=CLASSES), loss=given_loss)

    assert (found.measure, found.share, str(found)) == (None, 0.0, "the given loss on targets")


class Mine(nn.Module):
    """Computes its own loss, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Mapping[str, Tensor]:
        scores = self.inner(x)
        found = OrderedDict(logits=scores)
        if labels is not None:
            found["loss"] = 3 * functional.cross_entropy(scores, labels)
        return found


def test_the_loss_that_a_model_computes_is_used() -> None:
    model, batch = Mine(), Batch(inputs={"x": X, "labels": CLASSES})
    alone, both = chosen(batch, student=model), chosen(batch, student=model, teacher=Mine())
    output, other = model(**batch.inputs), linear(seed=1)(X)  # type: ignore[arg-type]
    own = 3 * functional.cross_entropy(model.inner(X), CLASSES)

    torch.testing.assert_close(alone.of_output(output, None, batch).total, own, **CLOSE)
    expected = 0.5 * own + 0.5 * expected_distance("classification", other, model.inner(X))
    torch.testing.assert_close(both.of_output(output, other, batch).total, expected, **CLOSE)
    assert str(alone) == "the loss that the model computes"
    with pytest.raises(
        FinetuneError, match="the model: an output without a loss after outputs with one; the loss that the"
    ):
        alone.of_output(model(X), None, Batch(inputs={"x": X}))


def test_only_a_scalar_under_loss_is_a_loss() -> None:
    one = torch.ones(())

    assert model_loss({"loss": one}) is one
    for output in ({"loss": torch.ones(3)}, {"loss": 1.0}, {"logits": one}, (one,), one):
        assert model_loss(output) is None


@dataclass
class Answer:
    """An output that is no nest of tensors."""

    scores: Tensor


def test_a_given_loss_may_read_any_output() -> None:
    """What the model puts out has to be understood by the loss alone."""
    model = Calls(lambda self, x: Answer(self.inner(x)), inner=linear())
    batch = Batch(inputs=X, target=CLASSES)
    loss: LossFunction = lambda output, target: functional.cross_entropy(output.scores, target)  # noqa: E731

    found = chosen(batch, student=model, loss=loss)

    expected = functional.cross_entropy(linear()(X), CLASSES)
    torch.testing.assert_close(found.of_output(model(X), None, batch).total, expected, **CLOSE)


NAN = Calls(lambda self, x: self.inner(x) * math.nan, inner=linear())


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({}, Batch(inputs=X), "training loss: neither a teacher nor targets; the outputs are trained towards"),
        ({"loss": given_loss}, Batch(inputs=X), "training data: batches without a target; the given loss is"),
        ({"share": 0.5}, Batch(inputs=X, target=CLASSES), "teacher_share: 0.5 without a teacher; the loss is the sum"),
        (
            {"teacher": linear(), "share": 0.5},
            Batch(inputs=X),
            "teacher_share: 0.5 without targets; the loss is the sum",
        ),
        ({"teacher": NAN}, Batch(inputs=X), "Calls: NaN or Inf in its output for the first batch"),
        ({"student": NAN}, Batch(inputs=X, target=CLASSES), "Calls: NaN or Inf in its output for the first"),
        (
            {"teacher": linear()},
            Batch(inputs=numbers(6, 3)),
            "Linear: .*RuntimeError: mat1 and mat2.*; the model",
        ),
        ({"teacher": linear()}, Batch(inputs=(X, X)), "Linear: .*takes 2 positional arguments.* Give batches"),
    ],
)
def test_models_and_batches_that_do_not_fit_are_refused(options: dict[str, Any], batch: Batch, message: str) -> None:
    with pytest.raises(FinetuneError, match=message):
        chosen(batch, **options)


def test_a_classifier_of_one_class_is_refused() -> None:
    with pytest.raises(MPOCompressError, match="classification of outputs with one entry"):
        chosen(Batch(inputs=X), student=linear(1), teacher=linear(1), kind="classification")


def test_an_output_without_numbers_is_refused() -> None:
    with pytest.raises(MPOCompressError, match="an output of type str; it contains no floating-point tensor"):
        chosen(Batch(inputs=X), student=Calls(lambda self, x: "text"), teacher=Calls(lambda self, x: "text"))


def test_running_out_of_memory_is_passed_on() -> None:
    def fails(self: Any, x: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("no memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        run_model(Calls(fails), Batch(inputs=X))


def test_the_choice_depends_on_no_random_numbers_of_the_caller() -> None:
    noisy = Calls(lambda self, x: self.inner(x) + torch.randn(6, 5), inner=linear())
    student, state = linear(), torch.get_rng_state()
    scales = [chosen(Batch(inputs=X), student=student, teacher=noisy, kind="regression").scale for _ in range(2)]

    assert torch.equal(torch.get_rng_state(), state)
    assert scales[0] == scales[1]
