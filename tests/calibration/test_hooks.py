"""Modules that are watched: what is told of every call, that nothing is computed otherwise, and that nothing stays."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from mpocompress.calibration.hooks import (
    OTHER_FORWARD,
    Observer,
    WeightGroup,
    find_observed,
    observing,
    recording_calls,
)
from tests.calibration.trial_models import Calls
from tests.draw import random_matrix

ROUNDING = 1e-6
"""Float32 numbers near 1 through a few products, LSTMs being run another way."""


class Told:
    """What a watcher was told."""

    def __init__(self) -> None:
        self.inputs: dict[str, list[Tensor]] = {}
        self.gradients: dict[str, list[Tensor]] = {}
        self.odd: dict[str, str] = {}

    def observe(
        self, unit: WeightGroup, inputs: Tensor, on_gradient: Callable[[Callable[[Tensor], None]], None]
    ) -> None:
        self.inputs.setdefault(unit.name, []).append(inputs.clone())
        on_gradient(lambda gradient: self.gradients.setdefault(unit.name, []).append(gradient.clone()))

    @property
    def observer(self) -> Observer:
        return Observer(observe=self.observe, unsupported=lambda unit, reason: self.odd.update({unit.name: reason}))


@contextlib.contextmanager
def watching(model: nn.Module) -> Iterator[Told]:
    told = Told()
    names = {name: name for name, _ in model.named_parameters(remove_duplicate=False)}
    with observing(find_observed(model, names), told.observer):
        yield told


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return random_matrix(1, int(torch.tensor(shape).prod()), seed)[0].reshape(shape).float()


class Conv1D(nn.Module):
    """As transformers has it: the weight is the transpose of that of a linear layer."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(numbers(inputs, outputs, seed=3))
        self.bias = nn.Parameter(numbers(outputs, seed=4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def no_grad_inside(m: Any, x: Tensor) -> Any:
    with torch.no_grad():
        return m.fc(x)


def inference_inside(m: Any, x: Tensor) -> Any:
    with torch.inference_mode():
        return m.lstm(m.fc(x))[0]


X = numbers(4, 5, 6)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 3),
    "twice": lambda: Calls(lambda m, x: m.fc(m.fc(x).relu()), fc=nn.Linear(6, 6)),
    "named": lambda: Calls(lambda m, x: m.fc(input=x), fc=nn.Linear(6, 3)),
    "in place": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)),
    "conv1d": lambda: Conv1D(3, 6),
    "lstm": lambda: Calls(lambda m, x: m.lstm(x)[0], lstm=nn.LSTM(6, 4, 2, bidirectional=True, batch_first=True)),
    "lstm by name": lambda: Calls(
        lambda m, x: m.lstm(hx=(torch.ones(1, 5, 4), torch.ones(1, 5, 4)), input=x)[0], lstm=nn.LSTM(6, 4)
    ),
    "cell": lambda: Calls(lambda m, x: m.cell(x[0], m.cell(x[1]))[0], cell=nn.LSTMCell(6, 4)),
    "gru": lambda: Calls(lambda m, x: m.fc(m.gru(x)[0]), gru=nn.GRU(6, 4), fc=nn.Linear(4, 3)),
    "attention": lambda: Calls(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(6, 2)),
    "transformer": lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
    "no_grad": lambda: Calls(no_grad_inside, fc=nn.Linear(6, 3)),
    "inference_mode": lambda: Calls(inference_inside, fc=nn.Linear(6, 3), lstm=nn.LSTM(3, 4)),
}


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("name", MODELS)
def test_a_watched_model_gives_the_same_and_is_left_as_it_was(name: str, context: Any) -> None:
    model = seeded(MODELS[name])
    expected = model(X)
    before = [(module, set(vars(module)), dict(module._forward_hooks)) for module in model.modules()]
    with context(), watching(model) as told:
        found = model(X)

    torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING)
    assert before == [(module, set(vars(module)), dict(module._forward_hooks)) for module in model.modules()]
    assert not told.odd
    again = model(X)
    assert again.equal(expected)


def test_every_call_of_a_module_is_told() -> None:
    model = seeded(MODELS["twice"])
    with watching(model) as told:
        model(X)

    first, second = told.inputs["fc.weight"]
    assert first.equal(X.reshape(-1, 6))
    assert second.equal(model.fc(X).relu().reshape(-1, 6).detach())  # type: ignore[operator]


def test_gradients_come_through_an_activation_in_place() -> None:
    model = seeded(MODELS["in place"]).requires_grad_(False)
    with watching(model) as told:
        model(X).square().sum().backward()

    twin = seeded(MODELS["in place"])
    twin(X).square().sum().backward()
    for name in ("0", "2"):
        (z,), (g,) = told.inputs[f"{name}.weight"], told.gradients[f"{name}.weight"]
        wanted = twin.get_submodule(name).weight.grad
        torch.testing.assert_close(g.T @ z, wanted, rtol=1e-4, atol=1e-4)


def test_the_unit_of_a_transposed_weight_has_its_sides_changed() -> None:
    model = Conv1D(3, 6)
    (watch,) = find_observed(model, {"weight": "c.weight", "bias": "c.bias"})
    with watching(model) as told:
        model(X)

    assert watch.units == {"": WeightGroup(members=("c.weight",), columns=(6,), rows=3, bias="c.bias")}
    assert told.inputs["weight"][0].equal(X.reshape(-1, 6))


