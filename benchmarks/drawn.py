"""Layers with random cores, dense and compressed, for measuring speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from mpocompress import MPO, Sites
from mpocompress.benchmarking.stored_layers import LayerPair
from mpocompress.mpo.sites import balanced, folded, low_rank

SEED = 0
GATES = 4


def split_8(rows: int, cols: int) -> Sites:
    """Row dims (M/8, 8), col dims (8, N/8)."""
    return folded(rows, cols, 8, 8)


def balanced_2(rows: int, cols: int) -> Sites:
    """Two sites, both sides factored as evenly as their divisors permit."""
    return balanced(rows, cols, 2)


SHAPES: Mapping[str, Callable[[int, int], Sites]] = {
    "low rank": low_rank,
    "split 8": split_8,
    "balanced": balanced_2,
}


def random_mpo(sites: Sites, bond: int, seed: int = SEED) -> MPO:
    """Gaussian float32 cores whose product preserves the norm of its inputs: entries of variance 1 / columns."""
    generator = torch.Generator().manual_seed(seed)
    bonds = sites.capped(bond)
    chain = (1, *bonds, 1)
    scale = (sites.shape[1] * math.prod(bonds)) ** (-0.5 / len(sites.dims))
    dims = zip(chain, sites.row_dims, sites.col_dims, chain[1:], strict=False)
    return MPO(cores=tuple(scale * torch.randn(shape, generator=generator) for shape in dims), sites=sites)


def lstm_twins(hidden: int, shape: str, bond: int, *, joint: bool, cell: bool = False) -> LayerPair:
    """A dense LSTM or LSTM cell with as many inputs as hidden units, and the arguments for its compressed twin.

    Args:
        hidden: Hidden units.
        shape: A site shape of `SHAPES`, for every matrix.
        bond: Maximum bond.
        joint: Whether both weights are one matrix.
        cell: Whether it is a cell.
    """
    end, rows = "" if cell else "_l0", GATES * hidden
    sites = SHAPES[shape]
    if joint:
        mpos = {f"weight_joint{end}": random_mpo(sites(rows, 2 * hidden), bond)}
        parts = torch.split(mpos[f"weight_joint{end}"].to_matrix(), hidden, dim=1)
    else:
        names = (f"weight_ih{end}", f"weight_hh{end}")
        mpos = {name: random_mpo(sites(rows, hidden), bond, seed) for seed, name in enumerate(names)}
        parts = tuple(mpo.to_matrix() for mpo in mpos.values())
    layer = nn.LSTMCell(hidden, hidden) if cell else nn.LSTM(hidden, hidden)
    weights = dict(zip((f"weight_ih{end}", f"weight_hh{end}"), parts, strict=True))
    return LayerPair(dense=with_weights(layer, weights), mpos=mpos)


def linear_twins(rows: int, cols: int, shape: str, bond: int) -> LayerPair:
    """A dense Linear layer and the arguments for its compressed twin."""
    mpo = random_mpo(SHAPES[shape](rows, cols), bond)
    return LayerPair(dense=with_weights(nn.Linear(cols, rows), {"weight": mpo.to_matrix()}), mpos={"weight": mpo})


def with_weights(layer: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Replace some tensors of a layer in place, set it to evaluation mode, and return it."""
    generator = torch.Generator().manual_seed(SEED)
    noise = {
        name: 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in layer.state_dict().items()
        if name not in weights
    }
    layer.load_state_dict({**noise, **{name: tensor.contiguous() for name, tensor in weights.items()}}, assign=True)
    return layer.eval()


LSTM_TWINS = {"separate": partial(lstm_twins, joint=False), "joint": partial(lstm_twins, joint=True)}
"""By the form in which both weights are stored."""
