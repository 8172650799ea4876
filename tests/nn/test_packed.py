"""Sequences of many lengths packed together: as the dense LSTM takes them, and each as it would be alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from mpocompress.nn import Execution
from tests.nn.builders import (
    FIXED,
    LSTMPlan,
    assert_close,
    called,
    exactly,
    lstm_plans,
    tensors,
    ways,
)
from tests.nn.test_lstm import MIXTURES

lengths = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def packed(plan: LSTMPlan, many: list[int], dtype: torch.dtype = torch.float64) -> PackedSequence:
    """Random sequences of these lengths; as torch wants them where they fall, else to be sorted by it."""
    generator = torch.Generator().manual_seed(plan.seed)
    sequences = [
        torch.randn(length, plan.input_size, generator=generator, dtype=torch.float64).to(dtype) for length in many
    ]
    return pack_sequence(sequences, enforce_sorted=many == sorted(many, reverse=True))


def order(sequence: PackedSequence) -> list[Tensor | None]:
    return [sequence.batch_sizes, sequence.sorted_indices, sequence.unsorted_indices]


@pytest.mark.usefixtures("sized")
@given(
    plan=lstm_plans(),
    many=lengths,
    ordered=st.booleans(),
    states=st.booleans(),
    dtype=st.sampled_from((torch.float64, torch.float32)),
)
def test_it_gives_what_the_dense_lstm_gives(
    plan: LSTMPlan, many: list[int], ordered: bool, states: bool, dtype: torch.dtype
) -> None:
    layer = plan.make(dtype)
    sequence = packed(plan, sorted(many, reverse=True) if ordered else many, dtype)
    _, hx = plan.arguments(batch=len(many), states=states, dtype=dtype)
    with torch.no_grad():
        exact = exactly(layer, sequence, hx)

    for way in ways(layer):
        with way():
            result = called(layer, sequence, hx)
            assert isinstance(result[0], PackedSequence)
            for indices, exact_indices in zip(order(result[0]), order(exact[0]), strict=True):
                assert (indices is None) == (exact_indices is None)
                assert indices is None or exact_indices is None or torch.equal(indices, exact_indices)
            assert_close(result, exact, dtype)


@given(plan=lstm_plans(most_levels=2, most=5), many=lengths)
def test_each_sequence_is_as_it_would_be_alone(plan: LSTMPlan, many: list[int]) -> None:
    layer = plan.make()
    sequence = packed(plan, many)
    x, _ = pad_packed_sequence(sequence)
    alone = [x[:length, place : place + 1] for place, length in enumerate(many)]
    with torch.no_grad():
        exact = [exactly(layer, steps.movedim(0, 1) if plan.batch_first else steps) for steps in alone]

    for way in ways(layer):
        with way():
            output, (h, c) = layer(sequence)
            padded, counts = pad_packed_sequence(output)
        assert counts.tolist() == many
        for place, (length, (exact_output, exact_state)) in enumerate(zip(many, exact, strict=True)):
            assert_close(
                (padded[:length, place : place + 1], h[:, place : place + 1], c[:, place : place + 1]),
                (exact_output.movedim(0, 1) if plan.batch_first else exact_output, exact_state),
                torch.float64,
            )
            assert padded[length:, place].count_nonzero() == 0


@pytest.mark.parametrize("mixture", MIXTURES)
def test_every_mixture_and_batch_first_padding(mixture: str) -> None:
    plan = LSTMPlan(input_size=7, hidden_size=6, num_layers=2, batch_first=True, chains=MIXTURES[mixture])
    layer = plan.make()
    x, hx = plan.arguments(batch=4, length=5)
    sequence = pack_padded_sequence(x, torch.tensor([3, 5, 1, 5]), batch_first=True, enforce_sorted=False)
    exact = exactly(layer, sequence, hx)

    for way in ways(layer):
        with way():
            assert_close(called(layer, sequence, hx), exact, torch.float64)


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("execution", FIXED)
def test_results_are_nobody_elses_memory(execution: Execution) -> None:
    plan = LSTMPlan(input_size=7, hidden_size=6, num_layers=2, chains=MIXTURES["joint below, apart above"])
    layer = plan.make(execution=execution)
    sequence = packed(plan, [2, 5, 3])

    with torch.inference_mode():
        first = list(tensors(layer(sequence)))
        copies = [tensor.clone() for tensor in first]
        layer(packed(plan, [4, 5, 3]))
        assert all(torch.equal(new, old) for new, old in zip(first, copies, strict=True))
        for tensor in first:
            tensor.fill_(torch.nan)
        assert all(torch.equal(new, old) for new, old in zip(tensors(called(layer, sequence)), copies, strict=True))
