"""Metrics: errors against explicit sums, roots against their squares, and moments against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mpocompress.mpo.metric import FULL_ROWS, OUTPUT_FLOOR, Metric, Moments, OutputWeights, scaled, shrunk, whitening
from tests.draw import random_matrix

ROUNDING = 1e-9
"""Products of a few dozen float64 numbers near 1, and roots of eigenvalues that are lifted to 1e-9 of the largest."""

KINDS = ("gaussian", "rank one", "zeros", "single", "negative zero")


def second_moment(cols: int, seed: int, kind: str = "gaussian", scale: float = 1.0) -> Tensor:
    """The second moment of some inputs, exactly or nearly singular for most kinds."""
    samples = {"gaussian": 4 * cols, "rank one": 1, "zeros": 1, "single": 1, "negative zero": 1}[kind]
    inputs = random_matrix(samples, cols, seed) * (0.0 if kind == "zeros" else scale)
    second = inputs.T @ inputs / samples
    if kind == "single":
        return second - torch.outer(inputs[0], inputs[0])  # rounding alone
    return -1e-18 * torch.eye(cols, dtype=torch.float64) if kind == "negative zero" else second


def metric_of(rows: int, cols: int, seed: int, *, full: bool = True) -> Metric:
    gradients = random_matrix(3 * rows, rows, seed + 1)
    moment = gradients.T @ gradients / len(gradients)
    inputs = random_matrix(5 * cols, cols, seed + 2) + 0.5
    return Metric(
        second=inputs.T @ inputs / len(inputs),
        mean=inputs.mean(dim=0),
        outputs=OutputWeights(moment if full else moment.diagonal()),
        count=len(inputs),
    )


@given(
    st.integers(1, 12), st.integers(0, 50), st.sampled_from(KINDS), st.sampled_from([1e-120, 1e-30, 1.0, 1e30, 1e70])
)
def test_any_second_moment_can_be_whitened(cols: int, seed: int, kind: str, scale: float) -> None:
    second = shrunk(second_moment(cols, seed, kind, scale), 1)
    root, inverse = whitening(second)

    assert root.isfinite().all()
    assert inverse.isfinite().all()
    torch.testing.assert_close(root @ inverse, torch.eye(cols).double(), rtol=0.0, atol=1e-7)
    torch.testing.assert_close(root @ root, second, rtol=0.0, atol=ROUNDING * float(second.abs().max()))


def test_where_nothing_varies_all_inputs_count_alike() -> None:
    assert shrunk(torch.zeros(3, 3), 5).equal(torch.eye(3))
    assert shrunk(-torch.eye(3), 5).equal(torch.eye(3))


def test_shrinking_leaves_its_argument_alone_and_fades_with_samples() -> None:
    second = second_moment(4, 0)
    before = second.clone()
    few, many = shrunk(second, 1), shrunk(second, 10**9)

    assert second.equal(before)
    share = (few - second).diagonal() / second.diagonal().mean()
    torch.testing.assert_close(share, torch.full((4,), 1e-5 + 1e-3, dtype=torch.float64), rtol=ROUNDING, atol=0.0)
    torch.testing.assert_close(many, second, rtol=0.0, atol=2e-5 * float(second.diagonal().mean()))
    assert few.equal(few.T)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 50), st.booleans(), st.booleans())
def test_the_relative_error_is_the_explicit_sum(rows: int, cols: int, seed: int, full: bool, centred: bool) -> None:
    metric = metric_of(rows, cols, seed, full=full)
    weight, other = random_matrix(rows, cols, seed + 3), random_matrix(rows, cols, seed + 4)
    moment = metric.outputs.moment if full else torch.diag(metric.outputs.moment)
    g = moment + OUTPUT_FLOOR * float(moment.diagonal().mean()) * torch.eye(rows)
    c = metric.second - (torch.outer(metric.mean, metric.mean) if centred else 0.0)
    c = c + (1e-5 + 1e-3 / 5) * float(c.diagonal().mean()) * torch.eye(cols)

    def whole(matrix: Tensor) -> float:
        sides = range(rows), range(rows), range(cols), range(cols)
        return sum(
            float(g[i, j] * matrix[j, k] * c[k, m] * matrix[i, m])
            for i in sides[0]
            for j in sides[1]
            for k in sides[2]
            for m in sides[3]
        )

    expected = math.sqrt(whole(weight - other) / whole(weight))
    assert metric.relative_error(weight, other, centred=centred) == pytest.approx(expected, rel=1e-8)
    assert metric.relative_error(weight, weight, centred=centred) == 0.0
    assert metric.relative_error(weight, torch.zeros_like(weight)) == pytest.approx(1.0)


def test_the_error_against_nothing_is_no_quotient() -> None:
    metric = metric_of(2, 3, 0)

    assert metric.relative_error(torch.zeros(2, 3), torch.zeros(2, 3)) == 0.0
    assert metric.relative_error(torch.zeros(2, 3), torch.ones(2, 3)) > 0.0


@given(st.integers(1, 8), st.integers(0, 50))
def test_a_diagonal_is_a_full_one_with_zeros(rows: int, seed: int) -> None:
    diagonal = random_matrix(1, rows, seed)[0].square()
    matrix = random_matrix(rows, 3, seed + 1)
    short_weights, full_weights = OutputWeights(diagonal), OutputWeights(torch.diag(diagonal))

    torch.testing.assert_close(short_weights.times(matrix), full_weights.times(matrix), rtol=ROUNDING, atol=1e-12)
    for short, full in zip(short_weights.roots, full_weights.roots, strict=True):
        torch.testing.assert_close(torch.diag(short), full, rtol=1e-7, atol=1e-7 * float(short.max()))
    assert short_weights.scale == pytest.approx(full_weights.scale)
    assert short_weights.floored.min() > 0.0
    torch.testing.assert_close(
        scaled(short_weights.roots[0], scaled(short_weights.roots[0], matrix)), short_weights.times(matrix)
    )


def test_columns_share_memory_and_keep_what_is_felt() -> None:
    metric = metric_of(3, 6, 0)
    part = metric.columns(2, 5)

    assert part.second.data_ptr() == metric.second[2, 2].data_ptr()
    assert part.second.equal(metric.second[2:5, 2:5])
    assert part.mean.equal(metric.mean[2:5])
    assert part.outputs is metric.outputs
    assert part.count == metric.count


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("samples", [1, 3, 40])
def test_moments_are_those_of_numpy(dtype: torch.dtype, samples: int) -> None:
    inputs, gradients = random_matrix(samples, 7, 0).to(dtype), random_matrix(samples, 5, 1).to(dtype)
    moments = Moments(5, 7)
    for part in range(0, samples, 2):
        moments.add_inputs(inputs[part : part + 2])
        moments.add_gradients(gradients[part : part + 2])
    metric = moments.metric()

    x, g = inputs.double().numpy(), gradients.double().numpy()
    np.testing.assert_allclose(metric.second, x.T @ x / samples, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(metric.mean, x.mean(axis=0), rtol=1e-12, atol=1e-14)
    share = samples / (samples + 5)  # what is off the diagonal of few samples is mostly chance
    wanted = share * g.T @ g + (1 - share) * np.diag(np.diag(g.T @ g))
    np.testing.assert_allclose(metric.outputs.moment, wanted, rtol=1e-12, atol=1e-14)
    assert (metric.count, moments.gradient_count, moments.is_sound) == (samples, samples, True)


def test_fewer_samples_than_inputs_give_a_metric_all_the_same() -> None:
    moments = Moments(3, 20)
    moments.add_inputs(random_matrix(4, 20, 0))
    metric = moments.metric()

    assert torch.linalg.eigvalsh(metric.inputs(centred=True))[0] > 0.0
    assert metric.relative_error(torch.ones(3, 20), torch.zeros(3, 20), centred=True) == pytest.approx(1.0)


def test_half_precision_is_summed_in_float64() -> None:
    moments = Moments(1, 2)
    moments.add_inputs(torch.full((8, 2), 300.0, dtype=torch.float16))  # 90,000 is more than float16 has

    assert moments.metric().second.equal(torch.full((2, 2), 90_000.0, dtype=torch.float64))


def test_of_many_outputs_the_diagonal_is_kept() -> None:
    moments = Moments(FULL_ROWS + 1, 1)
    moments.add_inputs(torch.ones(1, 1))
    moments.add_gradients(2 * torch.ones(3, FULL_ROWS + 1))

    assert moments.metric().outputs.moment.equal(torch.full((FULL_ROWS + 1,), 12.0, dtype=torch.float64))


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_without_usable_gradients_every_output_counts_alike(bad: float) -> None:
    moments = Moments(3, 2)
    moments.add_inputs(torch.ones(4, 2))
    moments.add_gradients(torch.full((4, 3), bad))

    assert moments.metric().outputs.moment.equal(torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_inputs_that_are_not_finite_are_not_sound(bad: float) -> None:
    moments = Moments(1, 2)
    assert not moments.is_sound
    moments.add_inputs(torch.tensor([[1.0, bad]]))
    assert not moments.is_sound
