"""Our LSTM beside LSTM loops of other tools that hold the same cores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.drawn import lstm_twins, random_mpo, with_weights
from benchmarks.recurrent_peers import PEERS, PeerLSTM
from mpocompress import MPO, Sites
from mpocompress.benchmarking.comparison import Conditions
from mpocompress.benchmarking.contenders import (
    Contender,
    RunModule,
    compressed_contender,
    dense_contenders,
    largest_difference,
    module_bytes,
    time_contenders,
)
from mpocompress.benchmarking.layers import random_inputs
from mpocompress.benchmarking.stored_layers import LayerPair
from mpocompress.reports.benchmark import Case

OURS, OURS_ALIGNED = "mpocompress", "mpocompress, cores of the others"


def peer_case(hidden: int, batch: int, length: int, bond: int, conditions: Conditions) -> Case:
    """Measure an LSTM whose two weights are balanced MPOs with two sites.

    All tools hold the same cores, in tensorly's order of the rows. Our layer is measured with those cores and with its
    own order. Differences are to the dense LSTM of the same cores.

    Args:
        hidden: Hidden units, and inputs.
        batch: Sequences in the batch.
        length: Steps per sequence.
        bond: Maximum bond.
        conditions: Conditions of the measurement.
    """
    own = lstm_twins(hidden, "balanced", bond, joint=False)
    aligned = {
        name: random_mpo(Sites(row_dims=mpo.sites.row_dims, col_dims=mpo.sites.col_dims), bond, seed)
        for seed, (name, mpo) in enumerate(own.mpos.items())
    }
    dense = with_weights(nn.LSTM(hidden, hidden), {name: mpo.to_matrix() for name, mpo in aligned.items()})
    same = LayerPair(dense=dense, mpos=aligned)
    feed, _ = random_inputs(dense, batch, length, conditions.device)
    ours = own.compressed("auto")
    with torch.inference_mode():
        apart = largest_difference(feed(ours), feed(own.dense))
        state = dense.state_dict()
        bias = state["bias_ih_l0"] + state["bias_hh_l0"]
        loops = _loops(aligned["weight_ih_l0"], aligned["weight_hh_l0"], bias, feed)
    contenders = (
        *dense_contenders(dense, feed),
        dataclasses.replace(compressed_contender(ours, feed, "auto"), name=OURS),
        dataclasses.replace(compressed_contender(same.compressed("auto"), feed, "auto"), name=OURS_ALIGNED),
        *loops,
    )
    timed = time_contenders(
        contenders, repeats=conditions.repeats, device=conditions.device, budget_s=conditions.budget_s
    )
    return Case(
        batch=batch,
        length=length,
        contenders=tuple(
            dataclasses.replace(one, largest_difference=apart) if one.name == OURS else one for one in timed
        ),
    )


def _loops(inputs: MPO, hidden: MPO, bias: Tensor, feed: RunModule) -> list[Contender]:
    """One contender per tool; a tool that is not installed has a reason."""
    loops = []
    for peer in PEERS:
        run: Callable[[], object] = int
        size_bytes: Callable[[], int] = int
        if not peer.missing:
            loop = PeerLSTM(peer.product(inputs), peer.product(hidden), bias)
            run, size_bytes = partial(feed, loop), partial(_cores_and_bias, inputs, hidden, bias)
        loops.append(
            Contender(name=peer.name, kind="compressed", run=run, size_bytes=size_bytes, unavailable=peer.missing)
        )
    return loops


def _cores_and_bias(inputs: MPO, hidden: MPO, bias: Tensor) -> int:
    """Bytes that every tool holds."""
    return module_bytes(nn.ParameterList(core for mpo in (inputs, hidden) for core in mpo.cores)) + 4 * bias.numel()
