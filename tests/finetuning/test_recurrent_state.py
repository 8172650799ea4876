"""States carried from batch to batch: against one long batch, paused, reset, and refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from mpocompress.errors import FinetuneError
from mpocompress.finetuning.recurrent_state import StatefulRNN, flatten_states, unflatten_states
from mpocompress.layers.selection import Selection
from mpocompress.modules.compress import compress_module
from mpocompress.nn import MPOLSTM
from mpocompress.planning.targets import Truncation
from tests.calibration.trial_models import numbers

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
PARTS = [numbers(3, 4, 8, seed=seed) for seed in range(3)]


class Net(nn.Module):
    """A recurrent layer, called as the test wants it."""

    def __init__(self, layer: nn.Module, *, named: bool = False) -> None:
        super().__init__()
        self.layer, self.named = layer, named

    def forward(self, x: Any) -> Any:
        return self.layer(input=x)[0] if self.named else self.layer(x)[0]


def compressed_lstm() -> nn.Module:
    model = nn.Sequential(nn.LSTM(8, 16, batch_first=True))
    small, _ = compress_module(model, truncation=Truncation(max_bond=3), selection=Selection(min_side=8), jobs=1)
    layer: nn.Module = small[0]  # type: ignore[index]
    assert isinstance(layer, MPOLSTM)
    return layer


LAYERS = {
    "lstm": lambda: nn.LSTM(8, 6, num_layers=2, batch_first=True),
    "gru": lambda: nn.GRU(8, 6, batch_first=True),
    "rnn": lambda: nn.RNN(8, 6, batch_first=True),
    "cores": compressed_lstm,
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_batches_one_after_the_other_give_what_one_long_batch_gives(name: str, named: bool) -> None:
    model = Net(LAYERS[name](), named=named)
    whole = model(torch.cat(PARTS, dim=1))
    hooks = StatefulRNN(model)

    found = [model(part) for part in PARTS]

    torch.testing.assert_close(torch.cat(found, dim=1), whole, **CLOSE)
    assert all(not each.requires_grad for state in hooks.states.values() for each in state)
    assert found[2].requires_grad
    hooks.reset()
    torch.testing.assert_close(model(PARTS[0]), whole[:, :4], **CLOSE)
    hooks.remove()
    torch.testing.assert_close(model(PARTS[0]), whole[:, :4], **CLOSE)
    torch.testing.assert_close(model(PARTS[0]), whole[:, :4], **CLOSE)


def test_gradients_stop_at_the_start_of_a_batch() -> None:
    model = Net(nn.LSTM(8, 6, batch_first=True))
    first = PARTS[0].clone().requires_grad_()
    StatefulRNN(model)
    model(first)
    model(PARTS[1]).sum().backward()

    assert first.grad is None


def test_sequences_first_and_without_a_batch_are_carried_too() -> None:
    model = Net(nn.LSTM(8, 6))
    whole = model(torch.cat([each.transpose(0, 1) for each in PARTS]))
    single = model(torch.cat([each[0] for each in PARTS]))
    hooks = StatefulRNN(model)

    found = torch.cat([model(each.transpose(0, 1)) for each in PARTS])
    torch.testing.assert_close(found, whole, **CLOSE)
    hooks.reset()
    torch.testing.assert_close(torch.cat([model(each[0]) for each in PARTS]), single, **CLOSE)


def test_a_batch_of_another_size_starts_without_a_state() -> None:
    model = Net(nn.LSTM(8, 6, batch_first=True))
    alone = model(PARTS[1][:2])
    packed = pack_sequence([PARTS[0][0], PARTS[0][1, :2]])
    packed_alone = model(packed).data
    single = model(PARTS[1][0])
    StatefulRNN(model)

    model(PARTS[0])
    assert torch.equal(model(PARTS[1][:2]), alone)
    model(PARTS[0])
    assert torch.equal(model(packed).data, packed_alone)
    model(PARTS[0][:1])
    assert torch.equal(model(PARTS[1][0]), single), "a sequence by itself is not a batch of one"


def test_a_state_that_the_model_passes_is_used() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(8, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x, torch.ones(1, len(x), 6))[0]
            return y

    model = Own()
    alone = model(PARTS[1])
    StatefulRNN(model)
    model(PARTS[0])

    assert torch.equal(model(PARTS[1]), alone)


def test_paused_and_fresh_last_for_their_blocks() -> None:
    model = Net(nn.LSTM(8, 6, batch_first=True))
    alone, whole = model(PARTS[1]), model(torch.cat(PARTS[:2], dim=1))[:, 4:]
    hooks = StatefulRNN(model)
    model(PARTS[0])

    with hooks.paused():
        assert torch.equal(model(PARTS[1]), alone)
        assert torch.equal(model(PARTS[1]), alone)
    with hooks.fresh():
        assert torch.equal(model(PARTS[1]), alone)
        assert not torch.equal(model(PARTS[1]), alone)
    torch.testing.assert_close(model(PARTS[1]), whole, **CLOSE)


def test_states_are_written_and_read_as_named_tensors() -> None:
    model = nn.Sequential(Net(nn.LSTM(8, 6, batch_first=True)), Net(nn.GRU(6, 5, batch_first=True)))
    hooks = StatefulRNN(model)
    model(PARTS[0])
    named = flatten_states(hooks.states, "state.0.")

    assert sorted(named) == ["state.0.0.0.layer", "state.0.0.1.layer", "state.0.1.0.layer"]
    before = dict(hooks.states)
    expected = model(PARTS[1])
    hooks.states = unflatten_states(
        {**named, "state.1.0.0.layer": torch.zeros(3), "model.a": torch.zeros(3)}, "state.0."
    )
    assert {path: len(state) for path, state in hooks.states.items()} == {"0.layer": 2, "1.layer": 1}
    assert all(torch.equal(*both) for path in before for both in zip(before[path], hooks.states[path], strict=True))
    assert torch.equal(model(PARTS[1]), expected)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (nn.Linear(3, 3), "no recurrent layer"),
        (nn.Sequential(nn.GRU(3, 3), nn.LSTM(3, 3, bidirectional=True)), "1, a bidirectional layer"),
    ],
)
def test_a_model_without_a_state_to_carry_is_refused(model: nn.Module, found: str) -> None:
    with pytest.raises(
        FinetuneError, match=f"carry_state: {found}; only layers that read forward have a state .* Train without"
    ):
        StatefulRNN(model)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
