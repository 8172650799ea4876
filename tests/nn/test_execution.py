"""Which way a layer runs: as it is set, as the environment says, and what it shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpocompress.errors import ExecutionError
from mpocompress.mpo.sites import balanced
from mpocompress.nn import MPOLSTM, Execution, MPOLinear, MPOLSTMCell, MPOWeight, set_execution
from mpocompress.nn.execution import forget_measurements
from tests.nn.builders import EXECUTIONS, FIXED, Chain, LSTMPlan, tensors

VARIABLE = "MPOCOMPRESS_EXECUTION"
CHAIN = Chain(sites=balanced(256, 64, 3), bonds=(5, 6))


def lstm(execution: Execution) -> MPOLSTM:
    return LSTMPlan(input_size=64, hidden_size=64, chains={"weight_ih_l0": CHAIN, "weight_hh_l0": CHAIN}).make(
        torch.float32, execution
    )


def cell(execution: Execution) -> MPOLSTMCell:
    torch.manual_seed(0)
    weight = CHAIN.weight(0, torch.float32)
    return MPOLSTMCell.replacing(nn.LSTMCell(64, 64), {"weight_hh": weight}, execution=execution)


def linear(execution: Execution) -> MPOLinear:
    return MPOLinear(CHAIN.weight(0, torch.float32), torch.zeros(256), execution=execution)


Layer = MPOLSTM | MPOLSTMCell | MPOLinear
LAYERS: dict[str, Callable[[Execution], Layer]] = {"lstm": lstm, "cell": cell, "linear": linear}


def result(layer: nn.Module) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (6, 40, 64) if isinstance(layer, MPOLSTM) else (40, 64)
    with torch.inference_mode():
        return list(tensors(layer(torch.randn(shape, generator=generator))))


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    """To the last bit: sums of products of another order differ in some of thousands of entries."""
    return all(map(torch.equal, first, second))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_runs_in_the_mode_that_is_set_and_in_one_that_is_set_later(kind: str) -> None:
    layer = LAYERS[kind]("factorised")
    factorised = result(layer)
    materialised = result(LAYERS[kind]("materialised"))
    assert not same(factorised, materialised)

    layer.execution = "materialised"
    assert layer.execution == "materialised"
    assert same(result(layer), materialised)

    layer.execution = "factorised"
    assert same(result(layer), factorised)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_the_environment_variable_overrides_the_mode(
    execution: Execution, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {mode: result(LAYERS[kind](mode)) for mode in FIXED}
    layer = LAYERS[kind](execution)
    before = result(layer)

    for mode, results in expected.items():
        monkeypatch.setenv(VARIABLE, mode)
        layer.clear_cache()  # it is read when a layer first meets a size of input
        assert same(result(layer), results)
    monkeypatch.setenv(VARIABLE, "")
    layer.clear_cache()
    assert same(result(layer), before)
    assert layer.execution == execution


@pytest.mark.parametrize("kind", LAYERS)
def test_modelled_measures_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*_: Any) -> str:
        raise AssertionError("measured")

    expected = [result(LAYERS[kind](mode)) for mode in FIXED]
    monkeypatch.setattr("mpocompress.nn.execution._fastest", measured)
    with pytest.raises(AssertionError, match="measured"):
        result(LAYERS[kind]("auto"))

    monkeypatch.setenv(VARIABLE, "modelled")
    modelled = result(LAYERS[kind]("auto"))

    for tensor, *candidates in zip(modelled, *expected, strict=True):
        assert any(torch.allclose(tensor, candidate, atol=1e-6) for candidate in candidates)


@pytest.mark.parametrize("kind", LAYERS)
def test_auto_is_one_of_the_others_and_stays_with_it(kind: str) -> None:
    by_mode = [result(LAYERS[kind](mode)) for mode in FIXED]
    layer = LAYERS[kind]("auto")
    first = result(layer)

    assert any(
        all(torch.allclose(tensor, expected, atol=1e-6) for tensor, expected in zip(first, results, strict=True))
        for results in by_mode
    )
    assert same(result(layer), first)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_clock_only_ever_chooses(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement itself, with the clock."""
    monkeypatch.undo()  # without what the fixture replaces
    forget_measurements()
    expected = [result(LAYERS[kind](mode)) for mode in FIXED]
    assert any(same(result(LAYERS[kind]("auto")), results) for results in expected)


@pytest.mark.parametrize("kind", LAYERS)
def test_an_unknown_mode_is_refused_and_nothing_changes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LAYERS[kind]("factorised")
    before = result(layer)

    with pytest.raises(ExecutionError, match=r"got 'quick'; .*Give one of: auto, factorised, materialised\."):
        set_execution(layer, "quick")  # type: ignore[arg-type]
    assert layer.execution == "factorised"

    monkeypatch.setenv(VARIABLE, "quick")
    layer.clear_cache()
    with pytest.raises(ExecutionError, match=rf"{VARIABLE}: got 'quick'"):
        result(layer)
    monkeypatch.delenv(VARIABLE)
    assert same(result(layer), before)


def test_the_mode_of_all_layers_of_a_model_is_set_at_once() -> None:
    model = nn.Sequential(linear("auto"), nn.ReLU(), nn.ModuleDict({"lstm": lstm("factorised"), "cell": cell("auto")}))

    for mode in EXECUTIONS:
        set_execution(model, mode)
        assert [layer.execution for layer in model.modules() if hasattr(layer, "execution")] == [mode] * 3


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(ExecutionError, match=r"Sequential: no MPO layer"):
        set_execution(nn.Sequential(nn.Linear(2, 2)), "auto")


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_shows_its_sites_bonds_and_execution(kind: str, execution: Execution) -> None:
    layer = LAYERS[kind](execution)
    shown = str(layer)

    assert type(layer).__name__ in shown
    assert execution in shown
    assert str(CHAIN.sites.row_dims) in shown
    assert str(CHAIN.sites.col_dims) in shown
    assert str(CHAIN.bonds) in shown
    set_execution(layer, "materialised")
    assert "materialised" in str(layer)


def test_a_weight_that_is_transposed_says_so() -> None:
    assert "transposed" in str(CHAIN.weight(0, transposed=True))
    assert "transposed" not in str(CHAIN.weight(0))
    assert isinstance(CHAIN.weight(0), MPOWeight)
