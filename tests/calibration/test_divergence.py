"""Outputs: which kind they are, how far two are apart, and what gradients are taken of."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from mpocompress.calibration.divergence import Measure, measure_for, primary
from mpocompress.errors import CalibrationError
from mpocompress.reports.calibration import OutputKind
from tests.draw import random_matrix

ROUNDING = 1e-9
KINDS: tuple[OutputKind, ...] = ("classification", "embedding", "regression")


def numbers(rows: int, cols: int, seed: int = 0) -> Tensor:
    return random_matrix(rows, cols, seed)


MASKED = numbers(8, 5).masked_fill(torch.arange(5) > 2, -math.inf)

TOLD: dict[str, tuple[Tensor, str, str, bool, str]] = {
    "logits": (numbers(8, 5), "logits", "classification", False, "it calls its outputs logits"),
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


@pytest.mark.parametrize("name", TOLD)
def test_kinds_are_told_from_outputs(name: str) -> None:
    outputs, named, kind, probabilities, said = TOLD[name]
    for shaped in (outputs, outputs.reshape(2, 4, -1)):
        found = measure_for([shaped], named=named)
        assert (found.kind, found.probabilities) == (kind, probabilities)
        assert said in found.said


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_is_given_is_taken(kind: OutputKind) -> None:
    found = measure_for([numbers(8, 5).softmax(1)], named="logits", kind=kind)

    assert (found.kind, found.said) == (kind, "as asked")
    assert found.probabilities == (kind == "classification")
    assert (
        found.words
        == {
            "classification": "KL divergence, nats",
            "embedding": "1 - cosine",
            "regression": "relative squared error",
        }[kind]
    )


def test_a_classifier_has_more_than_one_answer() -> None:
    with pytest.raises(
        CalibrationError,
        match="kind of output: classification of outputs of one number; the probability of a single answer is always "
        r"1\. Give regression, or none\.",
    ):
        measure_for([numbers(8, 1)], named="", kind="classification")


@given(st.sampled_from(KINDS), st.integers(1, 6), st.integers(2, 5), st.integers(0, 50))
def test_an_output_is_no_way_from_itself(kind: OutputKind, rows: int, cols: int, seed: int) -> None:
    output = numbers(rows, cols, seed)
    for measure in (Measure(kind=kind), Measure(kind=kind, probabilities=kind == "classification")):
        one = output.softmax(1) if measure.probabilities else output
        apart, divisor = measure.divergences(one, one)
        other, _ = measure.divergences(one, one.roll(1, 1))
        assert apart.abs().max() == 0.0
        assert divisor > 0.0
        assert (other >= 0.0).all()


@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 50))
def test_the_divergence_of_a_classifier_is_that_of_torch(rows: int, cols: int, seed: int) -> None:
    one, other = numbers(rows, cols, seed), numbers(rows, cols, seed + 1)
    wanted = nn.functional.kl_div(other.log_softmax(1), one.log_softmax(1), reduction="none", log_target=True).sum(1)

    found, divisor = Measure(kind="classification").divergences(one, other)
    torch.testing.assert_close(found, wanted, rtol=ROUNDING, atol=1e-12)
    assert divisor == rows
    found, _ = Measure(kind="classification", probabilities=True).divergences(one.softmax(1), other.softmax(1))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    shifted, _ = Measure(kind="classification").divergences(one + 7.0, other - 3.0)
    torch.testing.assert_close(shifted, wanted, rtol=1e-6, atol=1e-9)


def test_answers_that_are_ruled_out_cost_nothing() -> None:
    """Of a probability of 0 the term is 0, not NaN."""
    measure = Measure(kind="classification")
    other = numbers(8, 5, 1).masked_fill(torch.arange(5) > 2, -math.inf)
    found, _ = measure.divergences(MASKED, other)
    wanted, _ = measure.divergences(MASKED[:, :3], other[:, :3])

    torch.testing.assert_close(found, wanted)
    assert measure.divergences(MASKED, MASKED)[0].max() == 0.0
    assert measure.divergences(numbers(8, 5), MASKED)[0].isinf().all()
    assert measure.divergences(MASKED * math.nan, MASKED)[0].isnan().all()
    assert measure.divergences(MASKED, MASKED * math.nan)[0].isnan().all()


@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 50))
def test_the_divergence_of_an_embedding_is_the_cosine(rows: int, cols: int, seed: int) -> None:
    one, other = numbers(rows, cols, seed), numbers(rows, cols, seed + 1)
    found, divisor = Measure(kind="embedding").divergences(one, 3 * other)

    torch.testing.assert_close(found, 1 - nn.functional.cosine_similarity(one, other), rtol=1e-6, atol=1e-9)
    assert divisor == rows


def test_an_embedding_of_zeros_is_no_way_from_itself() -> None:
    zeros = torch.zeros(2, 3)

    assert Measure(kind="embedding").divergences(zeros, zeros)[0].tolist() == [0.0, 0.0]
    assert Measure(kind="embedding").divergences(zeros, torch.eye(3)[:2])[0].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_divergence_of_values_is_relative(dtype: torch.dtype) -> None:
    one, other = (
        torch.tensor([[1.0, 2.0], [2.0, 0.0]], dtype=dtype),
        torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=dtype),
    )
    found, divisor = Measure(kind="regression").divergences(one, other)

    assert (found.tolist(), divisor) == ([1.0, 4.0], 9.0)
    assert Measure(kind="regression").divergences(one * 0, other)[1] == 1.0


def test_agreement_is_row_by_row() -> None:
    one = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])

    assert Measure(kind="classification").agreement(one, one.flip(2)).tolist() == [False, False]
    assert Measure(kind="classification").agreement(one, 2 * one).tolist() == [True, True]


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


ONE, TWO = torch.ones(2, 3), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("output", "found", "named"),
    [
        (ONE, ONE, ""),
        ((ONE, TWO), ONE, ""),
        ([torch.arange(3), None, (TWO, ONE)], TWO, ""),
        ({"loss": torch.tensor(1.0), "hidden": TWO, "logits": ONE}, ONE, "logits"),
        (OrderedDict(scores=TWO, more=ONE), TWO, "scores"),
        ({"logits": (TWO, ONE)}, TWO, "logits"),
        ({"logits": None, "other": ONE}, ONE, "other"),
        ((torch.empty(0, 3), ONE), ONE, ""),
    ],
)
def test_the_tensor_that_counts_is_found(output: Any, found: Tensor, named: str) -> None:
    assert primary(output)[0] is found
    assert primary(output)[1] == named


def test_packed_sequences_are_compared_by_their_data() -> None:
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])

    assert primary((packed, None))[0] is packed.data


@pytest.mark.parametrize("output", [None, "text", torch.arange(3), {}, (), torch.tensor(1.0), {"a": [1, 2]}])
def test_an_output_without_numbers_is_refused(output: Any) -> None:
    with pytest.raises(
        CalibrationError,
        match=rf"the model: an output of {type(output).__name__}; there is no tensor of floating point numbers in it "
        r"to compare\. Wrap the model in a module that returns one\.",
    ):
        primary(output)
