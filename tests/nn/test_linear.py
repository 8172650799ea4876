"""MPOLinear is the Linear of its dense weight, alone and inside the layers of torch that hold one."""

from __future__ import annotations

import copy
import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mpocompress.mpo.sites import Sites, balanced, folded, low_rank
from mpocompress.nn import Execution, MPOLinear, MPOWeight
from tests.draw import EPS
from tests.nn.builders import (
    FIXED,
    Chain,
    assert_close,
    assert_is_its_twin,
    called,
    chains,
    exactly,
    needs_gpu,
    twin_of,
    ways,
)

FORMS = {
    "low rank": Chain(sites=low_rank(24, 18), bonds=(5,)),
    "split": Chain(sites=folded(24, 18, 2, 2), bonds=(6,)),
    "odd fold": Chain(sites=folded(24, 18, 3, 9), bonds=(7,)),
    "column fold": Chain(sites=folded(24, 18, 1, 6), bonds=(3,)),
    "row fold": Chain(sites=folded(24, 18, 8, 1), bonds=(4,)),
    "two sites": Chain(sites=balanced(24, 18, 2), bonds=(9,)),
    "three sites": Chain(sites=balanced(24, 18, 3), bonds=(5, 4)),
    "four sites": Chain(sites=balanced(24, 18, 4), bonds=(2, 3, 2)),
    "aligned": Chain(sites=Sites(row_dims=(4, 6), col_dims=(6, 3)), bonds=(6,)),
    "aligned, three sites": Chain(sites=Sites(row_dims=(2, 3, 4), col_dims=(3, 3, 2)), bonds=(4, 5)),
    "bond 1": Chain(sites=balanced(24, 18, 3), bonds=(1, 1)),
}


def make(
    chain: Chain,
    *,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
    execution: Execution = "auto",
    device: str = "cpu",
) -> MPOLinear:
    torch.manual_seed(1)
    rows, cols = chain.sites.shape
    linear = nn.Linear(cols, rows, bias=bias, dtype=dtype)
    return MPOLinear.replacing(linear, chain.weight(2, dtype), execution=execution).to(device)


