"""Divergence: the kind of outputs, the divergence of two outputs, and the projections that gradients are taken of."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mpocompress.calibration import divergence
from mpocompress.calibration.divergence import DivergenceTotals, Measure, measure_for, unrelated_divergence
from mpocompress.errors import CalibrationError
from mpocompress.reports.calibration import OutputKind
from tests.draw import random_matrix

ROUNDING = 1e-9
KINDS: tuple[OutputKind, ...] = ("classification", "embedding", "regression")


def numbers(rows: int, cols: int, seed: int = 0) -> Tensor:
    return random_matrix(rows, cols, seed)


MASKED = numbers(8, 5).masked_fill(torch.arange(5) > 2, -math.inf)

INFERRED: dict[str, tuple[Tensor, str, str, bool, str]] = {
    "logits": (numbers(8, 5), "logits", "classification", False, "its outputs are named logits"),
    "scores": (10 * numbers(8, 5), "", "classification", False, "its outputs look like the scores of a classifier"),
    "log": (numbers(8, 5).log_softmax(1), "", "classification", False, "its outputs are log-probabilities"),
    "probabilities": (numbers(8, 5).softmax(1), "", "classification", True, "its outputs are probabilities"),
    "half": (numbers(8, 5).softmax(1).half(), "", "classification", True, "its outputs are probabilities"),
    "units": (nn.functional.normalize(numbers(8, 5)), "", "embedding", False, "its outputs have length 1"),
    "values": (numbers(8, 5), "", "regression", False, "its outputs are neither scores, probabilities nor of length 1"),
    "one": (100 * numbers(8, 1), "", "regression", False, "neither"),
    "one of logits": (100 * numbers(8, 1), "logits", "regression", False, "neither"),
    "ones": (torch.ones(8, 1), "", "regression", False, "neither"),
    "zeros": (torch.zeros(8, 5), "", "regression", False, "neither"),
    "masked scores": (10 * MASKED, "", "classification", False, "look like the scores"),
}


@pytest.mark.parametrize("name", INFERRED)
def test_kinds_are_inferred_from_outputs(name: str) -> None:
    outputs, named, kind, probabilities, said = INFERRED[name]
    for shaped in (outputs, outputs.reshape(2, 4, -1)):
        measure = measure_for([shaped], named=named)
        assert (measure.kind, measure.probabilities) == (kind, probabilities)
        assert said in measure.kind_from


@pytest.mark.parametrize("kind", KINDS)
def test_a_given_kind_is_used(kind: OutputKind) -> None:
    measure = measure_for([numbers(8, 5).softmax(1)], named="logits", kind=kind)
    names = {
        "classification": "KL divergence, nats",
        "embedding": "1 - cosine",
        "regression": "relative squared error",
    }

    assert (measure.kind, measure.kind_from) == (kind, "as asked")
    assert measure.probabilities == (kind == "classification")
    assert measure.name == names[kind]


def test_a_classifier_has_more_than_one_class() -> None:
    with pytest.raises(
        CalibrationError,
        match="kind of output: classification of outputs with one entry; the probability of a single class is always "
        r"1\. Give regression, or leave the kind out\.",
    ):
        measure_for([numbers(8, 1)], named="", kind="classification")


@given(st.sampled_from(KINDS), st.integers(1, 6), st.integers(2, 5), st.integers(0, 50))
def test_the_divergence_of_an_output_from_itself_is_0(kind: OutputKind, rows: int, cols: int, seed: int) -> None:
    output = numbers(rows, cols, seed)
    for measure in (Measure(kind=kind), Measure(kind=kind, probabilities=kind == "classification")):
        reference = output.softmax(1) if measure.probabilities else output
        assert measure.divergences(reference, reference).abs().max() == 0.0
        assert measure.totals(reference, reference).divisor > 0.0
        assert (measure.divergences(reference, reference.roll(1, 1)) >= 0.0).all()


@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 50))
def test_the_divergence_of_a_classifier_is_that_of_torch(rows: int, cols: int, seed: int) -> None:
    one, other = numbers(rows, cols, seed), numbers(rows, cols, seed + 1)
    expected = nn.functional.kl_div(other.log_softmax(1), one.log_softmax(1), reduction="none", log_target=True).sum(1)
    logits, probabilities = Measure(kind="classification"), Measure(kind="classification", probabilities=True)

    torch.testing.assert_close(logits.divergences(one, other), expected, rtol=ROUNDING, atol=1e-12)
    assert logits.totals(one, other).mean == pytest.approx(float(expected.mean()))
    torch.testing.assert_close(
        probabilities.divergences(one.softmax(1), other.softmax(1)), expected, rtol=1e-6, atol=1e-9
    )
    torch.testing.assert_close(logits.divergences(one + 7.0, other - 3.0), expected, rtol=1e-6, atol=1e-9)


def test_classes_of_probability_0_cost_nothing() -> None:
    """Their term is 0, not NaN."""
    measure = Measure(kind="classification")
    other = numbers(8, 5, 1).masked_fill(torch.arange(5) > 2, -math.inf)

    torch.testing.assert_close(measure.divergences(MASKED, other), measure.divergences(MASKED[:, :3], other[:, :3]))
    assert measure.divergences(MASKED, MASKED).max() == 0.0
    assert measure.divergences(numbers(8, 5), MASKED).isinf().all()
    assert measure.divergences(MASKED * math.nan, MASKED).isnan().all()
    assert measure.divergences(MASKED, MASKED * math.nan).isnan().all()


@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 50))
def test_the_divergence_of_an_embedding_is_the_cosine(rows: int, cols: int, seed: int) -> None:
    one, other = numbers(rows, cols, seed), numbers(rows, cols, seed + 1)
    expected = 1 - nn.functional.cosine_similarity(one, other)

    torch.testing.assert_close(Measure(kind="embedding").divergences(one, 3 * other), expected, rtol=1e-6, atol=1e-9)
    assert Measure(kind="embedding").totals(one, other).mean == pytest.approx(float(expected.mean()), rel=1e-6)


def test_the_divergence_of_embeddings_of_zeros_is_0() -> None:
    zeros = torch.zeros(2, 3)

    assert Measure(kind="embedding").divergences(zeros, zeros).tolist() == [0.0, 0.0]
    assert Measure(kind="embedding").divergences(zeros, torch.eye(3)[:2]).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_divergence_of_values_is_relative(dtype: torch.dtype) -> None:
    one = torch.tensor([[1.0, 2.0], [2.0, 0.0]], dtype=dtype)
    other = torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=dtype)
    measure = Measure(kind="regression")

    assert measure.divergences(one, other).tolist() == [1.0, 4.0]
    assert measure.totals(one, other).mean == 5.0 / 9.0
    assert measure.totals(one * 0, other).divisor == 1.0


def test_totals_of_several_outputs_are_those_of_all_rows_together() -> None:
    one, other = numbers(9, 5, 1), numbers(9, 5, 2)
    for kind in KINDS:
        measure = Measure(kind=kind)
        parts = measure.totals(one[:2], other[:2]) + measure.totals(one[2:], other[2:])
        whole = measure.totals(one, other)

        assert parts.rows == whole.rows == 9
        assert parts.mean == pytest.approx(whole.mean)
        assert parts.agreed == whole.agreed
    assert (DivergenceTotals().mean, DivergenceTotals().agreement) == (0.0, None)


@pytest.mark.parametrize("kind", KINDS)
def test_large_outputs_are_compared_in_parts(kind: OutputKind, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = numbers(9, 5, 1).reshape(3, 3, 5), numbers(9, 5, 2).reshape(3, 3, 5)
    measure = Measure(kind=kind)
    whole, rows = measure.totals(one, other), measure.divergences(one, other)
    for entries in (1, 12, 44):
        monkeypatch.setattr(divergence, "CHUNK_ENTRIES", entries)
        assert torch.equal(measure.divergences(one, other), rows)
        assert measure.totals(one, other).mean == pytest.approx(whole.mean, rel=1e-12)


def test_agreement_is_the_fraction_of_rows_with_the_same_largest_entry() -> None:
    one = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])
    other = torch.tensor([[[1.0, 2.0], [0.0, 3.0]]])
    measure = Measure(kind="classification")

    assert [measure.totals(one, outputs).agreement for outputs in (one.flip(2), 2 * one, other)] == [0.0, 1.0, 0.5]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("probabilities", [False, True])
def test_the_loss_is_the_mean_divergence_in_float32(kind: OutputKind, probabilities: bool) -> None:
    one, other = numbers(6, 5, 1), numbers(6, 5, 2)
    measure = Measure(kind=kind, probabilities=probabilities)
    if probabilities:
        one, other = one.softmax(1), other.softmax(1)
    scale = float(one.square().mean())

    loss = measure.loss(one.bfloat16(), other.bfloat16(), scale=scale)

    assert loss.dtype == torch.float32
    expected = measure.totals(one.bfloat16(), other.bfloat16())
    if kind == "regression":  # relative to the given scale, not to the rows themselves
        assert float(loss) == pytest.approx(expected.divergence / one.numel() / scale, rel=1e-5)
    else:
        assert float(loss) == pytest.approx(expected.mean, rel=1e-5)


def test_outputs_for_different_inputs_are_those_of_neighbouring_samples() -> None:
    measure = Measure(kind="regression")
    outputs = [numbers(6, 5, 1), numbers(1, 5, 2), numbers(4, 5, 3).reshape(2, 2, 5)]
    pairs = [(outputs[0], outputs[0].roll(1, 0)), (outputs[2], outputs[2].flip(0))]
    squares = sum(float((one - other).square().sum()) for one, other in pairs)
    scale = sum(float(one.square().sum()) for one, _ in pairs)

    assert unrelated_divergence(measure, iter(outputs)) == pytest.approx(squares / scale)


def test_batches_of_one_sample_are_compared_with_each_other() -> None:
    measure = Measure(kind="regression")
    one, other, third = (numbers(1, 5, seed) for seed in (1, 2, 3))
    squares = float((one - other).square().sum() + (other - third).square().sum() + (third - one).square().sum())
    scale = float(one.square().sum() + other.square().sum() + third.square().sum())

    assert unrelated_divergence(measure, [one, other, third]) == pytest.approx(squares / scale)
    assert unrelated_divergence(measure, [one, numbers(1, 4)]) is None, "other shapes are not compared"
    assert unrelated_divergence(measure, [one]) is None
    assert unrelated_divergence(measure, [one, one.clone()]) is None, "the same outputs have no scale"
    assert unrelated_divergence(measure, [one * math.nan, other]) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_projections_are_the_same_for_one_seed_and_have_gradients(kind: OutputKind, dtype: torch.dtype) -> None:
    output = numbers(6, 5).to(dtype).requires_grad_()
    scalars = [
        Measure(kind=kind).projection(output.reshape(2, 3, 5), torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    scalars[0].backward()  # type: ignore[no-untyped-call]

    assert scalars[0].equal(scalars[1])
    assert not scalars[0].equal(scalars[2])
    assert output.grad is not None
    assert output.grad.abs().sum() > 0.0


def test_gradients_of_a_classifier_square_to_its_fisher_information() -> None:
    logits = numbers(1, 4).expand(20_000, 4).clone().requires_grad_()
    Measure(kind="classification").projection(logits, torch.Generator().manual_seed(0)).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    p = logits[0].softmax(0).detach()

    found = logits.grad.T @ logits.grad / len(logits)
    torch.testing.assert_close(
        found, torch.diag(p) - torch.outer(p, p), rtol=0.0, atol=0.015
    )  # 4 sigma of 20,000 draws


def test_a_projection_of_zeros_is_finite() -> None:
    output = torch.zeros(2, 3, requires_grad=True)
    for kind in KINDS:
        assert Measure(kind=kind).projection(output, torch.Generator().manual_seed(0)).isfinite()
