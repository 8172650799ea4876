"""Which shapes are left, against the survey of all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.sites import Sites, balanced, candidates, folded, low_rank
from mpocompress.planning import shortlist as module
from mpocompress.planning.curves import best_under_cap, competing_shapes, error_curves
from mpocompress.planning.shortlist import shortlist

SHAPES = {"low rank": low_rank(512, 512), "split": folded(512, 512, 4, 4), "balanced": balanced(512, 512, 2)}


def structure(sites: Sites, generator: torch.Generator) -> Tensor:
    """A matrix that an MPO of these two sites and bond 8 holds exactly."""
    (row, more_rows), (col, more_cols) = sites.row_dims, sites.col_dims
    first = torch.randn(1, row, col, 8, generator=generator)
    second = torch.randn(8, more_rows, more_cols, 1, generator=generator)
    return MPO(cores=(first, second), sites=sites).to_matrix()


@pytest.mark.parametrize("kind", [*SHAPES, "noise"])
def test_the_shape_that_the_survey_would_take_is_left(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE_ENTRIES", 0)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(512, 512, generator=generator)
    if kind in SHAPES:
        weight += structure(SHAPES[kind], generator)
    shapes = competing_shapes(candidates(512, 512, "auto"), 8)
    full = best_under_cap(error_curves(weight, shapes, max_bond=8), 8)

    left = shortlist(weight, shapes, 8)

    assert full is not None
    assert full.sites in left
    if kind in SHAPES:
        assert left == (SHAPES[kind],)


@pytest.mark.parametrize(
    ("weight", "kept"),
    [(1.02, ["low rank"]), (0.97, ["low rank", "split"]), (0.9, ["split"])],
    ids=["the first is better", "the second is better by 1 %", "the second is better by 8 %"],
)
def test_shapes_with_similar_errors_are_all_kept(
    weight: float, kept: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sum of two structures each shape fits one, so that their weights set the ratio of the errors."""
    monkeypatch.setattr(module, "LARGE_ENTRIES", 0)
    generator = torch.Generator().manual_seed(1)
    low_rank_part, split_part = (structure(SHAPES[name], generator) for name in ("low rank", "split"))
    matrix = weight * low_rank_part + split_part + torch.randn(512, 512, generator=generator)
    shapes = competing_shapes(candidates(512, 512, "auto"), 8)

    assert shortlist(matrix, shapes, 8) == tuple(SHAPES[name] for name in kept)


def test_a_matrix_that_is_not_large_keeps_its_shapes() -> None:
    shapes = candidates(512, 512, "auto")

    assert shortlist(torch.ones(512, 512), shapes, 8) == shapes