def test_units_of_recurrent_layers_are_joint_and_projections_stand_alone() -> None:
    lstm = nn.LSTM(6, 4, proj_size=2, bidirectional=True)
    (watch,) = find_observed(lstm, {name: f"m.{name}" for name, _ in lstm.named_parameters()})

    assert list(watch.units) == ["l0", "hr_l0", "l0_reverse", "hr_l0_reverse"]
    joint, projection = watch.units["l0_reverse"], watch.units["hr_l0"]
    assert joint.members == ("m.weight_ih_l0_reverse", "m.weight_hh_l0_reverse")
    assert (joint.columns, joint.rows, joint.bias) == ((6, 2), 16, "m.bias_ih_l0_reverse")
    assert (projection.members, projection.columns, projection.rows, projection.bias) == (
        ("m.weight_hr_l0",),
        (4,),
        2,
        "",
    )
    assert joint.span(joint.members) == (0, 8)
    assert joint.span(joint.members[1:]) == (6, 8)
    assert joint.span(("m.other",)) is None
    assert joint.span(joint.members[::-1]) is None


class OwnLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(nn.functional.layer_norm(input, input.shape[-1:]))


class OwnLSTM(nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:  # noqa: A002
        return super().forward(2 * input, hx)  # type: ignore[has-type, unused-ignore] # torch 2.10


def test_a_class_that_does_something_else_with_its_weight_is_odd() -> None:
    """Its inputs are not what its weight is multiplied with."""
    model = OwnLinear(6, 3)
    with watching(model) as told:
        model(X)

    assert told.odd == {"weight": OTHER_FORWARD}
    assert not told.inputs
    assert not find_observed(OwnLSTM(6, 3), {name: name for name, _ in nn.LSTM(6, 3).named_parameters()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_class_that_only_calls_its_own_is_not(dtype: torch.dtype) -> None:
    class Plain(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return nn.functional.linear(input, self.weight, self.bias)

    model = Plain(64, 32, dtype=dtype)
    with watching(model) as told:
        model(numbers(4, 64).to(dtype))

    assert not told.odd
    assert len(told.inputs["weight"]) == 1


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda m, x: m.fc([x]), "was called with list and returned Tensor"),
        (lambda m, x: m.fc(x.reshape(4, 6, 5)), r"was called with shape \(4, 6, 5\) and returned \(4, 5, 3\)"),
    ],
)
def test_an_odd_call_is_told_in_words(call: Any, reason: str) -> None:
    class Odd(nn.Linear):
        def forward(self, input: Any) -> Tensor:  # noqa: A002
            value = input[0] if isinstance(input, list) else input
            return super().forward(value if value.shape[-1] == 6 else value.transpose(1, 2))

    model = Calls(call, fc=Odd(6, 3))
    with watching(model) as told:
        model(X)

    assert re.fullmatch(reason, told.odd["fc.weight"])


def test_an_lstm_called_wrongly_says_what_it_always_says() -> None:
    model = Calls(lambda m, x: m.lstm(x[..., :3]), lstm=nn.LSTM(6, 4))
    with pytest.raises(RuntimeError) as plain:
        model(X)
    with watching(model) as told, pytest.raises(RuntimeError) as seen:
        model(X)

    assert str(seen.value) == str(plain.value)
    assert told.odd["lstm.weight_ih_l0"].startswith("was called with unsupported arguments (RuntimeError: ")


def test_nothing_stays_behind_when_the_model_raises() -> None:
    def broken(m: Any, x: Tensor) -> Any:
        m.lstm(m.fc(x))
        raise KeyError("mine")

    model = Calls(broken, fc=nn.Linear(6, 3), lstm=nn.LSTM(3, 4))
    with pytest.raises(KeyError, match="mine"), watching(model):
        model(X)

    assert "forward" not in vars(model.lstm)
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(KeyError, match="mine"), recording_calls(model, lambda _: None):
        model(X)
    assert not model._forward_pre_hooks


def test_a_weight_in_two_modules_is_one_unit_without_a_bias() -> None:
    """Each module has inputs of another mean, and a bias of its own."""
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    names = {"0.weight": "0.weight", "1.weight": "0.weight", "0.bias": "0.bias", "1.bias": "1.bias"}
    watches = find_observed(model, names)
    told = Told()
    with observing(watches, told.observer):
        model(X)

    unit = WeightGroup(members=("0.weight",), columns=(6,), rows=6, bias="")
    assert [dict(watch.units) for watch in watches] == [{"": unit}, {"": unit}]
    assert [len(one) for one in told.inputs["0.weight"]] == [20, 20]


def test_calls_are_overheard_however_they_are_written() -> None:
    heard: list[Any] = []
    model = nn.Linear(6, 3)
    with recording_calls(model, heard.append):
        model(X)
        model(input=X)

    assert [(len(args), list(kwargs)) for args, kwargs in heard] == [(1, []), (0, ["input"])]


def test_what_runs_in_its_own_way_is_not_watched() -> None:
    patched = nn.Linear(6, 3)
    patched.forward = lambda x: x  # type: ignore[method-assign, assignment]
    for module in (patched, nn.GRU(6, 3), nn.RNNCell(6, 3), nn.LayerNorm(6), nn.Conv1d(6, 3, 1)):
        assert find_observed(module, {name: name for name, _ in module.named_parameters()}) == ()
    assert find_observed(nn.Linear(6, 3), {"bias": "bias"}) == ()


def test_padding_is_not_told() -> None:
    model = seeded(lambda: nn.LSTM(6, 4, bidirectional=True))
    packed = pack_sequence([numbers(length, 6) for length in (2, 5, 1)], enforce_sorted=False)
    with watching(model) as told:
        model(packed)[0].data.sum().backward()

    for name in ("weight_ih_l0", "weight_ih_l0_reverse"):
        assert [len(one) for one in (*told.inputs[name], *told.gradients[name])] == [8, 8]
        assert sorted(told.inputs[name][0][:, 0].tolist()) == sorted(packed.data[:, 0].tolist())
