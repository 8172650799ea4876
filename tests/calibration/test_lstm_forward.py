"""LSTMs run in plain calls: the same as torch, and what is told against an independent loop and against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from mpocompress.calibration.lstm_forward import level_names, run_cell, run_lstm
from tests.draw import random_matrix

ROUNDING = 1e-12
"""A few levels and steps of float64 numbers near 1, summed in another order."""

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stacked": {"num_layers": 3},
    "bidirectional": {"bidirectional": True},
    "stacked bidirectional": {"num_layers": 2, "bidirectional": True},
    "projected": {"proj_size": 2},
    "stacked bidirectional projected": {"num_layers": 2, "bidirectional": True, "proj_size": 2},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True, "num_layers": 2},
    "dropout": {"num_layers": 2, "dropout": 0.5},
}
INPUTS = ("batch", "one sequence", "sorted", "unsorted", "one step")


def layer_of(form: str) -> nn.LSTM:
    torch.manual_seed(0)
    return nn.LSTM(3, 4, dtype=torch.float64, **FORMS[form]).eval()


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return random_matrix(1, int(torch.tensor(shape).prod()), seed)[0].reshape(shape)


def inputs_for(layer: nn.LSTM, kind: str) -> Tensor | PackedSequence:
    if kind == "one sequence":
        return numbers(5, 3)
    if kind in ("sorted", "unsorted"):
        lengths = [5, 3, 3, 1] if kind == "sorted" else [3, 1, 5, 3]
        x = numbers(4, 5, 3) if layer.batch_first else numbers(5, 4, 3)
        return pack_padded_sequence(x, torch.tensor(lengths), layer.batch_first, enforce_sorted=kind == "sorted")
    time = 1 if kind == "one step" else 5
    return numbers(4, time, 3) if layer.batch_first else numbers(time, 4, 3)


def state_for(layer: nn.LSTM, kind: str) -> tuple[Tensor, Tensor]:
    levels = layer.num_layers * (2 if layer.bidirectional else 1)
    batch = () if kind == "one sequence" else (4,)
    return numbers(levels, *batch, layer.proj_size or 4, seed=1), numbers(levels, *batch, 4, seed=2)


def ignored(*_: Any) -> None:
    return None


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [one for part in value if part is not None for one in flat(part)]


def same(one: Any, other: Any) -> None:
    assert type(one) is type(other) or not isinstance(one, PackedSequence)
    for left, right in zip(flat(one), flat(other), strict=True):
        assert left.shape == right.shape
        torch.testing.assert_close(left, right, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("form", FORMS)
def test_it_gives_what_the_layer_gives(form: str, kind: str, given: bool) -> None:
    layer = layer_of(form)
    x, state = inputs_for(layer, kind), state_for(layer, kind) if given else None

    same(run_lstm(layer, x, state, ignored), layer(x, state))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_cell_gives_what_the_cell_gives(bias: bool, given: bool, batched: bool) -> None:
    torch.manual_seed(0)
    cell = nn.LSTMCell(3, 4, bias=bias, dtype=torch.float64)
    x = numbers(2, 3) if batched else numbers(3)
    batch = (2,) if batched else ()
    state = (numbers(*batch, 4, seed=1), numbers(*batch, 4, seed=2)) if given else None
    seen: list[tuple[str, Tensor, Tensor]] = []
    found = run_cell(cell, x, state, lambda part, inputs, out, real: seen.append((part, inputs, out)))

    same(found, cell(x, state))
    ((part, inputs, out),) = seen
    assert part == ""
    h = state[0] if state is not None else torch.zeros(*batch, 4, dtype=torch.float64)
    assert inputs.reshape(-1, 7).equal(torch.cat([x, h], dim=-1).reshape(-1, 7))
    assert out.shape[-1] == 16


def loops(layer: nn.LSTM, rows: Tensor, h: Tensor, c: Tensor, name: str) -> tuple[list[Tensor], list[Tensor]]:
    """What the joint weight of a level and direction is multiplied with for one sequence, and its outputs."""
    w_ih, w_hh = getattr(layer, f"weight_ih_{name}"), getattr(layer, f"weight_hh_{name}")
    bias = getattr(layer, f"bias_ih_{name}") + getattr(layer, f"bias_hh_{name}") if layer.bias else 0.0
    seen, outputs = [], []
    steps = list(range(len(rows)))
    for step in reversed(steps) if name.endswith("_reverse") else steps:
        seen.append(torch.cat([rows[step], h]))
        i, f, g, o = torch.chunk(w_ih @ rows[step] + w_hh @ h + bias, 4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        if layer.proj_size:
            h = getattr(layer, f"weight_hr_{name}") @ h
        outputs.append(h)
    return (seen[::-1], outputs[::-1]) if name.endswith("_reverse") else (seen, outputs)


@pytest.mark.parametrize("kind", ["batch", "sorted", "unsorted"])
@pytest.mark.parametrize("form", ["stacked bidirectional", "stacked bidirectional projected", "no bias"])
def test_what_is_told_is_what_is_multiplied_without_padding(form: str, kind: str) -> None:
    layer = layer_of(form)
    x, state = inputs_for(layer, kind), state_for(layer, kind)
    told: dict[str, list[Tensor]] = {}

    def see(part: str, inputs: Tensor, outputs: Tensor, real: Tensor | None) -> None:
        rows = inputs.reshape(-1, inputs.shape[-1])
        told.setdefault(part, []).append(rows if real is None else rows[real.reshape(-1)])
        assert outputs.shape[:-1] == inputs.shape[:-1]

    with torch.no_grad():
        run_lstm(layer, x, state, see)

    padded, lengths = pad_packed_sequence(x) if isinstance(x, PackedSequence) else (x, torch.tensor([5] * 4))
    wanted: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for number, length in enumerate(lengths.tolist()):
            rows = padded[:length, number]
            parts: list[Tensor] = []
            for place, name in enumerate(level_names(layer)):
                seen, outputs = loops(layer, rows, state[0][place, number], state[1][place, number], name)
                wanted.setdefault(name, []).extend(seen)
                parts.append(torch.stack(outputs))
                if not layer.bidirectional or name.endswith("_reverse"):
                    rows, parts = torch.cat(parts, dim=1), []
    for name in level_names(layer):
        found = torch.cat(told[name])
        expected = torch.stack(wanted[name])
        assert found.shape == expected.shape
        torch.testing.assert_close(found.T @ found, expected.T @ expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.sum(dim=0), expected.sum(dim=0), rtol=1e-10, atol=1e-10)
        if layer.proj_size:
            assert torch.cat(told[f"hr_{name}"]).shape == (int(lengths.sum()), 4)


@pytest.mark.parametrize("form", ["plain", "stacked bidirectional", "stacked bidirectional projected", "no bias"])
def test_gradients_of_what_comes_out_are_those_of_the_weights(form: str) -> None:
    """The gradient of a weight is the sum over samples of the outer product of both; autograd knows it."""
    layer = layer_of(form)
    x = inputs_for(layer, "unsorted")
    told: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def see(part: str, inputs: Tensor, outputs: Tensor, real: Tensor | None) -> None:
        def keep(gradient: Tensor) -> None:
            told.setdefault(part, []).append((inputs.detach(), gradient))

        outputs.register_hook(keep)  # type: ignore[no-untyped-call]

    run_lstm(layer, x, None, see)[0].data.square().sum().backward()  # type: ignore[no-untyped-call]

    for name in level_names(layer):
        found = sum(
            (g.reshape(-1, g.shape[-1]).T @ z.reshape(-1, z.shape[-1]) for z, g in told[name]), start=torch.zeros(())
        )
        wanted = torch.cat([getattr(layer, f"weight_{side}_{name}").grad for side in ("ih", "hh")], dim=1)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        if layer.proj_size:
            found = sum((g.T @ z for z, g in told[f"hr_{name}"]), start=torch.zeros(()))
            torch.testing.assert_close(found, getattr(layer, f"weight_hr_{name}").grad, rtol=1e-10, atol=1e-10)


def test_weights_that_want_no_gradient_are_open_to_hooks_all_the_same() -> None:
    layer = layer_of("plain").requires_grad_(False)
    found: list[Tensor] = []

    def see(_: str, inputs: Tensor, outputs: Tensor, real: Tensor | None) -> None:
        outputs.register_hook(found.append)  # type: ignore[no-untyped-call]

    y, _ = run_lstm(layer, inputs_for(layer, "batch"), None, see)
    assert isinstance(y, Tensor)
    y.sum().backward()  # type: ignore[no-untyped-call]

    (gradient,) = found
    assert gradient.shape == (5, 4, 16)
    step = 1e-6  # a finite difference in one entry of the bias moves every step by it
    with torch.no_grad():
        layer.get_parameter("bias_ih_l0")[3] += step
        after = layer(inputs_for(layer, "batch"))[0].sum()
    assert float((after - y.detach().sum()) / step) == pytest.approx(float(gradient[..., 3].sum()), rel=1e-4)
