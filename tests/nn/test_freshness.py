"""What a layer has prepared never outlives the parameters it was made of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.func import functional_call, grad

from mpocompress.mpo.mpo import MPO
from mpocompress.nn import MPOLSTM, Execution, MPOLinear, MPOLSTMCell, MPOWeight
from tests.nn.builders import FIXED, LSTMPlan, assert_close, dense_weights, exactly, tensors
from tests.nn.test_linear import FORMS
from tests.nn.test_linear import make as make_linear
from tests.nn.test_lstm import MIXTURES, WAYS
from tests.nn.test_lstm_cell import CELLS
from tests.nn.test_lstm_cell import make as make_cell

KINDS = ("lstm, joint", "lstm, apart", "lstm, half dense", "both ways", "cell", "linear")


def make(kind: str, execution: Execution = "auto", dtype: torch.dtype = torch.float64) -> nn.Module:
    if kind == "cell":
        return make_cell(CELLS["joint"], dtype=dtype, execution=execution)
    if kind == "linear":
        return make_linear(FORMS["three sites"], dtype=dtype, execution=execution)
    if kind == "both ways":
        plan = LSTMPlan(input_size=8, hidden_size=6, proj_size=4, bidirectional=True, chains=WAYS["all"])
    else:
        mixture = {
            "lstm, joint": "joint below, apart above",
            "lstm, apart": "all low rank",
            "lstm, half dense": "dense inputs, cores on states",
        }[kind]
        plan = LSTMPlan(input_size=7, hidden_size=6, num_layers=2, chains=MIXTURES[mixture])
    return plan.make(dtype, execution)


def inputs(layer: nn.Module, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(layer, MPOLinear):
        shape: tuple[int, ...] = (5, layer.in_features)
    else:
        assert isinstance(layer, MPOLSTM | MPOLSTMCell)
        shape = (4, 3, layer.input_size) if isinstance(layer, MPOLSTM) else (3, layer.input_size)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(next(layer.parameters()).dtype)


def in_place(layer: nn.Module) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(-1.25)


def in_place_in_inference_mode(layer: nn.Module) -> None:
    with torch.inference_mode():
        for parameter in layer.parameters():
            parameter.mul_(-1.25)


def one_entry(layer: nn.Module) -> None:
    with torch.no_grad():
        next(core for name, core in layer.named_parameters() if "core.1" in name).view(-1)[0] += 0.5


def a_bias(layer: nn.Module) -> None:
    with torch.no_grad():
        next(bias for name, bias in layer.named_parameters() if "bias" in name).add_(1)


def detached(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.detach().mul_(-1.25)


def optimizer_step(layer: nn.Module) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    sum(tensor.square().mean() for tensor in tensors(layer(inputs(layer)))).backward()  # type: ignore[union-attr]
    optimizer.step()
    optimizer.zero_grad()


def other_values(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() * -1.25 for name, value in layer.state_dict().items()}


def loaded(layer: nn.Module) -> None:
    layer.load_state_dict(other_values(layer))


def loaded_in_inference_mode(layer: nn.Module) -> None:
    with torch.inference_mode():
        layer.load_state_dict(other_values(layer))


def assigned(layer: nn.Module) -> None:
    layer.load_state_dict(other_values(layer), assign=True)


def assigned_in_inference_mode(layer: nn.Module) -> None:
    with torch.inference_mode():
        layer.load_state_dict(other_values(layer), assign=True)


def parameters_replaced(layer: nn.Module) -> None:
    for module in layer.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                setattr(module, name, nn.Parameter(parameter.detach() * -1.25))


def parameters_registered(layer: nn.Module) -> None:
    for module in layer.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                delattr(module, name)
                module.register_parameter(name, nn.Parameter(parameter.detach() * -1.25))


def first_weight(layer: nn.Module) -> tuple[str, MPOWeight]:
    return next((name, module) for name, module in layer.named_modules() if isinstance(module, MPOWeight))


def a_core_replaced(layer: nn.Module) -> None:
    _, weight = first_weight(layer)
    weight.core[0] = nn.Parameter(weight.core[0].detach() * -1.25)


def all_cores_replaced(layer: nn.Module) -> None:
    _, weight = first_weight(layer)
    weight.core = type(weight.core)(nn.Parameter(core.detach() * -1.25) for core in weight.cores)


def a_weight_replaced(layer: nn.Module) -> None:
    name, weight = first_weight(layer)
    cores = tuple(core * -1.25 for core in weight.cores)
    layer.set_submodule(name, MPOWeight(MPO(cores=cores, sites=weight.sites)))


def a_bond_cut(layer: nn.Module) -> None:
    _, weight = first_weight(layer)
    first, second, *_ = weight.cores
    weight.core[0], weight.core[1] = nn.Parameter(first.detach()[..., :1]), nn.Parameter(second.detach()[:1])


def data_set(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.data = parameter.data * -1.25


def vector_to_parameters(layer: nn.Module) -> None:
    vector = nn.utils.parameters_to_vector(layer.parameters()).detach() * -1.25
    nn.utils.vector_to_parameters(vector, layer.parameters())


def rounded_and_back(layer: nn.Module) -> None:
    layer.bfloat16().double()


def swapped_by_hand(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach() * -1.25))  # type: ignore[no-untyped-call]


def as_fsdp2_does(layer: nn.Module) -> None:
    """Values come into the same memory uncounted, then every core is put where it already is."""
    for module in layer.modules():
        if isinstance(module, MPOWeight):
            with torch.no_grad(), _unsafe_preserve_version_counter(module.cores):
                for site, core in list(module.core.named_parameters()):
                    core.mul_(-1.25)
                    setattr(module.core, site, core)


def averaged(layer: nn.Module) -> None:
    average = torch.optim.swa_utils.AveragedModel(layer)
    in_place(layer)
    average.update_parameters(layer)
    average.update_parameters(layer)
    layer.load_state_dict(average.module.state_dict())


CHANGES: list[Callable[[nn.Module], None]] = [
    in_place,
    in_place_in_inference_mode,
    one_entry,
    a_bias,
    detached,
    optimizer_step,
    loaded,
    loaded_in_inference_mode,
    assigned,
    assigned_in_inference_mode,
    parameters_replaced,
    parameters_registered,
    a_core_replaced,
    all_cores_replaced,
    a_weight_replaced,
    a_bond_cut,
    data_set,
    vector_to_parameters,
    rounded_and_back,
    swapped_by_hand,
    as_fsdp2_does,
    averaged,
]


PAIRS = [
    pytest.param(change, kind, FIXED[(row + column) % 2], id=f"{change.__name__}-{kind}-{FIXED[(row + column) % 2]}")
    for row, change in enumerate(CHANGES)
    for column, kind in enumerate(KINDS)
]
"""Every change with every kind of layer and with every mode, and every kind with every mode."""


@pytest.mark.slow
@pytest.mark.parametrize(("change", "kind", "execution"), PAIRS)
def test_the_next_result_is_that_of_the_new_values(
    change: Callable[[nn.Module], None], kind: str, execution: Execution
) -> None:
    for context in (torch.inference_mode, torch.no_grad):
        layer = make(kind, execution)
        x = inputs(layer)
        with context():
            before = [tensor.clone() for tensor in tensors(layer(x))]
        for _ in range(2):  # the second time on what was prepared after the first
            change(layer)
            with context():
                result = layer(x)
                assert_close(result, exactly(layer, x), torch.float64, roundings=10)
                assert not any(map(torch.equal, tensors(result), before))


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", KINDS)
def test_another_dtype(kind: str, execution: Execution) -> None:
    layer = make(kind, execution)
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32):
        layer.to(dtype)
        x = inputs(layer)
        for context in (torch.inference_mode, torch.no_grad):
            with context():
                assert_close(layer(x), exactly(layer, x), dtype)


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", KINDS)
def test_training_and_evaluation_by_turns(kind: str, execution: Execution) -> None:
    layer = make(kind, execution)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x = inputs(layer)
    for _ in range(3):
        layer.train()
        optimizer.zero_grad()
        sum(tensor.square().mean() for tensor in tensors(layer(x))).backward()  # type: ignore[union-attr]
        optimizer.step()
        layer.eval()
        with torch.inference_mode():
            assert_close(layer(x), exactly(layer, x), torch.float64)
        layer.train()
        with torch.no_grad():
            assert_close(layer(x), exactly(layer, x), torch.float64)


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_functional_call_with_other_parameters(kind: str, execution: Execution) -> None:
    layer = make(kind, execution)
    x = inputs(layer)
    other = copy.deepcopy(layer)
    in_place(other)
    parameters = {name: parameter.detach() for name, parameter in other.named_parameters()}

    for context in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with context():
            own = exactly(layer, x)
            assert_close(layer(x), own, torch.float64)
            assert_close(functional_call(layer, parameters, (x,)), exactly(other, x), torch.float64)
            assert_close(layer(x), own, torch.float64)


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_functional_call(kind: str, execution: Execution) -> None:
    layer = make(kind, execution)
    x = inputs(layer)
    with torch.inference_mode():
        layer(x)  # prepares what must not be taken
    parameters = {name: (parameter.detach() * -1.25).requires_grad_() for name, parameter in layer.named_parameters()}
    other = copy.deepcopy(layer)
    in_place(other)

    def total(result: Any) -> Tensor:
        return torch.stack([tensor.square().sum() for tensor in tensors(result)]).sum()

    exact = torch.autograd.grad(total(exactly(other, x)), list(other.parameters()))
    gradients = torch.autograd.grad(total(functional_call(layer, parameters, (x,))), list(parameters.values()))
    for gradient, exact_gradient in zip(gradients, exact, strict=True):
        torch.testing.assert_close(gradient, exact_gradient, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_torch_func(kind: str, execution: Execution) -> None:
    layer = make(kind, execution)
    x = inputs(layer)
    with torch.inference_mode():
        layer(x)
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def total(parameters: dict[str, Tensor]) -> Tensor:
        return torch.stack(
            [tensor.square().sum() for tensor in tensors(functional_call(layer, parameters, (x,)))]
        ).sum()

    gradients = grad(total)(parameters)
    exact = torch.autograd.grad(
        torch.stack([tensor.square().sum() for tensor in tensors(exactly(layer, x))]).sum(), list(layer.parameters())
    )
    for gradient, exact_gradient in zip(gradients.values(), exact, strict=True):
        torch.testing.assert_close(gradient, exact_gradient, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_writing_through_data_takes_effect_once_the_cache_is_cleared(kind: str) -> None:
    layer = make(kind, "factorised")
    x = inputs(layer)
    with torch.no_grad():
        layer(x)
    for parameter in layer.parameters():
        parameter.data.mul_(-1.25)  # torch does not count it

    assert isinstance(layer, MPOLSTM | MPOLSTMCell | MPOLinear)
    layer.clear_cache()

    with torch.no_grad():
        assert_close(layer(x), exactly(layer, x), torch.float64)
        assert dense_weights(layer).keys()
