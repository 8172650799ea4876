"""One pass over the inputs: moments against a computation by hand, and units that cannot be measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpocompress.calibration.batches import sample_total
from mpocompress.calibration.hooks import NOT_RUN
from mpocompress.calibration.moments import NOT_FINITE, collect
from mpocompress.errors import CalibrationError
from tests.calibration.trial_models import Calls, inputs, numbers, rig_of, seeded, two_layers

CLOSE = 1e-5
"""Activations are in float32, their moments in float64."""


def test_moments_are_those_of_the_activations(tmp_path: Path) -> None:
    model = seeded(two_layers)
    trial_model = rig_of(tmp_path, model)
    found = collect(trial_model)
    x = torch.cat([batch.inputs for batch in trial_model.rest if isinstance(batch.inputs, Tensor)])
    hidden = model[:2](x).detach()  # type: ignore[index]

    assert [unit.name for unit in found.units] == ["0.weight", "2.weight"]
    assert not found.uncalibrated
    for unit, z in zip(found.units, (x, hidden), strict=True):
        metric = found.metrics[unit.name]
        assert metric.count == len(z)
        torch.testing.assert_close(metric.second, z.double().T @ z.double() / len(z), rtol=CLOSE, atol=CLOSE)
        torch.testing.assert_close(metric.mean, z.double().mean(0), rtol=CLOSE, atol=CLOSE)


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum()


def test_gradients_of_a_loss_are_those_of_autograd(tmp_path: Path) -> None:
    model = seeded(two_layers)
    pairs = [(x, numbers(6, 10, seed=7)) for x in inputs()]
    trial_model = rig_of(tmp_path, model, pairs, targets=True)
    found = collect(trial_model, loss=squared)
    rest: Any = [(batch.inputs, batch.target) for batch in trial_model.rest]
    gradients = torch.cat([2 * (model(x) - y).detach() for x, y in rest]).double()
    whole = gradients.T @ gradients
    kept = len(gradients) / (len(gradients) + 10)

    moment = found.metrics["2.weight"].outputs.moment
    torch.testing.assert_close(moment.diagonal(), whole.diagonal(), rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(moment, kept * whole + (1 - kept) * torch.diag(whole.diagonal()), rtol=1e-4, atol=1e-4)


def test_a_pass_is_the_same_every_time_and_draws_no_number_of_others(tmp_path: Path) -> None:
    trial_model = rig_of(tmp_path, seeded(two_layers), kind="classification")
    state = torch.get_rng_state()
    one, other = collect(trial_model), collect(trial_model)

    assert torch.get_rng_state().equal(state)
    for name, metric in one.metrics.items():
        assert metric.outputs.moment.equal(other.metrics[name].outputs.moment)
        assert metric.outputs.scale > 0.0


def test_a_unit_that_sees_nan_is_left_out_and_no_other_is(tmp_path: Path) -> None:
    def call(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.first(x)
        m.second(y * math.nan)
        return y

    model = Calls(call, first=nn.Linear(12, 10), second=nn.Linear(10, 10), third=nn.LSTM(10, 4))
    found = collect(rig_of(tmp_path, model))

    assert [unit.name for unit in found.units] == ["first.weight"]
    assert found.uncalibrated == {
        "second.weight": NOT_FINITE,
        "third.weight_ih_l0": NOT_RUN,
        "third.weight_hh_l0": NOT_RUN,
    }


def test_a_unit_without_gradients_is_measured_by_its_inputs(tmp_path: Path) -> None:
    def call(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y: Tensor = m.first(x)
        out: Tensor = m.second(y)
        return out

    trial_model = rig_of(tmp_path, Calls(call, first=nn.Linear(12, 10), second=nn.Linear(10, 10)))
    found = collect(trial_model)

    assert found.metrics["first.weight"].outputs.moment.equal(torch.ones(10, dtype=torch.float64))
    assert not found.metrics["second.weight"].outputs.moment.equal(torch.ones(10, dtype=torch.float64))


def test_shared_modules_count_every_call(tmp_path: Path) -> None:
    model = Calls(lambda m, x: m.fc(m.fc(x)), fc=seeded(lambda: nn.Linear(12, 12)))
    trial_model = rig_of(tmp_path, model)

    assert collect(trial_model).metrics["fc.weight"].count == 2 * sample_total(trial_model.rest)


def test_batches_are_counted_while_they_run(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    trial_model = rig_of(tmp_path, seeded(two_layers))
    collect(trial_model, progress=lambda *step: told.append(step))

    assert told == [("calibrating", done, len(trial_model.rest)) for done in range(len(trial_model.rest) + 1)]


def test_a_model_that_keeps_its_state_between_calls_is_refused(tmp_path: Path) -> None:
    kept: dict[str, Any] = {}

    def call(m: Any, x: Tensor) -> Tensor:
        out, kept["state"] = m.lstm(x, kept.get("state"))
        y: Tensor = out
        return y

    trial_model = rig_of(tmp_path, Calls(call, lstm=nn.LSTM(12, 8)))
    with pytest.raises(
        CalibrationError,
        match=r"Calls: RuntimeError: Trying to backward through the graph a second time .*; gradients could not be "
        r"taken through the model\. Do not keep tensors from one call of the model's forward to the next\.",
    ):
        collect(trial_model)


class Target:
    """Knows where it was moved."""

    device = ""

    def to(self, device: str) -> Target:
        moved = Target()
        moved.device = device
        return moved


def test_targets_are_moved_to_the_model(tmp_path: Path) -> None:
    heard: list[Target] = []

    def loss(output: Tensor, target: Target) -> Tensor:
        heard.append(target)
        return output.sum()

    collect(rig_of(tmp_path, seeded(two_layers), [(x, Target()) for x in inputs()], targets=True), loss=loss)
    assert {one.device for one in heard} == {"cpu"}


def broken(output: Tensor, target: Tensor) -> Tensor:
    raise ValueError("no such target")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            broken,
            r"loss: test_moments\.py, line \d+: ValueError: no such target; the loss could not be computed\.",
        ),
        (
            lambda output, target: output,
            r"loss: a Tensor of shape \(6, 10\); the loss is a single number\. Return its mean or its sum\.",
        ),
        (lambda output, target: 1.0, r"loss: a float; the loss is a single number\."),
    ],
)
def test_a_loss_that_is_none_is_refused(tmp_path: Path, loss: Any, message: str) -> None:
    trial_model = rig_of(tmp_path, seeded(two_layers), [(x, x) for x in inputs()], targets=True)
    with pytest.raises(CalibrationError, match=message):
        collect(trial_model, loss=loss)

    assert not any(module._forward_hooks for module in trial_model.model.modules())


def test_a_loss_that_depends_on_nothing_is_no_gradient(tmp_path: Path) -> None:
    trial_model = rig_of(tmp_path, seeded(two_layers), [(x, x) for x in inputs()], targets=True)
    found = collect(trial_model, loss=lambda output, target: torch.tensor(1.0))

    assert found.metrics["0.weight"].outputs.moment.equal(torch.ones(16, dtype=torch.float64))
