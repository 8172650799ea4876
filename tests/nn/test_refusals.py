"""What the layers of torch refuse, ours refuse: with an error of the same type, in words that name the same sizes.

Kernels of torch write a dtype large or small; that much may differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from mpocompress.errors import ModelError, MPOCompressError
from mpocompress.mpo.sites import folded, low_rank
from mpocompress.nn import MPOLSTM, Execution, MPOLinear, MPOLSTMCell
from tests.nn.builders import FIXED, Chain, LSTMPlan, tensors, twin_of, ways
from tests.nn.test_linear import FORMS
from tests.nn.test_linear import make as make_linear
from tests.nn.test_lstm_cell import CELLS
from tests.nn.test_lstm_cell import make as make_cell


def z(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def packed(features: int) -> Any:
    return pack_padded_sequence(z(5, 2, features), [5, 2])


CALLS: dict[str, dict[str, tuple[Callable[[], Any], tuple[str, ...]]]] = {
    "lstm": {
        "features": (lambda: (z(5, 2, 4),), ("input.size(-1)", "Expected 3", "got 4")),
        "features of one sequence": (lambda: (z(5, 4),), ("input.size(-1)", "Expected 3", "got 4")),
        "four dimensions": (lambda: (z(1, 5, 2, 3),), ("2D or 3D", "4D")),
        "one dimension": (lambda: (z(3),), ("2D or 3D", "1D")),
        "no steps": (lambda: (z(0, 2, 3),), ("sequence length", "larger than 0")),
        "dtype": (lambda: (z(5, 2, 3, dtype=torch.float32),), ("type", "torch.float32", "torch.float64")),
        "whole numbers": (lambda: (z(5, 2, 3, dtype=torch.int64),), ("type", "torch.int64", "torch.float64")),
        "batch of states": (lambda: (z(5, 2, 3), (z(2, 3, 4), z(2, 3, 4))), ("hidden[0]", "(2, 2, 4)", "[2, 3, 4]")),
        "levels of states": (lambda: (z(5, 2, 3), (z(1, 2, 4), z(1, 2, 4))), ("hidden[0]", "(2, 2, 4)", "[1, 2, 4]")),
        "size of states": (lambda: (z(5, 2, 3), (z(2, 2, 5), z(2, 2, 4))), ("hidden[0]", "(2, 2, 4)", "[2, 2, 5]")),
        "size of cells": (lambda: (z(5, 2, 3), (z(2, 2, 4), z(2, 2, 5))), ("hidden[1]", "(2, 2, 4)", "[2, 2, 5]")),
        "states of one sequence": (lambda: (z(5, 2, 3), (z(2, 4), z(2, 4))), ("batched 3-D", "(2-D, 2-D)")),
        "states of many": (lambda: (z(5, 3), (z(2, 1, 4), z(2, 1, 4))), ("unbatched 2-D", "(3-D, 3-D)")),
        "packed features": (lambda: (packed(4),), ("4", "3")),
        "dtype of states": (lambda: (z(5, 2, 3), (z(2, 2, 4, dtype=torch.float32), z(2, 2, 4))), ("dtype",)),
        "packed dtype": (lambda: (packed(3).float(),), ("dtype",)),
        "packed size of states": (lambda: (packed(3), (z(2, 2, 5), z(2, 2, 4))), ()),
        "packed size of cells": (lambda: (packed(3), (z(2, 2, 4), z(2, 2, 5))), ()),
        "packed levels of states": (lambda: (packed(3), (z(1, 2, 4), z(1, 2, 4))), ()),
        "packed batch of states": (lambda: (packed(3), (z(2, 3, 4), z(2, 3, 4))), ()),
    },
    "cell": {
        "features": (lambda: (z(2, 5),), ("input_size", "got 5", "expected 9")),
        "features of one": (lambda: (z(5),), ("input_size", "got 5", "expected 9")),
        "three dimensions": (lambda: (z(2, 2, 9),), ("1D or 2D", "3D")),
        "batch of states": (lambda: (z(2, 9), (z(3, 6), z(3, 6))), ("batch size 2", "hidden0 batch size 3")),
        "batch of cells": (lambda: (z(2, 9), (z(2, 6), z(3, 6))), ("batch size 2", "hidden1 batch size 3")),
        "size of states": (lambda: (z(2, 9), (z(2, 5), z(2, 6))), ("hidden0", "got 5", "expected 6")),
        "size of cells": (lambda: (z(2, 9), (z(2, 6), z(2, 5))), ("hidden1", "got 5", "expected 6")),
        "dimensions of states": (lambda: (z(2, 9), (z(1, 2, 6), z(2, 6))), ("hx[0]", "1D or 2D", "3D")),
        "dtype": (lambda: (z(2, 9, dtype=torch.float32),), ("same dtype", "Float", "Double")),
    },
    "linear": {
        "features": (lambda: (z(2, 17),), ("cannot be multiplied", "2x17")),
        "features of one": (lambda: (z(17),), ("cannot be multiplied", "17")),
        "features of a sequence": (lambda: (z(2, 5, 17),), ("cannot be multiplied", "10x17")),
        "another size that divides": (lambda: (z(2, 9),), ("cannot be multiplied", "2x9")),
        "twice the size": (lambda: (z(2, 36),), ("cannot be multiplied", "2x36")),
        "no dimension": (lambda: (z(),), ("1D", "0D")),
        "dtype": (lambda: (z(2, 18, dtype=torch.float32),), ("same dtype", "Float", "Double")),
        "whole numbers": (lambda: (z(2, 18, dtype=torch.int64),), ("same dtype", "Long", "Double")),
    },
}


def make(kind: str, execution: Execution) -> nn.Module:
    chains = {
        "weight_joint_l0": Chain(sites=folded(16, 7, 4, 7), bonds=(3,)),
        "weight_ih_l1": Chain(sites=low_rank(16, 4), bonds=(2,)),
    }
    if kind == "lstm":
        return LSTMPlan(input_size=3, hidden_size=4, num_layers=2, chains=chains).make(execution=execution)
    if kind == "cell":
        return make_cell(CELLS["joint"], execution=execution)
    return make_linear(FORMS["odd fold"], execution=execution)


@pytest.mark.parametrize(("kind", "call"), [(kind, call) for kind, calls in CALLS.items() for call in calls])
def test_a_call_that_torch_refuses(kind: str, call: str) -> None:
    arguments, words = CALLS[kind][call]
    layer = make(kind, "auto")
    twin = twin_of(layer)

    for way in ways(layer):
        with way():
            with pytest.raises(Exception, match=r".") as theirs:
                twin(*arguments())
            with pytest.raises(type(theirs.value), match=r".") as ours:
                layer(*arguments())
            for word in words:
                assert word.lower() in str(theirs.value).lower()
                assert word.lower() in str(ours.value).lower()


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", CALLS)
def test_a_refused_call_leaves_nothing_behind(kind: str, execution: Execution) -> None:
    layer = make(kind, execution).eval()
    good = {"lstm": (5, 2, 3), "cell": (2, 9), "linear": (2, 18)}[kind]
    x = torch.ones(good, dtype=torch.float64)
    fresh = make(kind, execution).eval()(x)

    for arguments, _ in CALLS[kind].values():
        with pytest.raises(Exception, match=r"."), torch.no_grad():
            layer(*arguments())

    result, expected = (next(tensors(result)) for result in (layer(x), fresh))
    assert torch.equal(result, expected)


def test_weights_that_make_no_lstm() -> None:
    lstm = nn.LSTM(3, 4)
    good: dict[str, Any] = {
        "weight_ih_l0": Chain(sites=low_rank(16, 3), bonds=(1,)).weight(0, torch.float32),
        "weight_hh_l0": lstm.weight_hh_l0,
    }
    MPOLSTM(3, 4, weights=good)

    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "missing": ({"weight_ih_l0": good["weight_ih_l0"]}, r"weight_hh"),
        "shape": ({**good, "weight_hh_l0": torch.zeros(16, 5)}, r"weight_hh_l0: .*\(16, 5\).*\(16, 4\)"),
        "twice": (
            {**good, "weight_joint_l0": Chain(sites=low_rank(16, 7), bonds=(1,)).weight(0, torch.float32)},
            r"weight_joint_l0",
        ),
    }
    for weights, message in wrong.values():
        with pytest.raises(ModelError, match=message):
            MPOLSTM(3, 4, weights=weights)


def test_names_and_shapes_that_the_replaced_layer_does_not_have() -> None:
    weight = Chain(sites=low_rank(16, 3), bonds=(1,)).weight(0, torch.float32)
    for make_one, message in (
        (lambda: MPOLSTM.replacing(nn.LSTM(3, 4), {}), "LSTM: no weights; the layer has weight_ih_l0, weight_hh_l0"),
        (
            lambda: MPOLSTMCell.replacing(nn.LSTMCell(3, 4), {}),
            "LSTMCell: no weights; the layer has weight_ih, weight_hh",
        ),
        (lambda: MPOLSTM.replacing(nn.LSTM(3, 4), {"weight_ih_l1": weight}), "weight_ih_l1"),
        (lambda: MPOLSTM.replacing(nn.LSTM(3, 4), {"weight_hh_l0": weight}), r"weight_hh_l0: .*\(16, 3\).*\(16, 4\)"),
        (lambda: MPOLSTM.replacing(nn.LSTM(3, 4), {"weight_joint_l0": weight}), r"\(16, 3\).*\(16, 7\)"),
        (lambda: MPOLSTMCell.replacing(nn.LSTMCell(3, 4), {"weight_hh": weight}), r"weight_hh: .*\(16, 3\).*\(16, 4\)"),
        (lambda: MPOLSTMCell.replacing(nn.LSTMCell(3, 4), {"weight": weight}), "'weight'"),
        (lambda: MPOLinear.replacing(nn.Linear(4, 16), weight), r"16"),
    ):
        with pytest.raises(MPOCompressError, match=message):
            make_one()


@pytest.mark.parametrize("kind", CALLS)
def test_an_execution_that_there_is_not(kind: str) -> None:
    with pytest.raises(MPOCompressError, match=re.escape("got 'fast'")):
        make(kind, "fast")  # type: ignore[arg-type]
