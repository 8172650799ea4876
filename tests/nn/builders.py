"""Layers of cores to test, what the torch layers of their dense weights give, and how close the two have to be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence

from mpocompress.errors import SitesError
from mpocompress.mpo.contraction import to_matrix
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.sites import Sites, balanced, folded, low_rank
from mpocompress.nn import MPOLSTM, Execution, MPOLinear, MPOLSTMCell, MPOWeight, set_execution
from tests.draw import EPS

EXECUTIONS: tuple[Execution, ...] = ("auto", "factorised", "materialised")
FIXED: tuple[Execution, ...] = ("factorised", "materialised")
"""The modes for a test in which a layer runs more than once; `auto` is enough for one that compares a single result,
because all candidates are compared then (see `conftest.py`)."""

CONTEXTS = {"inference_mode": torch.inference_mode, "no_grad": torch.no_grad, "training": torch.enable_grad}
"""A layer may run in another way in each; one uses what another prepared, inference tensors first of all."""

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ROUNDINGS = {torch.float64: 64, torch.float32: 64, torch.bfloat16: 16, torch.float16: 16}
"""How many times the dtype's rounding a result may be off, relative to entries of about 1.

An entry goes through products with up to four cores, up to three levels and seven steps, and each rounds it a few
times. The half types round weights and states alike, so that a bound of 64 would let anything pass in bfloat16.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The shape of an MPO: its sites and the bonds between them."""

    sites: Sites
    bonds: tuple[int, ...]

    def weight(self, seed: int, dtype: torch.dtype = torch.float64, *, transposed: bool = False) -> MPOWeight:
        """Random cores, such that entries of the dense weight are about as large as those of a trained one."""
        generator = torch.Generator().manual_seed(seed)
        bonds = (1, *self.bonds, 1)
        scale = (2 / math.sqrt(self.sites.shape[1] * math.prod(bonds))) ** (1 / len(self.sites.dims))
        cores = tuple(
            torch.randn(left, row, col, right, generator=generator, dtype=torch.float64).mul_(scale).to(dtype)
            for left, row, col, right in zip(bonds, self.sites.row_dims, self.sites.col_dims, bonds[1:], strict=False)
        )
        return MPOWeight(MPO(cores=cores, sites=self.sites), transposed=transposed)


@dataclass(frozen=True, slots=True, kw_only=True)
class LSTMPlan:
    """An LSTM and the chains in the place of some of its weights, by name; the other weights are dense."""

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    bidirectional: bool = False
    proj_size: int = 0
    chains: Mapping[str, Chain] = field(default_factory=dict)
    seed: int = 0

    @property
    def state_size(self) -> int:
        """Entries of a hidden state."""
        return self.proj_size or self.hidden_size

    @property
    def ends(self) -> list[str]:
        """What the names of one level and direction end with."""
        return ends(self.num_layers, self.bidirectional)

    def width(self, end: str) -> int:
        """Entries of an input of a level."""
        return self.input_size if end.startswith("l0") else self.state_size * (1 + self.bidirectional)

    def make(self, dtype: torch.dtype = torch.float64, execution: Execution = "auto", device: str = "cpu") -> MPOLSTM:
        """The layer, in place of a torch layer."""
        torch.manual_seed(self.seed)
        lstm = nn.LSTM(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            bias=self.bias,
            batch_first=self.batch_first,
            bidirectional=self.bidirectional,
            proj_size=self.proj_size,
            dtype=dtype,
        )
        weights = {
            name: chain.weight(self.seed + place, dtype) for place, (name, chain) in enumerate(self.chains.items())
        }
        return MPOLSTM.replacing(lstm, weights, execution=execution).to(device)

    def arguments(
        self,
        batch: int | None = 3,  # None: no batch dimension
        length: int = 4,
        states: bool = True,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """An input, and states to begin with if wanted."""
        generator = torch.Generator().manual_seed(self.seed + 100)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

        middle = () if batch is None else (batch,)
        levels = len(self.ends)
        x = random(*middle, length, self.input_size) if self.batch_first else random(length, *middle, self.input_size)
        h0, c0 = random(levels, *middle, self.state_size).tanh(), random(levels, *middle, self.hidden_size)
        return x, (h0, c0) if states else None


def ends(num_layers: int, bidirectional: bool) -> list[str]:
    """What torch ends the names of the weights of each level and direction with."""
    return [f"l{level}{way}" for level in range(num_layers) for way in (("", "_reverse") if bidirectional else ("",))]


def divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


@st.composite
def digits(draw: st.DrawFn, number: int, count: int) -> tuple[int, ...]:
    """A number as a product of `count` factors in any order, 1 among them."""
    factors = []
    for _ in range(count - 1):
        factors.append(draw(st.sampled_from(divisors(number))))
        number //= factors[-1]
    return (*factors, number)


@st.composite
def sites_for(draw: st.DrawFn, rows: int, cols: int) -> Sites:
    """Sites of a matrix: each form that the library chooses from, and any other."""
    kind = draw(st.sampled_from(("low rank", "folded", "balanced", "any")))
    if kind == "folded":
        return folded(rows, cols, draw(st.sampled_from(divisors(rows))), draw(st.sampled_from(divisors(cols))))
    if kind == "balanced":
        try:
            return balanced(rows, cols, draw(st.integers(2, 4)))
        except SitesError:
            return low_rank(rows, cols)
    if kind == "any":
        count = draw(st.integers(2, 4))
        row_dims, col_dims = draw(digits(rows, count)), draw(digits(cols, count))
        return Sites(row_dims=row_dims, col_dims=col_dims, anti_aligned=draw(st.booleans()))
    return low_rank(rows, cols)


@st.composite
def chains(draw: st.DrawFn, rows: int, cols: int) -> Chain:
    """A chain for a matrix, bonds from 1 to the largest useful one."""
    sites = draw(sites_for(rows, cols))
    return Chain(sites=sites, bonds=tuple(draw(st.integers(1, bond)) for bond in sites.max_bonds))


def parts(kind: str) -> tuple[str, ...]:
    """Which matrices of a level hold cores: none of them, one, both apart, or both as one."""
    return {"dense": (), "ih": ("ih",), "hh": ("hh",), "apart": ("ih", "hh"), "joint": ("joint",)}[kind]


@st.composite
def chains_of_level(draw: st.DrawFn, end: str, width: int, hidden: int, projection: int) -> dict[str, Chain]:
    """The chains of one level and direction, any mixture with dense weights."""
    state = projection or hidden
    cols = {"ih": width, "hh": state, "joint": width + state}
    kind = draw(st.sampled_from(("joint", "apart", "hh", "ih", "dense")))
    by_name = {f"weight_{part}_{end}": draw(chains(4 * hidden, cols[part])) for part in parts(kind)}
    if projection and draw(st.booleans()):
        by_name[f"weight_hr_{end}"] = draw(chains(projection, hidden))
    return by_name


@st.composite
def lstm_plans(draw: st.DrawFn, most_levels: int = 3, most: int = 9) -> LSTMPlan:
    """Any LSTM with small sizes, odd and prime ones and 1 among them."""
    input_size, hidden_size = draw(st.integers(1, most)), draw(st.integers(1, most))
    proj_size = draw(st.integers(0, hidden_size - 1)) if draw(st.booleans()) else 0
    plan = LSTMPlan(
        input_size=input_size,
        hidden_size=hidden_size,
        num_layers=draw(st.integers(1, most_levels)),
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        bidirectional=draw(st.booleans()),
        proj_size=proj_size,
        seed=draw(st.integers(0, 99)),
    )
    by_name: dict[str, Chain] = {}
    for end in plan.ends:
        by_name |= draw(chains_of_level(end, plan.width(end), hidden_size, proj_size))
    if not by_name:
        by_name["weight_hh_l0"] = draw(chains(4 * hidden_size, plan.state_size))
    return replace(plan, chains=by_name)


def dense_weights(layer: nn.Module) -> dict[str, Tensor]:
    """The parameters of the torch layer it stands for: cores multiplied out in float64, on the CPU, differentiable."""
    weights: dict[str, Tensor] = {}
    for name, parameter in layer.named_parameters():
        if ".core." not in name:
            weights[name] = parameter.to("cpu", torch.float64)
        elif name.endswith(".core.0"):
            name = name.removesuffix(".core.0")
            weight = layer.get_submodule(name)
            assert isinstance(weight, MPOWeight)
            matrix = to_matrix([core.to("cpu", torch.float64) for core in weight.cores], weight.sites)
            if "joint" in name:
                assert isinstance(layer, MPOLSTM | MPOLSTMCell)
                states = getattr(layer, "proj_size", 0) or layer.hidden_size
                inputs = matrix.shape[1] - states
                weights[name.replace("joint", "ih")] = matrix[:, :inputs]
                weights[name.replace("joint", "hh")] = matrix[:, inputs:]
            else:
                weights[name] = matrix.T if weight.transposed else matrix
    return weights


def empty_twin(layer: nn.Module) -> nn.Module:
    """A torch layer of the same sizes, in float64; its own values mean nothing."""
    twin: nn.Module
    if isinstance(layer, MPOLinear):
        twin = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    elif isinstance(layer, MPOLSTMCell):
        twin = nn.LSTMCell(layer.input_size, layer.hidden_size, bias=bool(layer.bias))
    else:
        assert isinstance(layer, MPOLSTM)
        twin = nn.LSTM(
            layer.input_size,
            layer.hidden_size,
            layer.num_layers,
            bias=bool(layer.bias),
            batch_first=layer.batch_first,
            bidirectional=layer.bidirectional,
            proj_size=layer.proj_size,
        )
        twin.dropout = layer.dropout  # one that is given to the constructor warns where there is one level
    return twin.double().train(layer.training)


def twin_of(layer: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The torch layer whose weights are the cores multiplied out."""
    twin = empty_twin(layer)
    twin.load_state_dict({name: weight.detach() for name, weight in dense_weights(layer).items()})
    return twin.to(dtype)