def inputs(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(device, dtype)


@st.composite
def any_chain(draw: st.DrawFn) -> Chain:
    return draw(chains(draw(st.integers(1, 24)), draw(st.integers(1, 24))))


@pytest.mark.usefixtures("sized")
@given(
    chain=any_chain(),
    bias=st.booleans(),
    batch=st.lists(st.integers(0, 4), max_size=3),
    dtype=st.sampled_from((torch.float64, torch.float32)),
)
def test_it_gives_what_the_dense_layer_gives(chain: Chain, bias: bool, batch: list[int], dtype: torch.dtype) -> None:
    layer = make(chain, bias=bias, dtype=dtype)

    assert_is_its_twin(layer, inputs(*batch, chain.sites.shape[1], dtype=dtype))


def check_dtype(form: str, dtype: torch.dtype, device: str) -> None:
    layer = make(FORMS[form], dtype=dtype, device=device)

    assert_is_its_twin(layer, inputs(5, 18, dtype=dtype, device=device))


@pytest.mark.parametrize("dtype", list(EPS))
@pytest.mark.parametrize("form", FORMS)
def test_every_dtype(form: str, dtype: torch.dtype) -> None:
    check_dtype(form, dtype, "cpu")


@needs_gpu
def test_every_dtype_on_a_gpu() -> None:
    for form, dtype in product(FORMS, EPS):
        check_dtype(form, dtype, "cuda")


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("form", FORMS)
def test_any_number_of_rows(form: str) -> None:
    layer = make(FORMS[form])

    for shape in ((18,), (1, 18), (300, 18), (2, 150, 18), (3, 1, 4, 18), (0, 18), (2, 0, 18)):
        assert_is_its_twin(layer, inputs(*shape))


@pytest.mark.parametrize("form", FORMS)
def test_memory_in_any_order(form: str) -> None:
    layer = make(FORMS[form])

    for x in (
        inputs(18, 5).T,
        inputs(4, 18, 5).transpose(1, 2),
        inputs(5, 4, 18).transpose(0, 1),
        inputs(5, 36)[:, ::2],
        inputs(5, 20)[:, 1:19],
        inputs(1, 18).expand(5, 18),
        inputs(5, 1).expand(5, 18),
    ):
        assert_is_its_twin(layer, x)


@pytest.mark.parametrize("form", FORMS)
def test_the_identity_comes_out_as_the_transposed_weight(form: str) -> None:
    layer = make(FORMS[form], bias=False)

    with torch.inference_mode():
        assert_close(layer(torch.eye(18, dtype=torch.float64)), layer.weight.to_matrix().T, torch.float64)


def test_a_weight_that_held_inputs_first() -> None:
    weight = FORMS["odd fold"].weight(2, transposed=True)
    layer = MPOLinear(weight, torch.ones(24, dtype=torch.float64))

    assert (layer.in_features, layer.out_features) == (18, 24)
    for way in ways(layer):
        with way():
            x = inputs(5, 18)
            assert_close(layer(x), (x @ weight.dense() + 1).detach(), torch.float64)


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("form", FORMS)
def test_results_are_nobody_elses_memory(form: str, execution: Execution) -> None:
    layer = make(FORMS[form], execution=execution)
    x = inputs(5, 18)

    with torch.inference_mode():
        first = layer(x)
        copy_of_first = first.clone()
        layer(x + 1)
        assert torch.equal(first, copy_of_first)
        first.fill_(torch.nan)
        assert torch.equal(called(layer, x), copy_of_first)


@pytest.mark.parametrize("form", FORMS)
def test_nan_stays_in_its_row(form: str) -> None:
    layer = make(FORMS[form])
    x = inputs(5, 18)
    exact = exactly(layer, x)
    x[2, 7] = torch.nan

    for way in ways(layer):
        with way():
            y = layer(x)
            assert y[2].isnan().all()
            assert_close(y[[0, 1, 3, 4]], exact[[0, 1, 3, 4]], torch.float64)


def test_it_is_looked_at_as_the_layer_it_replaces() -> None:
    linear = nn.Linear(18, 24).eval()
    layer = MPOLinear.replacing(linear, FORMS["split"].weight(0, torch.float32))

    assert (layer.in_features, layer.out_features, layer.training) == (18, 24, False)
    assert layer.bias is linear.bias
    x = inputs(5, 18, dtype=torch.float32)
    assert_close(layer(input=x), exactly(layer, x), torch.float32)
    assert MPOLinear.replacing(nn.Linear(18, 24, bias=False), FORMS["split"].weight(0)).bias is None


def swapped(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A module whose Linear layers hold cores, and the same with the dense weights of these."""
    ours, theirs = copy.deepcopy(module), copy.deepcopy(module)
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            sites = balanced(layer.out_features, layer.in_features, 2)
            chain = Chain(sites=sites, bonds=(math.ceil(sites.max_bonds[0] / 2),))
            small = MPOLinear.replacing(layer, chain.weight(len(name), layer.weight.dtype))
            ours.set_submodule(name, small)
            theirs.set_submodule(name, twin_of(small, layer.weight.dtype))
    return ours, theirs


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_a_transformer_of_torch_takes_them(norm_first: bool, training: bool) -> None:
    torch.manual_seed(4)
    layer = nn.TransformerEncoderLayer(
        16, 4, 36, dropout=0.0, batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    ours, theirs = swapped(layer.train(training))
    x, padding = inputs(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])

    for way in ways(ours):
        with way():
            for mask in (None, padding):
                words = (
                    slice(None) if mask is None else ~mask
                )  # what torch writes over padding differs between its ways
                result, exact = ours(x, src_key_padding_mask=mask), theirs(x, src_key_padding_mask=mask)
                assert_close(result[words], exact[words].detach(), torch.float64, roundings=4)


def test_attention_of_torch_takes_one_for_its_output() -> None:
    torch.manual_seed(4)
    attention = nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
    ours, theirs = swapped(attention)
    assert isinstance(ours.out_proj, MPOLinear)
    x = inputs(2, 5, 16)

    for training in (True, False):
        for way in ways(ours):
            with way():
                ours.train(training)
                theirs.train(training)
                assert_close(ours(x, x, x), tuple(tensor.detach() for tensor in theirs(x, x, x)), torch.float64)


@given(chain=any_chain(), transposed=st.booleans())
def test_a_weight_stands_for_its_dense_matrix_in_functions_of_torch(chain: Chain, transposed: bool) -> None:
    weight = chain.weight(5, transposed=transposed)
    dense = weight.dense()
    x = inputs(3, weight.shape[1])

    assert weight.shape == dense.shape
    assert torch.equal(weight.to_matrix(), dense.T if transposed else dense)
    assert isinstance(weight, MPOWeight)
    assert_close(nn.functional.linear(x, weight), nn.functional.linear(x, dense), torch.float64)  # type: ignore[arg-type]
    assert torch.equal(torch.cat([weight, weight]), torch.cat([dense, dense]))  # type: ignore[list-item]
