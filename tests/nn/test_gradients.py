"""Gradients of cores, biases, inputs and states are those that come through the dense weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from mpocompress.mpo.sites import Sites, balanced, folded, low_rank
from mpocompress.nn import Execution, MPOLinear, MPOWeight
from tests.draw import EPS
from tests.nn.builders import FIXED, ROUNDINGS, Chain, LSTMPlan, assert_close, exactly, lstm_plans, tensors
from tests.nn.test_linear import FORMS, any_chain
from tests.nn.test_linear import make as make_linear
from tests.nn.test_lstm import MIXTURES, WAYS
from tests.nn.test_lstm_cell import CELLS, cells
from tests.nn.test_lstm_cell import arguments as cell_arguments
from tests.nn.test_lstm_cell import make as make_cell

MASKS = st.lists(st.booleans(), min_size=3, max_size=3).filter(any)
"""Which of the output and the two states a loss looks at."""


def loss(result: Any, seen: Sequence[bool] = (True, True, True)) -> Tensor:
    """A sum with random weights over those parts of a result that are seen."""
    generator = torch.Generator().manual_seed(0)
    terms = [
        (part.to("cpu", torch.float64) * torch.randn(part.shape, generator=generator, dtype=torch.float64)).sum()
        for part in tensors(result)
    ]
    return torch.stack([term for term, is_seen in zip(terms, seen, strict=False) if is_seen]).sum()


def leaves(layer: nn.Module, arguments: Any) -> list[Tensor]:
    return [*layer.parameters(), *(tensor for tensor in tensors(arguments) if tensor.requires_grad)]


def assert_same_gradients(layer: nn.Module, *arguments: Any, seen: Sequence[bool] = (True, True, True)) -> None:
    wanted = leaves(layer, arguments)
    exact = torch.autograd.grad(loss(exactly(layer, *arguments), seen), wanted, materialize_grads=True)

    gradients = torch.autograd.grad(loss(layer(*arguments), seen), wanted, materialize_grads=True)

    for gradient, exact_gradient, leaf in zip(gradients, exact, wanted, strict=True):
        exact_gradient = exact_gradient.double()
        bound = ROUNDINGS[leaf.dtype] * EPS[leaf.dtype]
        # A gradient is a sum over all steps and rows, whose terms may cancel: it is compared with its largest entry.
        scale = max(1.0, float(exact_gradient.abs().max())) if exact_gradient.numel() else 1.0
        assert gradient.dtype == leaf.dtype
        torch.testing.assert_close(gradient.double(), exact_gradient, rtol=bound, atol=4 * bound * scale)


def requiring(arguments: Any, which: Sequence[bool] = (True, True, True)) -> Any:
    for tensor, wanted in zip(tensors(arguments), which, strict=False):
        tensor.requires_grad_(wanted)
    return arguments


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("execution", FIXED)
@given(
    plan=lstm_plans(),
    batch=st.one_of(st.none(), st.integers(1, 4)),
    length=st.integers(1, 5),
    states=st.booleans(),
    seen=MASKS,
    wanted=MASKS,
)
def test_an_lstm(
    execution: Execution,
    plan: LSTMPlan,
    batch: int | None,
    length: int,
    states: bool,
    seen: list[bool],
    wanted: list[bool],
) -> None:
    arguments = requiring(plan.arguments(batch, length, states), wanted)

    assert_same_gradients(plan.make(execution=execution), *arguments, seen=seen)


@pytest.mark.parametrize("execution", FIXED)
@given(plan=lstm_plans(most_levels=2), lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), seen=MASKS)
def test_packed_sequences(execution: Execution, plan: LSTMPlan, lengths: list[int], seen: list[bool]) -> None:
    x, hx = requiring(plan.arguments(batch=len(lengths), length=max(lengths)))
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=plan.batch_first, enforce_sorted=False)
    layer = plan.make(execution=execution)
    wanted = [*layer.parameters(), x, *hx]

    exact, gradients = (
        torch.autograd.grad(loss(result, seen), wanted, materialize_grads=True, retain_graph=True)
        for result in (exactly(layer, packed, hx), layer(packed, hx))  # packing is in the graph of both
    )

    for gradient, exact_gradient in zip(gradients, exact, strict=True):
        scale = max(1.0, float(exact_gradient.abs().max()))
        torch.testing.assert_close(gradient, exact_gradient, rtol=1e-14, atol=1e-13 * scale)


@pytest.mark.parametrize("execution", FIXED)
@given(cell=cells(), bias=st.booleans(), batch=st.one_of(st.none(), st.integers(1, 4)), states=st.booleans())
def test_a_cell(
    execution: Execution, cell: tuple[tuple[int, int], dict[str, Chain]], bias: bool, batch: int | None, states: bool
) -> None:
    sizes, chosen = cell
    x, hx = requiring(cell_arguments(sizes, batch))

    assert_same_gradients(make_cell(chosen, sizes, bias=bias, execution=execution), x, hx if states else None)


@pytest.mark.parametrize("execution", FIXED)
@given(chain=any_chain(), bias=st.booleans(), batch=st.lists(st.integers(0, 4), max_size=3), inputs=st.booleans())
def test_a_linear_layer(execution: Execution, chain: Chain, bias: bool, batch: list[int], inputs: bool) -> None:
    x = torch.randn(*batch, chain.sites.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    assert_same_gradients(make_linear(chain, bias=bias, execution=execution), x.requires_grad_(inputs))


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("form", FORMS)
def test_a_linear_layer_over_many_rows(form: str, execution: Execution) -> None:
    x = torch.randn(2, 150, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    assert_same_gradients(make_linear(FORMS[form], execution=execution), x.transpose(0, 1).requires_grad_())


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixture", ["joint below, apart above", "cores on inputs, dense states"])
def test_every_dtype(mixture: str, dtype: torch.dtype, execution: Execution) -> None:
    plan = LSTMPlan(input_size=7, hidden_size=6, num_layers=2, chains=MIXTURES[mixture])
    assert_same_gradients(plan.make(dtype, execution), *requiring(plan.arguments(dtype=dtype)))

    cell = make_cell(CELLS["joint"], dtype=dtype, execution=execution)
    assert_same_gradients(cell, *requiring(cell_arguments(dtype=dtype)))

    linear = make_linear(FORMS["odd fold"], dtype=dtype, execution=execution)
    assert_same_gradients(linear, torch.linspace(-1, 1, 54).view(3, 18).to(dtype).requires_grad_())


CHECKED = {
    "low rank": {"weight_joint_l0": Chain(sites=low_rank(8, 5), bonds=(2,))},
    "folded": {"weight_joint_l0": Chain(sites=folded(8, 5, 2, 5), bonds=(2,))},
    "apart": {
        "weight_ih_l0": Chain(sites=folded(8, 3, 4, 3), bonds=(2,)),
        "weight_hh_l0": Chain(sites=Sites(row_dims=(2, 2, 2), col_dims=(1, 2, 1)), bonds=(2, 2)),
    },
    "states alone": {"weight_hh_l0": Chain(sites=balanced(8, 2, 2), bonds=(3,))},
}


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("form", CHECKED)
def test_finite_differences_of_an_lstm(form: str, execution: Execution) -> None:
    plan = LSTMPlan(input_size=3, hidden_size=2, chains=CHECKED[form])
    layer = plan.make(execution=execution)
    x, hx = requiring(plan.arguments(batch=2, length=3))

    # The layer's own parameters are nudged: what it has prepared must not outlive that either.
    assert torch.autograd.gradcheck(
        lambda x, h, c, *_: tuple(tensors(layer(x, (h, c)))), (x, *hx, *layer.parameters()), fast_mode=True
    )


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("form", ["low rank", "odd fold", "three sites", "aligned"])
def test_finite_differences_of_a_linear_layer(form: str, execution: Execution) -> None:
    layer = make_linear(FORMS[form], execution=execution)
    x = torch.randn(2, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()), fast_mode=True)


def layers(execution: Execution) -> dict[str, tuple[nn.Module, Any]]:
    """One layer of each kind, with what it is called with."""
    plan = LSTMPlan(input_size=7, hidden_size=6, num_layers=2, chains=MIXTURES["joint below, apart above"])
    both = LSTMPlan(input_size=8, hidden_size=6, proj_size=4, bidirectional=True, chains=WAYS["all"])
    x = torch.randn(5, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return {
        "lstm": (plan.make(execution=execution), requiring(plan.arguments())),
        "both ways": (both.make(execution=execution), requiring(both.arguments())),
        "cell": (make_cell(CELLS["joint"], execution=execution), requiring(cell_arguments())),
        "linear": (make_linear(FORMS["odd fold"], execution=execution), (x.requires_grad_(),)),
    }


KINDS = ("lstm", "both ways", "cell", "linear")


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_add_up_and_a_graph_can_be_gone_through_twice(kind: str, execution: Execution) -> None:
    layer, arguments = layers(execution)[kind]
    wanted = leaves(layer, arguments)
    exact = torch.autograd.grad(loss(exactly(layer, *arguments)), wanted)

    first = loss(layer(*arguments))
    second = loss(layer(*arguments))
    torch.autograd.backward(first, retain_graph=True)
    torch.autograd.backward(second)
    torch.autograd.backward(first)

    for leaf, gradient in zip(wanted, exact, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, 3 * gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", ["one core", "a weight", "all cores", "biases", "everything"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_gets_its_own(
    frozen: str, kind: str, execution: Execution
) -> None:
    layer, arguments = layers(execution)[kind]
    names = [name for name, _ in layer.named_parameters()]
    core = next(name for name in names if name.endswith("core.1"))
    stopped = {
        "one core": [core],
        "a weight": [name for name in names if name.startswith(core.removesuffix("core.1"))],
        "all cores": [name for name in names if ".core." in name],
        "biases": [name for name in names if "bias" in name],
        "everything": names,
    }[frozen]
    exact = dict(
        zip(names, torch.autograd.grad(loss(exactly(layer, *arguments)), list(layer.parameters())), strict=True)
    )
    for name in stopped:
        layer.get_parameter(name).requires_grad_(False)

    torch.autograd.backward(loss(layer(*arguments)))

    for name, parameter in layer.named_parameters():
        if name in stopped:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            torch.testing.assert_close(parameter.grad, exact[name], rtol=1e-12, atol=1e-12)
    assert all(tensor.grad is not None for tensor in tensors(arguments))


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_only_where_one_is_wanted(kind: str, execution: Execution) -> None:
    layer, arguments = layers(execution)[kind]

    assert all(tensor.requires_grad for tensor in tensors(layer(*arguments)))
    with torch.no_grad():
        for _ in range(2):
            assert not any(tensor.requires_grad for tensor in tensors(layer(*arguments)))
    layer.requires_grad_(False)
    assert all(tensor.requires_grad for tensor in tensors(layer(*arguments)))
    for tensor in tensors(arguments):
        tensor.requires_grad_(False)
    assert not any(tensor.requires_grad for tensor in tensors(layer(*arguments)))


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", KINDS)
def test_running_without_a_graph_first_changes_no_gradient(kind: str, execution: Execution) -> None:
    layer, arguments = layers(execution)[kind]
    with torch.inference_mode():
        layer(*arguments)
    with torch.no_grad():
        layer(*arguments)

    assert_same_gradients(layer, *arguments)


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", KINDS)
def test_results_may_be_written_to_before_the_backward_pass(kind: str, execution: Execution) -> None:
    layer, arguments = layers(execution)[kind]
    wanted = leaves(layer, arguments)

    def halved(result: Any) -> Any:
        # As an in-place activation or a masked fill does.
        return [tensor.mul_(0.5).clamp_(min=0) for tensor in tensors(result)]

    exact = torch.autograd.grad(loss(halved(exactly(layer, *arguments))), wanted)
    gradients = torch.autograd.grad(loss(halved(layer(*arguments))), wanted)

    for gradient, exact_gradient in zip(gradients, exact, strict=True):
        torch.testing.assert_close(gradient, exact_gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("execution", FIXED)
def test_training_follows_the_dense_way(execution: Execution) -> None:
    plan = LSTMPlan(input_size=7, hidden_size=6, chains={"weight_joint_l0": Chain(sites=low_rank(24, 13), bonds=(3,))})
    layers = [plan.make(execution=execution) for _ in range(2)]
    x, hx = plan.arguments()

    runs: list[Callable[[], Any]] = [lambda: layers[0](x, hx), lambda: exactly(layers[1], x, hx)]
    for layer, run in zip(layers, runs, strict=True):
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            torch.autograd.backward(loss(run()))
            optimizer.step()

    for parameter, expected in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        torch.testing.assert_close(
            parameter, expected, rtol=1e-7, atol=1e-9
        )  # Adam divides by gradients that may be small


@pytest.mark.parametrize("execution", FIXED)
def test_one_weight_in_two_layers(execution: Execution) -> None:
    weight = Chain(sites=folded(18, 18, 3, 3), bonds=(4,)).weight(0)
    assert isinstance(weight, MPOWeight)
    model = nn.Sequential(MPOLinear(weight, execution=execution), nn.Tanh(), MPOLinear(weight, execution=execution))
    x = torch.randn(5, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dense = weight.dense()

    gradients = torch.autograd.grad(loss(model(x)), list(model.parameters()))
    exact = torch.autograd.grad(loss((x @ dense.T).tanh() @ dense.T), list(weight.parameters()))

    assert_close(gradients, exact, torch.float64, roundings=10)
