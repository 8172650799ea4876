"""What Hypothesis draws: site shapes, matrices and dtypes; and how exact a computation in a dtype can be."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from mpocompress.mpo.sites import Sites

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
"""Distance from 1 to the next number: rounding once moves an entry by at most half of it, relatively."""

COMPUTED = (torch.float32, torch.float64)
"""The dtypes that are computed in; half types are widened first."""

KINDS = ("gaussian", "decaying", "rank one", "zeros", "sparse")


@st.composite
def site_shapes(draw: st.DrawFn, most_sites: int = 4, most: int = 5) -> Sites:
    """Two to `most_sites` sites with dims from 1, in both row orders."""
    count = draw(st.integers(2, most_sites))
    dims = st.lists(st.integers(1, most), min_size=count, max_size=count)
    return Sites(row_dims=tuple(draw(dims)), col_dims=tuple(draw(dims)), anti_aligned=draw(st.booleans()))


def random_matrix(rows: int, cols: int, seed: int, kind: str = "gaussian") -> Tensor:
    """A float64 matrix of a kind, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
    if kind == "zeros":
        return torch.zeros_like(matrix)
    if kind == "rank one":
        return matrix[:, :1] @ matrix[:1]
    if kind == "sparse":
        return matrix * (torch.rand(rows, cols, generator=generator) < 0.2)
    if kind == "decaying":
        return decaying(rows, cols, seed)
    return matrix


def decaying(rows: int, cols: int, seed: int, base: float = 0.5) -> Tensor:
    """A float64 matrix with singular values 1, base, base squared, ..."""
    generator = torch.Generator().manual_seed(seed)
    short = min(rows, cols)
    left = torch.linalg.qr(torch.randn(rows, short, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(cols, short, generator=generator, dtype=torch.float64))[0]
    values = torch.full((short,), base, dtype=torch.float64).pow(torch.arange(short))
    return torch.einsum("ik,k,jk->ij", left, values, right)


@st.composite
def shaped_matrices(
    draw: st.DrawFn, most_sites: int = 4, dtypes: tuple[torch.dtype, ...] = COMPUTED
) -> tuple[Tensor, Sites]:
    """A matrix with a site shape that fits it."""
    sites = draw(site_shapes(most_sites))
    matrix = random_matrix(*sites.shape, seed=draw(st.integers(0, 99)), kind=draw(st.sampled_from(KINDS)))
    return matrix.to(draw(st.sampled_from(dtypes))), sites
