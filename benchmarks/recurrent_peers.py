"""LSTM loops with the Linear layers of other tools."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, util
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import chain, with_tensorly_torch
from mpocompress import MPO

Product = Callable[[Tensor], Tensor]
"""Inputs of shape (batch, columns) to outputs of shape (batch, rows), without a bias."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One tool.

    Args:
        name: Name in the tables.
        module: Module that must be importable.
        distribution: Package that contains it.
        product: An MPO with aligned rows -> a layer of the tool with its cores.
    """

    name: str
    module: str
    distribution: str
    product: Callable[[MPO], Product]

    @property
    def missing(self) -> str:
        """Why the tool is not measured; empty if it is."""
        return "" if util.find_spec(self.module) else f"not installed (pip install {self.distribution})"


class PeerLSTM(nn.Module):
    """An LSTM as a plain loop; the input product is computed for all steps at once.

    Args:
        input_product: Input-to-hidden product of a tool.
        hidden_product: Hidden-to-hidden product of the same tool.
        bias: The sum of both biases.
    """

    def __init__(self, input_product: Product, hidden_product: Product, bias: Tensor) -> None:
        super().__init__()
        self.input_product, self.hidden_product, self.summed_bias = input_product, hidden_product, bias

    def forward(
        self,
        inputs: Tensor,  # shape: (length, batch, inputs)
        states: tuple[Tensor, Tensor],  # each of shape: (1, batch, hidden)
    ) -> Tensor:  # shape: (length, batch, hidden)
        """The outputs of all steps."""
        length, batch, _ = inputs.shape
        hidden, cell = states[0][0], states[1][0]
        given = self.input_product(inputs.reshape(length * batch, -1)).reshape(length, batch, -1) + self.summed_bias
        outputs = []
        for step in given:
            into, forget, new, out = (step + self.hidden_product(hidden)).chunk(4, dim=1)
            cell = forget.sigmoid() * cell + into.sigmoid() * new.tanh()
            hidden = out.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return torch.stack(outputs)


def tensorly_torch(mpo: MPO, implementation: str) -> Product:
    """FactorizedLinear of tensorly-torch, which holds a BlockTT."""
    sites = mpo.sites
    tensor = with_tensorly_torch(mpo.to_matrix(), sites, max(mpo.bonds))
    layer: Product = import_module("tltorch").FactorizedLinear(
        sites.col_dims, sites.row_dims, bias=False, factorization=tensor, implementation=implementation
    )
    return layer


def torch_mpo(mpo: MPO) -> Product:
    """TTLinear of torch-mpo, which flattens a core (left_bond, row, right_bond, col) to a matrix."""
    sites = mpo.sites
    layer: Any = import_module("torch_mpo").TTLinear(
        sites.shape[1],
        sites.shape[0],
        inp_modes=list(sites.col_dims),
        out_modes=list(sites.row_dims),
        tt_ranks=chain(sites, max(mpo.bonds)),
        bias=False,
    )
    flat = (core.permute(0, 1, 3, 2).reshape(core.shape[0] * core.shape[1], -1) for core in mpo.cores)
    layer.cores = nn.ParameterList(map(nn.Parameter, flat))
    product: Product = layer
    return product


def torchtt(mpo: MPO) -> Product:
    """LinearLayerTT of torchTT, whose inputs and outputs have one dimension per site."""
    sites = mpo.sites
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its optional C++ part, which the layer does not use, is not there
        made = import_module("torchtt.nn").LinearLayerTT
    layer: Any = made(list(sites.col_dims), list(sites.row_dims), chain(sites, max(mpo.bonds)))
    layer.cores = nn.ParameterList(map(nn.Parameter, mpo.cores))
    return lambda inputs: layer(inputs.reshape(-1, *sites.col_dims)).reshape(len(inputs), -1)


PEERS: Sequence[Peer] = (
    Peer(
        name="tensorly-torch, factorized",
        module="tltorch",
        distribution="tensorly-torch",
        product=lambda mpo: tensorly_torch(mpo, "factorized"),
    ),
    Peer(
        name="tensorly-torch, reconstructed",
        module="tltorch",
        distribution="tensorly-torch",
        product=lambda mpo: tensorly_torch(mpo, "reconstructed"),
    ),
    Peer(name="torch-mpo", module="torch_mpo", distribution="torch-mpo", product=torch_mpo),
    Peer(name="torchTT", module="torchtt", distribution="torchTT", product=torchtt),
)
