"""Dropout: between levels, in training, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from mpocompress.mpo.sites import low_rank
from mpocompress.nn import MPOLSTM, Execution
from tests.nn.builders import FIXED, Chain, LSTMPlan, assert_close, dense_weights, exactly
from tests.nn.test_lstm import MIXTURES


def make(
    dropout: float, execution: Execution, *, hidden: int = 6, mixture: str = "joint below, apart above"
) -> MPOLSTM:
    chains = MIXTURES[mixture] if hidden == 6 else {"weight_hh_l1": Chain(sites=low_rank(4, 1), bonds=(1,))}
    plan = LSTMPlan(input_size=7, hidden_size=hidden, num_layers=2, chains=chains, seed=3)
    layer = plan.make(execution=execution)
    layer.dropout = dropout
    return layer


def inputs(batch: int = 3, length: int = 4) -> Tensor:
    return LSTMPlan(input_size=7, hidden_size=6).arguments(batch, length)[0]


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_all_of_it_leaves_nothing_for_the_levels_above(mixture: str, execution: Execution) -> None:
    layer = make(1.0, execution, mixture=mixture).train()
    exact = exactly(layer, inputs())  # no chance in it: the second level sees zeros, the output is not dropped

    assert_close(layer(inputs()), exact, torch.float64)
    with torch.no_grad():
        assert_close(layer(inputs()), exact, torch.float64)
    assert exact[0].count_nonzero() == exact[0].numel()
    assert exact[1][0].count_nonzero() == exact[1][0].numel()

    packed = pack_sequence(list(inputs().unbind(1)))
    assert_close(layer(packed), exactly(layer, packed), torch.float64)


@pytest.mark.parametrize("execution", FIXED)
def test_every_output_of_a_level_is_dropped_or_doubled(execution: Execution) -> None:
    layer = make(0.5, execution, hidden=1)
    x = inputs(batch=400, length=1)
    layer.eval()
    below = layer(x)[1][0][0]  # the outputs of the first level after its only step
    upper = nn.LSTM(1, 1).double()
    weights = {name: weight.detach() for name, weight in dense_weights(layer).items()}
    upper.load_state_dict({name.replace("l1", "l0"): weight for name, weight in weights.items() if name.endswith("l1")})
    dropped, doubled = upper(torch.zeros(1, 400, 1).double())[0], upper(2 * below[None])[0]

    torch.manual_seed(0)
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            output, (h, _) = layer.train()(x)
            is_dropped, is_doubled = (torch.isclose(output, expected, rtol=1e-12) for expected in (dropped, doubled))

            assert (is_dropped | is_doubled).all()
            # 400 tosses: farther than five standard deviations from half of them is not chance.
            assert 150 < is_dropped.sum() < 250
            assert torch.equal(h[1], output[0])
            assert_close(h[0], below, torch.float64)


@pytest.mark.parametrize("execution", FIXED)
def test_none_in_eval_nor_with_one_level(execution: Execution) -> None:
    layer = make(0.5, execution).eval()
    plain = make(0.0, execution)
    alone = LSTMPlan(input_size=7, hidden_size=6, chains={"weight_hh_l0": Chain(sites=low_rank(24, 6), bonds=(2,))})
    single = alone.make(execution=execution).train()
    single.dropout = 0.9

    assert torch.equal(layer(inputs())[0], plain(inputs())[0])
    assert_close(single(inputs()), exactly(single, inputs()), torch.float64)


@pytest.mark.parametrize("execution", FIXED)
def test_a_seed_repeats_it_and_another_does_not(execution: Execution) -> None:
    layer = make(0.5, execution).train()
    layer(inputs())  # the first call of a size may look for the fastest way

    def seeded(seed: int) -> Tensor:
        torch.manual_seed(seed)
        output: Tensor = layer(inputs())[0]
        return output.detach()

    assert torch.equal(seeded(1), seeded(1))
    assert not torch.equal(seeded(1), seeded(2))
