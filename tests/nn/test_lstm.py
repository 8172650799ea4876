"""MPOLSTM is the LSTM of its dense weights: any sizes, any chains beside any dense weights, any call."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mpocompress.mpo.sites import Sites, balanced, folded, low_rank
from mpocompress.nn import MPOLSTM, Execution, MPOWeight
from tests.draw import EPS
from tests.nn.builders import (
    CONTEXTS,
    FIXED,
    Chain,
    LSTMPlan,
    assert_close,
    assert_is_its_twin,
    called,
    exactly,
    lstm_plans,
    needs_gpu,
    tensors,
    twin_of,
    ways,
)

MIXTURES = {
    "all low rank": {
        "weight_ih_l0": Chain(sites=low_rank(24, 7), bonds=(2,)),
        "weight_hh_l0": Chain(sites=low_rank(24, 6), bonds=(3,)),
        "weight_ih_l1": Chain(sites=low_rank(24, 6), bonds=(5,)),
        "weight_hh_l1": Chain(sites=low_rank(24, 6), bonds=(1,)),
    },
    "joint below, apart above": {
        "weight_joint_l0": Chain(sites=low_rank(24, 13), bonds=(4,)),
        "weight_ih_l1": Chain(sites=balanced(24, 6, 2), bonds=(6,)),
        "weight_hh_l1": Chain(sites=folded(24, 6, 4, 2), bonds=(5,)),
    },
    "apart below, joint above": {
        "weight_ih_l0": Chain(sites=folded(24, 7, 8, 1), bonds=(5,)),
        "weight_hh_l0": Chain(sites=folded(24, 6, 3, 3), bonds=(4,)),
        "weight_joint_l1": Chain(sites=folded(24, 12, 4, 4), bonds=(6,)),
    },
    "dense inputs, cores on states": {
        "weight_hh_l0": Chain(sites=balanced(24, 6, 3), bonds=(3, 3)),
        "weight_hh_l1": Chain(sites=low_rank(24, 6), bonds=(2,)),
    },
    "cores on inputs, dense states": {
        "weight_ih_l0": Chain(sites=low_rank(24, 7), bonds=(3,)),
        "weight_ih_l1": Chain(sites=folded(24, 6, 2, 2), bonds=(4,)),
    },
    "one level dense": {"weight_joint_l1": Chain(sites=folded(24, 12, 2, 6), bonds=(3,))},
    "four sites, aligned": {
        "weight_joint_l1": Chain(sites=Sites(row_dims=(2, 3, 2, 2), col_dims=(3, 1, 2, 2)), bonds=(3, 4, 4)),
    },
}
WAYS = {
    "joint, apart": {
        "weight_joint_l0": Chain(sites=folded(24, 12, 4, 3), bonds=(5,)),
        "weight_ih_l0_reverse": Chain(sites=low_rank(24, 8), bonds=(3,)),
        "weight_hh_l0_reverse": Chain(sites=folded(24, 4, 2, 2), bonds=(4,)),
    },
    "dense, joint": {"weight_joint_l0_reverse": Chain(sites=balanced(24, 12, 3), bonds=(4, 4))},
    "projections alone": {
        "weight_hr_l0": Chain(sites=low_rank(4, 6), bonds=(2,)),
        "weight_hr_l0_reverse": Chain(sites=folded(4, 6, 2, 2), bonds=(3,)),
    },
    "all": {
        "weight_ih_l0": Chain(sites=folded(24, 8, 3, 2), bonds=(3,)),
        "weight_hh_l0": Chain(sites=low_rank(24, 4), bonds=(2,)),
        "weight_hr_l0": Chain(sites=balanced(4, 6, 2), bonds=(3,)),
        "weight_joint_l0_reverse": Chain(sites=folded(24, 12, 8, 1), bonds=(6,)),
        "weight_hr_l0_reverse": Chain(sites=low_rank(4, 6), bonds=(1,)),
    },
}
"""Two directions of 8 inputs, 6 cells and 4 projected states."""


@pytest.mark.usefixtures("sized")
@given(
    plan=lstm_plans(),
    batch=st.one_of(st.none(), st.integers(1, 5)),
    length=st.integers(1, 7),
    states=st.booleans(),
    dtype=st.sampled_from((torch.float64, torch.float32)),
)
def test_it_gives_what_the_dense_lstm_gives(
    plan: LSTMPlan, batch: int | None, length: int, states: bool, dtype: torch.dtype
) -> None:
    assert_is_its_twin(plan.make(dtype), *plan.arguments(batch, length, states, dtype))


def check_mixture(mixture: str, dtype: torch.dtype, device: str) -> None:
    plan = LSTMPlan(input_size=7, hidden_size=6, num_layers=2, chains=MIXTURES[mixture])

    with torch.backends.cudnn.flags(allow_tf32=False):
        assert_is_its_twin(plan.make(dtype, device=device), *plan.arguments(dtype=dtype, device=device))


@pytest.mark.parametrize("dtype", list(EPS))
@pytest.mark.parametrize("mixture", MIXTURES)
def test_any_mixture_of_dense_weights_and_cores(mixture: str, dtype: torch.dtype) -> None:
    check_mixture(mixture, dtype, "cpu")


@needs_gpu
def test_any_mixture_on_a_gpu() -> None:
    for mixture, dtype in product(MIXTURES, EPS):
        check_mixture(mixture, dtype, "cuda")


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("mixture", WAYS)
def test_every_direction_and_projection_has_its_own(mixture: str) -> None:
    plan = LSTMPlan(input_size=8, hidden_size=6, proj_size=4, bidirectional=True, chains=WAYS[mixture])

    assert_is_its_twin(plan.make(), *plan.arguments())


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("row_fold", [1, 2, 3, 4, 6, 8, 24])
def test_column_digits_on_both_sides_of_the_inputs_end(row_fold: int) -> None:
    # 9 inputs and 6 states: digits of 3 end where the inputs end, digits of 5 and 15 hold some of both.
    for col_fold in (1, 3, 5, 15):
        sites = folded(24, 15, row_fold, col_fold)
        chain = Chain(sites=sites, bonds=(min(4, *sites.max_bonds),))
        plan = LSTMPlan(input_size=9, hidden_size=6, chains={"weight_joint_l0": chain})

        assert_is_its_twin(plan.make(), *plan.arguments())


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("row_fold", [1, 2])
@pytest.mark.parametrize(("inputs", "col_fold"), [(6, 2), (12, 3), (3, 3), (18, 4)])
def test_column_digits_that_are_the_states(inputs: int, col_fold: int, row_fold: int) -> None:
    # One digit, or two, for the 6 states alone: by themselves they look like a matrix of another site shape.
    chain = Chain(sites=folded(24, inputs + 6, row_fold, col_fold), bonds=(3,))
    plan = LSTMPlan(input_size=inputs, hidden_size=6, chains={"weight_joint_l0": chain})
    layer = plan.make()

    for batch in (1, 3):
        for length in (1, 4):
            assert_is_its_twin(layer, *plan.arguments(batch, length))


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_steps_with_the_state_carried_on_are_one_sequence(mixture: str, execution: Execution) -> None:
    plan = LSTMPlan(input_size=7, hidden_size=6, num_layers=2, chains=MIXTURES[mixture])
    layer = plan.make(execution=execution)
    x, hx = plan.arguments(length=6)
    exact = exactly(layer, x, hx)

    for context in CONTEXTS.values():
        with context():
            state, outputs = hx, []
            for step in x:
                output, state = called(layer, step[None], state)
                outputs.append(output)
            assert_close((torch.cat(outputs), state), exact, torch.float64)


def strided(tensor: torch.Tensor, how: str) -> torch.Tensor:
    """The same values, not one after the other in memory."""
    if how == "transposed":
        return tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    if how == "every second":
        return torch.stack([tensor, torch.full_like(tensor, torch.nan)], dim=-1).flatten(-2)[..., ::2]
    if how == "offset":
        return torch.cat([torch.full((3,), torch.nan, dtype=tensor.dtype), tensor.flatten()])[3:].view(tensor.shape)
    return tensor[..., :1].expand(tensor.shape)


@pytest.mark.parametrize("mixture", ["all low rank", "joint below, apart above", "dense inputs, cores on states"])
@pytest.mark.parametrize("how", ["transposed", "every second", "offset", "expanded"])
def test_memory_in_any_order(how: str, mixture: str) -> None:
    plan = LSTMPlan(input_size=7, hidden_size=6, num_layers=2, chains=MIXTURES[mixture])
    x, hx = plan.arguments()
    assert hx is not None

    assert_is_its_twin(plan.make(), strided(x, how), tuple(strided(state, how) for state in hx))


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("mixture", MIXTURES)
def test_no_sequences_at_all(mixture: str) -> None:
    plan = LSTMPlan(input_size=7, hidden_size=6, num_layers=2, chains=MIXTURES[mixture])

    for states in (False, True):
        assert_is_its_twin(plan.make(), *plan.arguments(batch=0, states=states))


@pytest.mark.parametrize("length", [64, 257])
def test_long_sequences_in_large_batches(length: int) -> None:
    plan = LSTMPlan(input_size=7, hidden_size=6, num_layers=2, chains=MIXTURES["joint below, apart above"])

    assert_is_its_twin(plan.make(), *plan.arguments(batch=33, length=length))


def test_what_saturates_stays_finite() -> None:
    plan = LSTMPlan(input_size=7, hidden_size=6, num_layers=2, chains=MIXTURES["joint below, apart above"])
    x, hx = plan.arguments()

    assert_is_its_twin(plan.make(), x * 1e4, hx)


@pytest.mark.usefixtures("sized")
def test_nan_stays_in_its_sequence() -> None:
    plan = LSTMPlan(input_size=7, hidden_size=6, num_layers=2, chains=MIXTURES["joint below, apart above"])
    layer = plan.make()
    x, hx = plan.arguments()
    exact, _ = exactly(layer, x, hx)
    x[2, 1, 3] = torch.nan

    for way in ways(layer):
        with way():
            output, (h, c) = layer(x, hx)
            assert output[2:, 1].isnan().all()
            assert h[:, 1].isnan().all()
            assert c[:, 1].isnan().all()
            assert_close((output[:2], output[:, ::2]), (exact[:2], exact[:, ::2]), torch.float64)


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_results_are_nobody_elses_memory(mixture: str, execution: Execution) -> None:
    plan = LSTMPlan(input_size=7, hidden_size=6, num_layers=2, chains=MIXTURES[mixture])
    layer = plan.make(execution=execution)
    x, hx = plan.arguments()

    for context in (torch.no_grad, torch.inference_mode):
        with context():
            first = list(tensors(layer(x, hx)))
            copies = [tensor.clone() for tensor in first]
            layer(x + 1)
            assert all(torch.equal(new, old) for new, old in zip(first, copies, strict=True))

            for tensor in first:
                tensor.fill_(torch.nan)
            again = list(tensors(called(layer, x, hx)))
            assert all(torch.equal(new, old) for new, old in zip(again, copies, strict=True))


@given(plan=lstm_plans())
def test_made_from_all_its_weights(plan: LSTMPlan) -> None:
    twin = plan.make()
    weights: dict[str, Any] = {name: weight for name, weight in twin.named_children() if isinstance(weight, MPOWeight)}
    weights |= dict(twin.named_parameters(recurse=False))

    layer = MPOLSTM(
        plan.input_size,
        plan.hidden_size,
        plan.num_layers,
        weights=weights,
        batch_first=plan.batch_first,
        bidirectional=plan.bidirectional,
        proj_size=plan.proj_size,
    )

    assert layer.bias == plan.bias
    assert layer.state_dict().keys() == twin.state_dict().keys()
    assert_is_its_twin(layer, *plan.arguments())


def test_it_is_called_and_looked_at_as_the_lstm_it_replaces() -> None:
    lstm = nn.LSTM(7, 6, 2, batch_first=True, dropout=0.25, bidirectional=True, proj_size=4).eval()
    plan = LSTMPlan(input_size=7, hidden_size=6, num_layers=2, batch_first=True, bidirectional=True, proj_size=4)
    chain = Chain(sites=low_rank(24, 4), bonds=(2,))
    layer = MPOLSTM.replacing(lstm, {"weight_hh_l1_reverse": chain.weight(0, torch.float32)})
    x, hx = plan.arguments(dtype=torch.float32)

    sizes = ["input_size", "hidden_size", "num_layers", "proj_size"]
    for name in [*sizes, "bias", "batch_first", "dropout", "bidirectional", "training"]:
        assert getattr(layer, name) == getattr(lstm, name), name
    layer.flatten_parameters()  # many a forward calls it first
    assert layer.bias_hh_l1 is lstm.bias_hh_l1
    assert_close(layer(input=x, hx=hx), exactly(layer, x, hx), torch.float32)
    output, state = twin_of(layer)(x.double())
    assert_close(layer(x), (output, state), torch.float32)
