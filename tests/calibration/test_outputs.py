"""Outputs: the tensor that is compared, and the rows that count."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from mpocompress.calibration.outputs import counted_rows, flat_rows, output_rows, primary
from mpocompress.errors import CalibrationError
from mpocompress.user.batches import Batch

ONE, TWO = torch.ones(2, 3), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("output", "tensor", "name"),
    [
        (ONE, ONE, ""),
        ((ONE, TWO), ONE, ""),
        ([torch.arange(3), None, (TWO, ONE)], TWO, ""),
        ({"loss": torch.tensor(1.0), "hidden": TWO, "logits": ONE}, ONE, "logits"),
        (OrderedDict(scores=TWO, more=ONE), TWO, "scores"),
        ({"logits": (TWO, ONE)}, TWO, "logits"),
        ({"logits": None, "other": ONE}, ONE, "other"),
        ({"first": {"logits": TWO}, "logits": ONE}, ONE, "logits"),
        (({"scores": [TWO]}, ONE), TWO, "scores"),
        ((torch.empty(0, 3), ONE), ONE, ""),
    ],
)
def test_the_compared_tensor_is_the_logits_or_the_first_one(output: Any, tensor: Tensor, name: str) -> None:
    assert primary(output)[0] is tensor
    assert primary(output)[1] == name


def test_packed_sequences_are_compared_by_their_data() -> None:
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])

    assert primary((packed, None))[0] is packed.data


@pytest.mark.parametrize("output", [None, "text", torch.arange(3), {}, (), torch.tensor(1.0), {"a": [1, 2]}])
def test_an_output_without_numbers_is_refused(output: Any) -> None:
    with pytest.raises(
        CalibrationError,
        match=rf"the model: an output of type {type(output).__name__}; it contains no floating-point tensor to "
        r"compare\. Wrap the model in a module that returns one\.",
    ):
        primary(output)


def test_outputs_of_one_number_per_sample_are_rows() -> None:
    assert output_rows(torch.ones(6), 6).shape == (6, 1)
    assert output_rows(torch.ones(6), 1).shape == (6,), "the scores of one sample"
    assert output_rows(torch.ones(6, 2), 6).shape == (6, 2)


MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])
OTHER = MASK.flip(1)
IDS, ROWS = torch.zeros(2, 3), torch.arange(30.0).reshape(2, 3, 5)


def labels(mask: Tensor) -> Tensor:
    return torch.tensor([[0, 4, 2], [3, 1, 0]]).masked_fill(mask == 0, -100)


@pytest.mark.parametrize(
    ("inputs", "target", "counted"),
    [
        ({"ids": IDS, "attention_mask": MASK}, None, MASK),
        ({"ids": IDS, "attention_mask": MASK.bool()}, None, MASK),
        ({"ids": IDS, "labels": labels(MASK)}, None, MASK),
        ({"ids": IDS, "attention_mask": MASK, "labels": labels(OTHER)}, None, MASK & OTHER),
        ({"ids": IDS, "labels": labels(MASK)}, labels(OTHER), MASK),
        (IDS, labels(MASK), MASK),
        (IDS, labels(MASK).int(), None),
        (IDS, labels(MASK).float(), None),
        (IDS, None, None),
        ({"ids": IDS, "attention_mask": torch.ones(2, 3)}, None, None),
        ({"ids": IDS, "attention_mask": torch.zeros(2, 3)}, None, None),
        ({"ids": IDS, "attention_mask": torch.ones(2, 1, 3, 3)}, None, None),
    ],
)
def test_padding_and_rows_without_a_target_do_not_count(
    inputs: Any, target: Tensor | None, counted: Tensor | None
) -> None:
    mask = counted_rows(ROWS, Batch(inputs=inputs, target=target))

    assert (mask is None) == (counted is None)
    if mask is not None and counted is not None:
        assert torch.equal(mask, counted.bool())
        assert torch.equal(flat_rows(ROWS, mask), ROWS[counted.bool()])
    assert torch.equal(flat_rows(ROWS), ROWS.reshape(6, 5))
