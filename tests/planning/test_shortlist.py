"""Which shapes are left, against the survey of all of them."""

from __future__ import annotations

import pytest
import torch

from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.sites import balanced, candidates, folded, low_rank
from mpocompress.planning import shortlist as module
from mpocompress.planning.curves import best_under_cap, competing_shapes, error_curves
from mpocompress.planning.shortlist import shortlist

SHAPES = {"low rank": low_rank(512, 512), "split": folded(512, 512, 4, 4), "balanced": balanced(512, 512, 2)}


@pytest.mark.parametrize("kind", [*SHAPES, "noise"])
def test_the_shape_that_the_survey_would_take_is_left(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE_ENTRIES", 0)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(512, 512, generator=generator)
    if kind in SHAPES:
        sites = SHAPES[kind]
        (row, more_rows), (col, more_cols) = sites.row_dims, sites.col_dims
        first = torch.randn(1, row, col, 8, generator=generator)
        second = torch.randn(8, more_rows, more_cols, 1, generator=generator)
        weight += MPO(cores=(first, second), sites=sites).to_matrix()
    shapes = competing_shapes(candidates(512, 512, "auto"), 8)
    full = best_under_cap(error_curves(weight, shapes, max_bond=8), 8)

    left = shortlist(weight, shapes, 8)

    assert full is not None
    assert full.sites in left
    if kind in SHAPES:
        assert left == (SHAPES[kind],)


def test_shapes_too_close_to_tell_are_all_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE_ENTRIES", 0)
    monkeypatch.setattr(module, "_estimated_errors", lambda *_: [0.91, 0.905, 0.9, 0.95, 0.9])
    shapes = competing_shapes(candidates(512, 512, "auto"), 8)

    assert shortlist(torch.ones(512, 512), shapes, 8) == (shapes[0], shapes[1], shapes[2], shapes[4])


def test_a_matrix_that_is_not_large_keeps_its_shapes() -> None:
    shapes = candidates(512, 512, "auto")

    assert shortlist(torch.ones(512, 512), shapes, 8) == shapes
