"""Recorded runs: torch.export, torch.compile and autocast take a layer as they take the one it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpocompress.mpo.sites import balanced, folded
from mpocompress.nn import MPOLSTM, Execution, MPOLinear, MPOLSTMCell
from tests.nn.builders import FIXED, Chain, LSTMPlan, assert_close, exactly, tensors, twin_of, ways
from tests.nn.test_freshness import KINDS, inputs, make
from tests.nn.test_lstm import MIXTURES, WAYS

# torch.compile looks at the gradient of what comes out of a call that it leaves alone, which torch warns of.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor"),
]


@pytest.fixture(autouse=True)
def _compiled_anew() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_layer_gives_the_same(kind: str, execution: Execution) -> None:
    layer = make(kind, execution).eval()
    x, other = inputs(layer, 1), inputs(layer, 2)
    with torch.no_grad():
        layer(x)  # what it caches must not get into the program as a constant

    program = torch.export.export(layer, (x,))

    assert_close(program.module()(other), exactly(layer, other), torch.float64)
    assert sorted(program.state_dict) == sorted(layer.state_dict())
    assert not program.constants
    nodes = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert not any("lstm" in str(target) and "aten" not in str(target) for target in nodes)


@pytest.mark.parametrize(
    ("mixture", "execution"),
    [
        ("joint below, apart above", "auto"),
        ("joint below, apart above", "factorised"),
        ("four sites, aligned", "materialised"),
    ],
)
def test_an_exported_lstm_takes_states(mixture: str, execution: Execution) -> None:
    plan = LSTMPlan(input_size=7, hidden_size=6, num_layers=2, batch_first=True, chains=MIXTURES[mixture])
    layer = plan.make(execution=execution).eval()
    x, hx = plan.arguments(length=5)

    program = torch.export.export(layer, (x, hx))

    assert_close(program.module()(x + 1, hx), exactly(layer, x + 1, hx), torch.float64)


def test_an_export_by_dynamo_gives_the_same() -> None:
    layer = make("lstm, joint", "factorised").eval()
    x, other = inputs(layer, 1), inputs(layer, 2)

    program = torch.export.export(layer, (x,), strict=True)

    assert_close(program.module()(other), exactly(layer, other), torch.float64)


@pytest.mark.parametrize("execution", FIXED)
def test_an_exported_linear_layer_takes_any_batch(execution: Execution) -> None:
    layer = make("linear", execution).eval()
    batch = torch.export.Dim("batch", min=2, max=512)

    program = torch.export.export(layer, (inputs(layer),), dynamic_shapes=({0: batch},))

    for rows in (2, 7, 300):
        x = torch.randn(rows, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
        assert_close(program.module()(x), exactly(layer, x), torch.float64)


class Tagger(nn.Module):
    """A model as people write it."""

    def __init__(self, execution: Execution) -> None:
        super().__init__()
        plan = LSTMPlan(
            input_size=8, hidden_size=6, proj_size=4, bidirectional=True, batch_first=True, chains=WAYS["all"]
        )
        self.lstm = plan.make(execution=execution)
        head = Chain(sites=balanced(12, 8, 2), bonds=(5,)).weight(0)
        self.head = MPOLinear(head, torch.ones(12, dtype=torch.float64), execution=execution)

    def forward(self, x: Tensor) -> Tensor:
        output, (h, _) = self.lstm(x)
        scores: Tensor = self.head(torch.tanh(output)) + h.sum()
        return scores


def words(length: int = 5) -> Tensor:
    return torch.randn(3, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Counting:
    """A backend that runs graphs as they are and counts what is in them."""

    def __init__(self) -> None:
        self.nodes: list[int] = []

    def __call__(self, module: torch.fx.GraphModule, _: Any) -> Any:
        self.nodes.append(len(module.graph.nodes))
        return module.forward


@pytest.mark.parametrize(
    ("backend", "execution"), [("eager", "auto"), ("aot_eager", "factorised"), ("aot_eager", "materialised")]
)
def test_a_compiled_model_gives_the_same_and_learns_the_same(backend: str, execution: Execution) -> None:
    model = Tagger(execution)
    plain = model(words())
    exact = torch.autograd.grad(plain.square().sum(), list(model.parameters()))

    compiled = torch.compile(model, backend=backend)

    result = compiled(words())
    torch.testing.assert_close(result, plain, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(result.square().sum(), list(model.parameters()))
    for gradient, exact_gradient in zip(gradients, exact, strict=True):
        torch.testing.assert_close(gradient, exact_gradient, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        for length in (5, 9):
            torch.testing.assert_close(compiled(words(length)), model(words(length)), rtol=1e-12, atol=1e-12)
            for parameter in model.parameters():
                parameter.mul_(0.75)
            torch.testing.assert_close(compiled(words(length)), model(words(length)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("gradients", "execution"), [(True, "factorised"), (False, "factorised"), (False, "materialised")]
)
def test_a_compiled_sequence_is_not_written_out_step_by_step(gradients: bool, execution: Execution) -> None:
    counts = []
    for length in (3, 40):
        torch.compiler.reset()
        backend = Counting()
        with torch.set_grad_enabled(gradients):
            torch.compile(Tagger(execution), backend=backend)(words(length))
        counts.append(sum(backend.nodes))

    assert counts[0] > 0
    assert counts[1] <= counts[0] + 10


@pytest.mark.parametrize("execution", FIXED)
def test_a_compiled_linear_layer_is_one_graph(execution: Execution) -> None:
    layer = make("linear", execution)
    backend = Counting()
    compiled = torch.compile(layer, backend=backend, fullgraph=True)

    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert_close(compiled(inputs(layer)), exactly(layer, inputs(layer)), torch.float64)


@pytest.mark.parametrize("execution", FIXED)
def test_a_compiled_cell_gives_the_same(execution: Execution) -> None:
    layer = make("cell", execution)
    compiled = torch.compile(layer, backend="eager")

    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert_close(compiled(inputs(layer)), exactly(layer, inputs(layer)), torch.float64)


AUTOCAST: dict[str, Callable[[Execution, torch.dtype], nn.Module]] = {
    "lstm": lambda execution, dtype: LSTMPlan(
        input_size=7, hidden_size=6, num_layers=2, chains=MIXTURES["joint below, apart above"]
    ).make(dtype, execution),
    "cell": lambda execution, dtype: make("cell", execution, dtype),
    "linear": lambda execution, dtype: make("linear", execution, dtype),
}


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", AUTOCAST)
def test_autocast_gives_the_dtypes_that_torch_gives(kind: str, dtype: torch.dtype, given: torch.dtype) -> None:
    layer = AUTOCAST[kind]("auto", dtype)
    twin = twin_of(layer, dtype)
    x = inputs(layer).to(given)
    exact = exactly(layer, x)

    for way in ways(layer):
        with way(), torch.autocast("cpu", torch.bfloat16):
            try:
                theirs = list(tensors(twin(x)))
            except (RuntimeError, ValueError):
                continue  # what torch cannot do is not asked for
            ours = list(tensors(layer(x)))
        assert [tensor.dtype for tensor in ours] == [tensor.dtype for tensor in theirs]
        for tensor, exact_tensor in zip(ours, tensors(exact), strict=True):
            torch.testing.assert_close(tensor.double(), exact_tensor, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", AUTOCAST)
def test_autocast_keeps_gradients_in_the_dtype_of_the_parameters(kind: str, execution: Execution) -> None:
    layer = AUTOCAST[kind](execution, torch.float32)
    x = inputs(layer).requires_grad_()
    exact = torch.autograd.grad(
        torch.stack([tensor.sum() for tensor in tensors(exactly(layer, x))]).sum(), [x, *layer.parameters()]
    )

    with torch.autocast("cpu", torch.bfloat16):
        total = torch.stack([tensor.sum() for tensor in tensors(layer(x))]).sum()
    torch.autograd.backward(total)

    for leaf, gradient in zip([x, *layer.parameters()], exact, strict=True):
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(leaf.grad.double(), gradient.double(), rtol=0.1, atol=0.1 * scale)


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", AUTOCAST)
def test_what_ran_under_autocast_is_not_taken_without_it(kind: str, execution: Execution) -> None:
    layer = AUTOCAST[kind](execution, torch.float32)
    x = inputs(layer)

    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
        assert_close(layer(x), exactly(layer, x), torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
        assert_close(layer(x), exactly(layer, x), torch.float32)


def test_kinds_are_what_they_say() -> None:
    """So that a list of layers that lost one is seen."""
    assert {type(make(kind)) for kind in KINDS} == {MPOLSTM, MPOLSTMCell, MPOLinear}
    assert folded(24, 15, 8, 5).dims
