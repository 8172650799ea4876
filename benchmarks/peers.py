"""The tools that are compared: each takes a matrix, its sites and a bond, and gives back cores."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata, util
from typing import Any

import tensorly as tl
import torch
from tensorly.decomposition import tensor_train_matrix
from torch import Tensor

from mpocompress import Sites, Truncation, __version__, decompose

OURS, BASELINE, EXACT = "mpocompress", "tensorly", "torch.linalg.svd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One tool.

    Args:
        name: name in the tables.
        module: what has to be importable; None when it always is.
        distribution: the package whose version is shown.
        decompose: (weight, sites, bond) -> the tool's own value; this is what is timed.
        cores: (that value, sites) -> one core a site, of shape (left_bond, row, col, right_bond); not timed.
    """

    name: str
    distribution: str
    module: str | None = None
    decompose: Callable[[Tensor, Sites, int], Any]
    cores: Callable[[Any, Sites], Sequence[Tensor]]

    @property
    def missing(self) -> str | None:
        """Why the tool cannot take part, in words; None when it can."""
        if self.module is None or util.find_spec(self.module):
            return None
        return f"not installed (pip install {self.distribution})"

    @property
    def version(self) -> str | None:
        """Version of the package; None when it is not installed."""
        if self.missing:
            return None
        return f"{self.distribution} {__version__ if self.name == OURS else metadata.version(self.distribution)}"


def chain(sites: Sites, bond: int) -> list[int]:
    """Bonds of an MPO, the outer ones included; a new list, because tensorly changes the one it is given."""
    return [1, *sites.capped(bond), 1]


def with_mpocompress(weight: Tensor, sites: Sites, bond: int) -> Any:
    return decompose(weight, truncation=Truncation(max_bond=bond), sites=sites)


def with_tensorly(weight: Tensor, sites: Sites, bond: int) -> Any:
    with tl.backend_context("pytorch", local_threadsafe=True):
        return tensor_train_matrix(weight.reshape(*sites.row_dims, *sites.col_dims), chain(sites, bond))


def with_torch_svd(weight: Tensor, sites: Sites, bond: int) -> list[Tensor]:
    """The textbook sweep: full SVD of every unfolding, the largest triplets kept."""
    count = len(sites.row_dims)
    axes = [axis for site in range(count) for axis in (site, count + site)]
    rest, left, cores = weight.reshape(*sites.row_dims, *sites.col_dims).permute(axes), 1, []
    for row, col, right in zip(sites.row_dims[:-1], sites.col_dims[:-1], sites.capped(bond), strict=True):
        u, s, v = torch.linalg.svd(rest.reshape(left * row * col, -1), full_matrices=False)
        cores.append(u[:, :right].reshape(left, row, col, right))
        rest, left = s[:right, None] * v[:right], right
    return [*cores, rest.reshape(left, sites.row_dims[-1], sites.col_dims[-1], 1)]


def with_tensorly_torch(weight: Tensor, sites: Sites, bond: int) -> Any:
    tensorized = import_module("tltorch").TensorizedTensor
    return tensorized.from_matrix(weight, sites.row_dims, sites.col_dims, chain(sites, bond), factorization="blocktt")


def with_torch_mpo(weight: Tensor, sites: Sites, bond: int) -> Any:
    matrix_tt_svd = import_module("torch_mpo.decomposition").matrix_tt_svd
    return matrix_tt_svd(weight, list(sites.col_dims), list(sites.row_dims), chain(sites, bond))


def with_torchtt(weight: Tensor, sites: Sites, bond: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its optional C++ part, which no decomposition uses, is not there
        tt = import_module("torchtt").TT
    digits = weight.reshape(*sites.row_dims, *sites.col_dims)
    return tt(digits, list(zip(sites.row_dims, sites.col_dims, strict=True)), rmax=chain(sites, bond))


def torch_mpo_cores(value: Sequence[Tensor], sites: Sites) -> list[Tensor]:
    """torch-mpo flattens a core (left_bond, row, right_bond, col) to a matrix."""
    cores: list[Tensor] = []
    for flat, row, col in zip(value, sites.row_dims, sites.col_dims, strict=True):
        cores.append(flat.reshape(flat.shape[0] // row, row, flat.shape[1] // col, col).permute(0, 1, 3, 2))
    return cores


CONTENDERS = (
    Contender(
        name=OURS,
        distribution="mpocompress",
        decompose=with_mpocompress,
        cores=lambda value, _sites: value.cores,
    ),
    Contender(
        name=BASELINE,
        distribution="tensorly",
        decompose=with_tensorly,
        cores=lambda value, _sites: value.factors,
    ),
    Contender(
        name=EXACT,
        distribution="torch",
        decompose=with_torch_svd,
        cores=lambda value, _sites: value,
    ),
    Contender(
        name="tensorly-torch",
        distribution="tensorly-torch",
        module="tltorch",
        decompose=with_tensorly_torch,
        cores=lambda value, _sites: [factor.detach() for factor in value.factors],
    ),
    Contender(
        name="torch-mpo",
        distribution="torch-mpo",
        module="torch_mpo",
        decompose=with_torch_mpo,
        cores=torch_mpo_cores,
    ),
    Contender(
        name="torchTT",
        distribution="torchTT",
        module="torchtt",
        decompose=with_torchtt,
        cores=lambda value, _sites: value.cores,
    ),
)
"""The fast one first: a slow one makes those before it run again."""