def exactly(layer: nn.Module, *arguments: Any) -> Any:
    """What the torch layer of the dense weights gives in float64, differentiable down to the cores."""
    return functional_call(empty_twin(layer), dense_weights(layer), wide(arguments))


def wide(value: Any) -> Any:
    """Tensors, packed ones too, in float64 on the CPU."""
    if isinstance(value, Tensor | PackedSequence):
        return value.double().cpu()
    return tuple(map(wide, value)) if isinstance(value, tuple | list) else value


def tensors(value: Any) -> Iterator[Tensor]:
    """All floating point tensors in a nest of arguments or results, in order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Iterable):
        for entry in value:
            yield from tensors(entry)


def assert_close(result: Any, exact: Any, dtype: torch.dtype, roundings: float = 1, *, equal_nan: bool = False) -> None:
    """Check that all tensors of a result are near the exact ones, and of the dtype."""
    ours, theirs = list(tensors(result)), list(tensors(exact))
    assert len(ours) == len(theirs)
    bound = ROUNDINGS[dtype] * EPS[dtype] * roundings
    for tensor, exact_tensor in zip(ours, theirs, strict=True):
        assert tensor.dtype == dtype
        assert tensor.shape == exact_tensor.shape
        wide_tensor = tensor.to("cpu", torch.float64)
        torch.testing.assert_close(wide_tensor, exact_tensor, rtol=bound, atol=bound, equal_nan=equal_nan)


def called(layer: nn.Module, *arguments: Any) -> Any:
    """The result of a layer, once it is seen that its arguments are as they were."""
    before = [tensor.clone() for tensor in tensors(arguments)]
    result = layer(*arguments)
    assert all(torch.equal(new, old) for new, old in zip(tensors(arguments), before, strict=True))
    return result


@contextmanager
def with_gradients(model: nn.Module, execution: Execution) -> Iterator[None]:
    """Run a model with gradients in one execution mode inside the block, and in `auto` after it."""
    set_execution(model, execution)
    with torch.enable_grad():
        yield
    set_execution(model, "auto")


def ways(model: nn.Module) -> list[Callable[[], AbstractContextManager[Any]]]:
    """Return every way to run a model whose layers are set to `auto`.

    Without gradients, all candidates are run and compared (see `conftest.py`). With gradients there is no measurement,
    so that each mode has to be set.
    """
    return [*CONTEXTS.values(), *(partial(with_gradients, model, execution) for execution in FIXED)]


def assert_is_its_twin(layer: nn.Module, *arguments: Any) -> None:
    """Check that a layer gives what the torch layer gives, in every way to run and in the dtype of its parameters."""
    dtype = next(layer.parameters()).dtype
    with torch.no_grad():
        exact = exactly(layer, *arguments)
    for way in ways(layer):
        with way():
            assert_close(called(layer, *arguments), exact, dtype)
