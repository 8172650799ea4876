"""MPOLSTMCell is the cell of its dense weights."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mpocompress.mpo.sites import balanced, folded, low_rank
from mpocompress.nn import Execution, MPOLSTMCell, MPOWeight
from tests.draw import EPS
from tests.nn.builders import (
    CONTEXTS,
    FIXED,
    Chain,
    LSTMPlan,
    assert_close,
    assert_is_its_twin,
    called,
    chains,
    exactly,
    needs_gpu,
    parts,
    tensors,
)

CELLS = {
    "apart": {
        "weight_ih": Chain(sites=low_rank(24, 9), bonds=(4,)),
        "weight_hh": Chain(sites=folded(24, 6, 4, 2), bonds=(5,)),
    },
    "joint": {"weight_joint": Chain(sites=folded(24, 15, 8, 5), bonds=(6,))},
    "joint, two sites": {"weight_joint": Chain(sites=balanced(24, 15, 2), bonds=(7,))},
    "joint, a digit for the inputs' end": {"weight_joint": Chain(sites=folded(24, 15, 1, 5), bonds=(4,))},
    "inputs alone": {"weight_ih": Chain(sites=folded(24, 9, 3, 3), bonds=(3,))},
    "states alone": {"weight_hh": Chain(sites=balanced(24, 6, 3), bonds=(4, 3))},
}


def make(
    chosen: dict[str, Chain],
    sizes: tuple[int, int] = (9, 6),
    *,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
    execution: Execution = "auto",
    device: str = "cpu",
) -> MPOLSTMCell:
    torch.manual_seed(0)
    weights = {name: chain.weight(seed, dtype) for seed, (name, chain) in enumerate(chosen.items())}
    return MPOLSTMCell.replacing(nn.LSTMCell(*sizes, bias=bias, dtype=dtype), weights, execution=execution).to(device)


def arguments(
    sizes: tuple[int, int] = (9, 6), batch: int | None = 3, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    plan = LSTMPlan(input_size=sizes[0], hidden_size=sizes[1])
    x, hx = plan.arguments(batch, length=1, dtype=dtype, device=device)
    assert hx is not None
    return x[0], (hx[0][0], hx[1][0])


@st.composite
def cells(draw: st.DrawFn) -> tuple[tuple[int, int], dict[str, Chain]]:
    inputs, hidden = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    cols = {"ih": inputs, "hh": hidden, "joint": inputs + hidden}
    kind = draw(st.sampled_from(("joint", "apart", "hh", "ih")))
    return (inputs, hidden), {f"weight_{part}": draw(chains(4 * hidden, cols[part])) for part in parts(kind)}


@pytest.mark.usefixtures("sized")
@given(
    cell=cells(),
    bias=st.booleans(),
    batch=st.one_of(st.none(), st.integers(0, 5)),
    states=st.booleans(),
    dtype=st.sampled_from((torch.float64, torch.float32)),
)
def test_it_gives_what_the_dense_cell_gives(
    cell: tuple[tuple[int, int], dict[str, Chain]],
    bias: bool,
    batch: int | None,
    states: bool,
    dtype: torch.dtype,
) -> None:
    sizes, chosen = cell
    x, hx = arguments(sizes, batch, dtype)

    assert_is_its_twin(make(chosen, sizes, bias=bias, dtype=dtype), x, hx if states else None)


def check_dtype(kind: str, dtype: torch.dtype, device: str) -> None:
    layer = make(CELLS[kind], dtype=dtype, device=device)

    assert_is_its_twin(layer, *arguments(dtype=dtype, device=device))


@pytest.mark.parametrize("dtype", list(EPS))
@pytest.mark.parametrize("kind", CELLS)
def test_every_dtype(kind: str, dtype: torch.dtype) -> None:
    check_dtype(kind, dtype, "cpu")


@needs_gpu
def test_every_dtype_on_a_gpu() -> None:
    for kind, dtype in product(CELLS, EPS):
        check_dtype(kind, dtype, "cuda")


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", CELLS)
def test_cells_stepped_through_a_sequence_are_one_lstm(kind: str, execution: Execution) -> None:
    layer = make(CELLS[kind], execution=execution)
    lstm = LSTMPlan(
        input_size=9, hidden_size=6, chains={f"{name}_l0": chain for name, chain in CELLS[kind].items()}
    ).make(execution=execution)
    lstm.load_state_dict(
        {
            name.replace(".core", "_l0.core") if "core" in name else f"{name}_l0": value
            for name, value in layer.state_dict().items()
        }
    )
    x = torch.randn(7, 3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    for context in CONTEXTS.values():
        with context():
            output, (h_n, c_n) = lstm(x)
            state, outputs = None, []
            for step in x:
                state = called(layer, step, state)
                outputs.append(state[0])
            assert state is not None
            assert_close((torch.stack(outputs), state[0][None], state[1][None]), (output, h_n, c_n), torch.float64)


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", CELLS)
def test_results_are_nobody_elses_memory(kind: str, execution: Execution) -> None:
    layer = make(CELLS[kind], execution=execution)
    x, hx = arguments()

    with torch.inference_mode():
        first = layer(x, hx)
        copies = [tensor.clone() for tensor in first]
        layer(x + 1)
        assert all(torch.equal(new, old) for new, old in zip(first, copies, strict=True))
        for tensor in first:
            tensor.fill_(torch.nan)
        assert all(torch.equal(new, old) for new, old in zip(called(layer, x, hx), copies, strict=True))


@pytest.mark.parametrize("kind", CELLS)
def test_memory_in_any_order(kind: str) -> None:
    x, (h, c) = arguments()

    assert_is_its_twin(make(CELLS[kind]), x.T.contiguous().T, (h.T.contiguous().T, c[:, :1].expand(3, 6)))


def test_made_from_all_its_weights_and_looked_at_as_the_cell_it_replaces() -> None:
    twin = make(CELLS["apart"]).eval()
    weights = {name: weight for name, weight in twin.named_children() if isinstance(weight, MPOWeight)}

    layer = MPOLSTMCell(9, 6, weights={**weights, **dict(twin.named_parameters(recurse=False))})

    assert (layer.input_size, layer.hidden_size, layer.bias, twin.training) == (9, 6, True, False)
    x, hx = arguments()
    assert_close(layer(input=x, hx=hx), exactly(layer, x, hx), torch.float64)
    assert len(list(tensors(layer(x)))) == 2


@pytest.mark.parametrize("batch", [1, 3])
def test_column_digits_that_are_the_states(batch: int) -> None:
    layer = make({"weight_joint": Chain(sites=folded(24, 12, 1, 2), bonds=(3,))}, (6, 6))

    assert_is_its_twin(layer, *arguments((6, 6), batch))
