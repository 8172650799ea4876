"""The decomposition tools: each decomposes a matrix for given sites and a maximum bond and returns cores."""

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
        name: Name in the tables.
        module: Module that must be importable, or None.
        distribution: Package whose version is shown.
        decompose: (weight, sites, bond) -> the tool's own result; this call is timed.
        cores: (result, sites) -> one core per site, of shape (left_bond, row, col, right_bond); not timed.
    """

    name: str
    distribution: str
    module: str | None = None
    decompose: Callable[[Tensor, Sites, int], Any]
    cores: Callable[[Any, Sites], Sequence[Tensor]]

    @property
    def missing(self) -> str | None:
        """Why the tool is not measured, or None."""
        if self.module is None or util.find_spec(self.module):
            return None
        return f"not installed (pip install {self.distribution})"

    @property
    def version(self) -> str | None:
        """Name and version of the package; None if it is not installed."""
        if self.missing:
            return None
        return f"{self.distribution} {__version__ if self.name == OURS else metadata.version(self.distribution)}"


def chain(sites: Sites, bond: int) -> list[int]:
    """Bonds of an MPO including the outer ones; a new list, because tensorly modifies it."""
    return [1, *sites.capped(bond), 1]


def with_mpocompress(weight: Tensor, sites: Sites, bond: int) -> Any:
    return decompose(weight, truncation=Truncation(max_bond=bond), sites=sites)


def with_tensorly(weight: Tensor, sites: Sites, bond: int) -> Any:
    with tl.backend_context("pytorch", local_threadsafe=True):
        return tensor_train_matrix(weight.reshape(*sites.row_dims, *sites.col_dims), chain(sites, bond))


def with_torch_svd(weight: Tensor, sites: Sites, bond: int) -> list[Tensor]:
    """A sweep with the full SVD of every unfolding that keeps the largest triplets."""
    count = len(sites.row_dims)
    axes = [axis for site in range(count) for axis in (site, count + site)]
    remainder, left_bond, cores = weight.reshape(*sites.row_dims, *sites.col_dims).permute(axes), 1, []
    for row, col, right_bond in zip(sites.row_dims[:-1], sites.col_dims[:-1], sites.capped(bond), strict=True):
        u, s, v = torch.linalg.svd(remainder.reshape(left_bond * row * col, -1), full_matrices=False)
        cores.append(u[:, :right_bond].reshape(left_bond, row, col, right_bond))
        remainder, left_bond = s[:right_bond, None] * v[:right_bond], right_bond
    return [*cores, remainder.reshape(left_bond, sites.row_dims[-1], sites.col_dims[-1], 1)]


def with_tensorly_torch(weight: Tensor, sites: Sites, bond: int) -> Any:
    tensorized = import_module("tltorch").TensorizedTensor
    return tensorized.from_matrix(weight, sites.row_dims, sites.col_dims, chain(sites, bond), factorization="blocktt")


def with_torch_mpo(weight: Tensor, sites: Sites, bond: int) -> Any:
    matrix_tt_svd = import_module("torch_mpo.decomposition").matrix_tt_svd
    return matrix_tt_svd(weight, list(sites.col_dims), list(sites.row_dims), chain(sites, bond))


def with_torchtt(weight: Tensor, sites: Sites, bond: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its optional C++ extension, which no decomposition uses
        tt = import_module("torchtt").TT
    indices = weight.reshape(*sites.row_dims, *sites.col_dims)
    return tt(indices, list(zip(sites.row_dims, sites.col_dims, strict=True)), rmax=chain(sites, bond))


def torch_mpo_cores(value: Sequence[Tensor], sites: Sites) -> list[Tensor]:
    """The cores of torch-mpo, which flattens a core (left_bond, row, right_bond, col) to a matrix."""
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
