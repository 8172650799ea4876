"""The best product in a metric: its errors against those predicted, and against every other matrix of the same rank."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mpocompress.mpo.metric import OutputWeights, shrunk
from mpocompress.mpo.weighted_svd import WeightedProduct, weighted_product
from tests.draw import KINDS, random_matrix

EXACT = 1e-6
"""Squares of singular values come from a Gram matrix in float64, as shares of the largest; a root makes them 1e-7."""


def square(matrix: Tensor, second: Tensor, outputs: OutputWeights) -> float:
    """The trace of G E C E'."""
    return float((outputs.floored @ matrix @ second @ matrix.T).diagonal().sum())


def drawn(rows: int, cols: int, seed: int, kind: str = "gaussian") -> tuple[Tensor, Tensor, OutputWeights]:
    inputs = random_matrix(2 * cols, cols, seed + 1) * torch.logspace(0, -2, cols)
    gradients = random_matrix(2 * rows, rows, seed + 2) * torch.logspace(-1, 1, rows)
    outputs = OutputWeights(gradients.T @ gradients)
    return random_matrix(rows, cols, seed, kind), shrunk(inputs.T @ inputs / len(inputs), len(inputs)), outputs


problems = st.builds(drawn, st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.sampled_from(KINDS))


@given(problems)
def test_every_bond_loses_what_was_said_and_the_full_one_nothing(problem: tuple[Tensor, Tensor, OutputWeights]) -> None:
    weight, second, outputs = problem
    product = weighted_product(weight, second, outputs)
    whole = square(weight, second, outputs)

    assert product.total == pytest.approx(whole, rel=EXACT)
    assert len(product.tails) == min(weight.shape) + 1
    for bond, tail in enumerate(product.tails):
        lost = square(weight - product.matrix(bond), second, outputs)
        assert lost == pytest.approx(tail * whole, abs=EXACT * whole)
    torch.testing.assert_close(product.matrix(min(weight.shape)), weight, rtol=EXACT, atol=EXACT)
    assert product.tails[-1] == 0.0
    assert all(tail >= later for tail, later in zip(product.tails, product.tails[1:], strict=False))


@given(problems, st.integers(1, 8), st.integers(0, 99))
def test_no_other_matrix_of_the_rank_is_better(
    problem: tuple[Tensor, Tensor, OutputWeights], bond: int, seed: int
) -> None:
    weight, second, outputs = problem
    rows, cols = weight.shape
    bond = min(bond, rows, cols)
    whole = square(weight, second, outputs)
    best = weighted_product(weight, second, outputs).tails[bond] * whole
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    right = random_matrix(bond, cols, seed)
    gram = right @ second @ right.T
    others = [
        (u[:, :bond] * s[:bond]) @ v[:bond],
        random_matrix(rows, bond, seed + 1) @ right,
        torch.linalg.lstsq(gram, (weight @ second @ right.T).T).solution.T
        @ right,  # the best left side of that right one
    ]

    for other in others:
        assert best <= square(weight - other, second, outputs) + EXACT * whole


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.sampled_from(KINDS))
def test_in_the_plain_metric_it_is_the_truncated_svd(rows: int, cols: int, seed: int, kind: str) -> None:
    weight = random_matrix(rows, cols, seed, kind)
    product = weighted_product(weight, torch.eye(cols), OutputWeights(torch.ones(rows)))
    values = torch.linalg.svdvals(weight)

    whole = float(values.square().sum())
    for bond in range(len(values) + 1):
        lost = float((weight - product.matrix(bond)).square().sum())
        assert lost == pytest.approx(float(values[bond:].square().sum()), abs=EXACT * max(whole, 1.0))


@given(problems, st.integers(1, 8))
def test_cores_multiply_out_to_it_and_are_of_one_size(problem: tuple[Tensor, Tensor, OutputWeights], bond: int) -> None:
    product = weighted_product(*problem)
    bond = min(bond, *problem[0].shape)
    mpo = product.mpo(bond)
    left, right = (torch.linalg.vector_norm(core, dim=dim) for core, dim in zip(mpo.cores, (1, 2), strict=True))

    assert mpo.bonds == (bond,)
    torch.testing.assert_close(mpo.to_matrix(), product.matrix(bond), rtol=EXACT, atol=EXACT)
    for a, b in zip(left.flatten().tolist(), right.flatten().tolist(), strict=True):
        assert a == pytest.approx(b, rel=1e-9) or min(a, b) == 0.0


@pytest.mark.parametrize("scale", [1e-60, 1e-20, 1e20, 1e60])
def test_the_size_of_anything_changes_nothing(scale: float) -> None:
    weight, second, outputs = drawn(5, 7, 3)
    plain = weighted_product(weight, second, outputs)
    other_product = weighted_product(weight * scale, second * scale, OutputWeights(outputs.moment * scale))

    assert other_product.tails == pytest.approx(plain.tails, abs=EXACT)
    torch.testing.assert_close(other_product.matrix(3) / scale, plain.matrix(3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (4, 4)])
def test_nothing_is_a_product_of_nothing(shape: tuple[int, int]) -> None:
    other_product = weighted_product(torch.zeros(shape), torch.eye(shape[1]), OutputWeights(torch.ones(shape[0])))

    assert other_product.total == 0.0
    assert not other_product.tails.any()
    assert other_product.mpo(1).to_matrix().equal(torch.zeros(shape, dtype=torch.float64))


def test_half_precision_is_widened() -> None:
    weight, second, outputs = drawn(6, 6, 1)
    other_product: WeightedProduct = weighted_product(weight.half(), second, outputs)

    assert other_product.left.dtype == torch.float64
    assert math.isclose(other_product.tails[0], 1.0)
    torch.testing.assert_close(other_product.matrix(6), weight.half().double(), rtol=EXACT, atol=EXACT)
