"""Layers fitted again: the least-squares target against torch, and the inputs that every kind of layer is fitted to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mpocompress.calibration.batches import sample_total
from mpocompress.calibration.hooks import WeightGroup
from mpocompress.calibration.moments import collect
from mpocompress.calibration.refit import RIDGE, CrossMoments, refit, shifted_target
from tests.calibration.trial_models import Calls, inputs, numbers, rig_of, seeded
from tests.draw import random_matrix

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

CLOSE = 1e-4
"""Sums of products of float32 numbers near 1."""


def moments_of(before: Tensor, after: Tensor) -> CrossMoments:
    moments = CrossMoments(before.shape[1])
    for start in range(0, len(before), 7):
        moments.add(before[start : start + 7], after[start : start + 7])
    return moments


@given(st.integers(1, 5), st.integers(0, 50), st.sampled_from([0.0, 0.3, 1.0]), st.booleans())
def test_the_target_is_the_ridge_solution(cols: int, seed: int, mix: float, centred: bool) -> None:
    before = random_matrix(40, cols, seed) + 0.5
    after = before + 0.3 * random_matrix(40, cols, seed + 1)
    weight = random_matrix(3, cols, seed + 2)
    found = shifted_target(weight, moments_of(before, after), (0, cols), mix=mix, centred=centred)

    x, z = (one - one.mean(0) if centred else one for one in (before, after))
    scale = float((z.T @ z / 40).diagonal().mean())
    side = (40 * (RIDGE * (1 + 1e-3) + 2e-3) * scale) ** 0.5 * torch.eye(cols).double()  # as rows of more samples
    rows, wanted = torch.cat([z, side]), torch.cat([(x - z) @ weight.T, torch.zeros(cols, 3).double()])
    correction = torch.linalg.lstsq(rows, wanted).solution.T
    torch.testing.assert_close(found.weight, weight + (1 - mix) * correction, rtol=0.01, atol=0.01)
    torch.testing.assert_close(found.mean_after, after.mean(0))
    torch.testing.assert_close(found.mean_before, (1 - mix) * before.mean(0) + mix * after.mean(0))
    assert torch.linalg.eigvalsh(found.second)[0] > 0.0
    if mix == 1.0:
        assert found.weight.equal(weight)


def test_a_span_is_fitted_by_its_own_inputs() -> None:
    before, after, weight = random_matrix(30, 5, 0), random_matrix(30, 5, 1), random_matrix(2, 2, 2)
    whole, part = moments_of(before, after), moments_of(before[:, 1:3], after[:, 1:3])
    found = shifted_target(weight, whole, (1, 3), mix=0.5, centred=True)
    wanted = shifted_target(weight, part, (0, 2), mix=0.5, centred=True)

    torch.testing.assert_close(found.weight, wanted.weight)
    torch.testing.assert_close(found.second, wanted.second)


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1])
@pytest.mark.parametrize("centred", [False, True])
def test_inputs_that_never_vary_correct_nothing_much(constant: float, centred: bool) -> None:
    rows = torch.full((10, 4), constant)
    found = shifted_target(torch.ones(3, 4), moments_of(rows, rows), (0, 4), mix=0.2, centred=centred)

    torch.testing.assert_close(found.weight, torch.ones(3, 4).double(), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype: torch.dtype) -> None:
    rows = torch.full((10, 2), 300.0, dtype=dtype)
    moments = moments_of(rows, rows)

    assert moments.second.equal(torch.full((2, 2), 10 * float(rows[0, 0]) ** 2, dtype=torch.float64))
    assert moments.cross.equal(moments.second)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 8)),
    "lstm": lambda: Calls(lambda m, x: m.fc(m.lstm(x)[0]), lstm=nn.LSTM(12, 8, 2), fc=nn.Linear(8, 8)),
    "both ways": lambda: Calls(
        lambda m, x: m.fc(m.lstm(x)[0]), lstm=nn.LSTM(12, 8, 2, bidirectional=True, proj_size=4), fc=nn.Linear(8, 8)
    ),
    "state first": lambda: Calls(
        lambda m, x: m.fc(m.lstm(hx=(torch.ones(1, 8), torch.ones(1, 8)), input=x)[0]),
        lstm=nn.LSTM(12, 8),
        fc=nn.Linear(8, 8),
    ),
    "cell": lambda: Calls(lambda m, x: m.fc(m.cell(x, m.cell(x))[0]), cell=nn.LSTMCell(12, 8), fc=nn.Linear(8, 8)),
    "twice": lambda: Calls(lambda m, x: m.last(m.fc(m.fc(x).tanh())), fc=nn.Linear(12, 12), last=nn.Linear(12, 8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_without_a_change_nothing_is_moved_and_both_inputs_are_the_same(tmp_path: Path, name: str) -> None:
    trial_model = rig_of(tmp_path, seeded(MODELS[name]))
    units = collect(trial_model).units
    seen: dict[str, CrossMoments] = {}

    def fit(unit: WeightGroup, moments: CrossMoments) -> Mapping[str, Tensor]:
        seen[unit.name] = moments
        return {}

    before = {name: tensor.clone() for name, tensor in trial_model.model.state_dict().items()}
    assert refit(trial_model, units, trial_model.batches.learning, {}, fit) == {}
    assert all(tensor.equal(before[name]) for name, tensor in trial_model.model.state_dict().items())
    assert list(seen) == [unit.name for unit in units if "_hr_" not in unit.name]
    wanted = collect(trial_model).metrics
    for unit, moments in seen.items():
        torch.testing.assert_close(moments.cross, moments.second, rtol=CLOSE, atol=CLOSE)
        torch.testing.assert_close(moments.mean_before, moments.mean_after, rtol=CLOSE, atol=CLOSE)
        assert moments.count > wanted[unit].count  # moments leave the tuning batches out


@pytest.mark.parametrize("name", MODELS)
def test_later_layers_get_what_earlier_ones_make_of_their_inputs(tmp_path: Path, name: str) -> None:
    trial_model = rig_of(tmp_path, seeded(MODELS[name]))
    units = collect(trial_model).units
    parameters = dict(trial_model.model.named_parameters())
    first = {member: 0.8 * parameters[member] for unit in units for member in unit.members}
    seen: dict[str, CrossMoments] = {}

    def fit(unit: WeightGroup, moments: CrossMoments) -> Mapping[str, Tensor]:
        seen[unit.name] = moments
        return {member: 0.5 * parameters[member].clone() for member in unit.members}

    made = {member: 0.5 * parameters[member].clone() for unit in units for member in unit.members}
    projections = {member: value for member, value in first.items() if "_hr_" in member}
    found = refit(trial_model, units, trial_model.batches.learning, first, fit)
    for member, value in found.items():
        torch.testing.assert_close(value, {**made, **projections}[member])

    last = units[-1]
    twin = rig_of(tmp_path, seeded(MODELS[name]))
    stay = {member: value for member, value in found.items() if member not in last.members}
    moments = []
    for values in ({}, stay):
        rows: list[Tensor] = []
        module = twin.model.get_submodule(last.name.removesuffix(".weight"))
        hook = module.register_forward_pre_hook(
            lambda _, args, rows=rows: rows.append(args[0].reshape(-1, 8 if name != "twice" else 12))
        )
        with twin.holding(values):
            for batch in twin.batches.learning:
                twin.run(batch)
        hook.remove()
        moments.append(torch.cat(rows).double())
    before, after = moments
    torch.testing.assert_close(seen[last.name].cross, before.T @ after, rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(seen[last.name].second, after.T @ after, rtol=CLOSE, atol=CLOSE)


def test_a_weight_in_two_modules_is_fitted_to_the_inputs_of_both(tmp_path: Path) -> None:
    first, second = nn.Linear(12, 12), nn.Linear(12, 12)
    second.weight = first.weight
    trial_model = rig_of(tmp_path, nn.Sequential(first, nn.Tanh(), second))
    seen: list[int] = []

    def fit(unit: WeightGroup, moments: CrossMoments) -> Mapping[str, Tensor]:
        seen.append(moments.count)
        return {}

    refit(trial_model, collect(trial_model).units, trial_model.batches.learning, {}, fit)
    assert seen == [2 * sample_total(trial_model.batches.learning)]


def test_calls_that_cannot_be_matched_leave_the_first_fit(tmp_path: Path) -> None:
    """A model that calls a layer more often once its weights have changed."""

    def call(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.first(x)
        for _ in range(1 + int(m.first.weight[0, 0] == 0)):
            y = m.second(y)
        return y

    trial_model = rig_of(tmp_path, Calls(call, first=nn.Linear(12, 10), second=nn.Linear(10, 10)), inputs())
    units = collect(trial_model).units
    first = {"first.weight": torch.zeros(10, 12), "second.weight": numbers(10, 10)}
    found = refit(
        trial_model, units, trial_model.batches.learning, first, lambda unit, _: {unit.name: first[unit.name] + 0}
    )

    assert found["second.weight"] is first["second.weight"]
