"""The model that is run: filled from the checkpoint, compared with itself, and always put back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpocompress.calibration.batches import read_batches, sample_total
from mpocompress.calibration.trial_model import VALIDATION_ROWS, VALIDATION_SAMPLES, TrialModel
from mpocompress.errors import CalibrationError, ModelError
from mpocompress.reports.calibration import BEYOND
from tests.calibration.trial_models import Calls, inputs, numbers, opened, rig_of, seeded, two_layers, values


def test_it_is_filled_from_the_checkpoint_and_the_users_model_is_left_alone(tmp_path: Path) -> None:
    model = seeded(two_layers).train()
    state = {name: tensor + 1.0 for name, tensor in model.state_dict().items()}
    before = values(model)
    with opened(tmp_path, state) as checkpoint:
        trial_model = TrialModel(model, checkpoint, read_batches(inputs()))

    assert all(one.equal(other) for one, other in zip(before, values(model), strict=True))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(one.equal(trial_model.model.state_dict()[name]) for name, one in state.items())
    assert not trial_model.model.training
    assert not any(parameter.requires_grad for parameter in trial_model.model.parameters())


@pytest.mark.parametrize("prefix", ["module.", "model.net.", "_orig_mod."])
def test_prefixes_are_seen_through(tmp_path: Path, prefix: str) -> None:
    model = seeded(two_layers)
    with opened(tmp_path, {prefix + name: tensor for name, tensor in model.state_dict().items()}) as checkpoint:
        trial_model = TrialModel(model, checkpoint, read_batches(inputs()))

    assert [unit.name for observed in trial_model.observed for unit in observed.units.values()] == [
        f"{prefix}0.weight",
        f"{prefix}2.weight",
    ]


def test_weights_are_held_in_the_block_only(tmp_path: Path) -> None:
    trial_model = rig_of(tmp_path, seeded(two_layers))
    before = values(trial_model.model)
    with (
        pytest.raises(KeyError, match="mine"),
        trial_model.holding({"0.weight": torch.zeros(16, 12).double(), "other": before[0]}),
    ):
        raise KeyError("mine" if not trial_model.model.state_dict()["0.weight"].any() else "not held")
    with (
        pytest.raises(RuntimeError),
        trial_model.holding({"0.weight": torch.zeros(16, 12), "2.weight": torch.zeros(3, 3)}),
    ):
        pass  # pragma: no cover

    assert all(one.equal(other) for one, other in zip(before, values(trial_model.model), strict=True))


def test_weights_tied_in_the_checkpoint_alone_are_held_in_both_places(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False))
    weight = numbers(12, 12)
    with opened(tmp_path, {"0.weight": weight, "1.weight": weight}) as checkpoint:
        trial_model = TrialModel(model, checkpoint, read_batches(inputs()))
    with trial_model.holding({"0.weight": torch.zeros(12, 12)}):
        assert not any(tensor.any() for tensor in values(trial_model.model))

    assert all(tensor.equal(weight) for tensor in values(trial_model.model))


def test_the_same_weights_are_no_way_apart_and_others_are(tmp_path: Path) -> None:
    trial_model = rig_of(tmp_path, seeded(two_layers))

    for reference in (trial_model.validation, trial_model.held_out):
        assert trial_model.divergence(reference) == 0.0
        with trial_model.holding({"2.weight": torch.zeros(10, 16), "2.bias": torch.zeros(10)}):
            assert trial_model.divergence(reference) == pytest.approx(1.0)  # nothing is all of it away


def test_outputs_that_are_not_finite_are_beyond_everything(tmp_path: Path) -> None:
    trial_model = rig_of(tmp_path, seeded(two_layers))
    for bad in (math.nan, math.inf):
        with trial_model.holding({"2.bias": torch.full((10,), bad)}):
            assert trial_model.divergence(trial_model.held_out) == BEYOND


def test_an_output_of_another_shape_is_beyond_everything(tmp_path: Path) -> None:
    def call(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.fc(x)
        return y[:, : 3 + int(m.fc.bias[0] > 0)]

    trial_model = rig_of(tmp_path, Calls(call, fc=seeded(lambda: nn.Linear(12, 10))))
    flipped = -trial_model.model.state_dict()["fc.bias"]
    with trial_model.holding({"fc.bias": flipped}):
        assert trial_model.divergence(trial_model.held_out) == BEYOND


def test_how_far_outputs_for_other_inputs_are(tmp_path: Path) -> None:
    trial_model = rig_of(tmp_path, seeded(two_layers))
    outputs = trial_model.held_out.outputs
    lost = sum(float((each - each.roll(1, 0)).double().square().sum()) for each in outputs)
    whole = sum(float(each.double().square().sum()) for each in outputs)

    assert trial_model.unrelated(trial_model.held_out) == pytest.approx(lost / whole)
    single = rig_of(tmp_path, seeded(two_layers), [each[:1] for each in inputs()])
    assert single.unrelated(single.held_out) is not None
    same = rig_of(tmp_path, seeded(two_layers), [torch.ones(3, 12)] * 5)
    assert same.unrelated(same.held_out) is None


@pytest.mark.parametrize("batch", [6, 100])
def test_decisions_are_measured_on_the_first_batches_and_moments_on_the_rest(tmp_path: Path, batch: int) -> None:
    batches = inputs(16, batch)
    made = read_batches(batches, samples=10_000)
    with opened(tmp_path, seeded(two_layers)) as checkpoint:
        trial_model = TrialModel(seeded(two_layers), checkpoint, made)
        classifier = TrialModel(seeded(two_layers), checkpoint, made, "classification")

    assert (len(trial_model.validation.batches), len(trial_model.rest)) == ((3, 9) if batch == 6 else (1, 11))
    assert sample_total(trial_model.validation.batches) < VALIDATION_SAMPLES or batch == 100
    assert 3 * batch < VALIDATION_ROWS
    assert len(classifier.validation.batches) == 3
    assert [id(each) for each in (*trial_model.validation.batches, *trial_model.rest)] == [
        id(each) for each in made.learning
    ]


def test_of_one_batch_everything_is_measured_on_it(tmp_path: Path) -> None:
    trial_model = rig_of(tmp_path, seeded(two_layers), inputs(1))

    assert trial_model.rest == trial_model.validation.batches == trial_model.held_out.batches
    assert not trial_model.batches.is_held_out


def test_a_number_a_sample_is_a_row(tmp_path: Path) -> None:
    """Otherwise a batch of squeezed outputs would be taken for the scores of one sample."""
    model = Calls(lambda m, x: 50 * m.fc(x).squeeze(-1), fc=seeded(lambda: nn.Linear(12, 1)))
    trial_model = rig_of(tmp_path, model)

    assert trial_model.measure.kind == "regression"
    assert {each.shape for each in trial_model.held_out.outputs} == {(6, 1)}


def test_a_model_that_writes_into_its_inputs_spoils_none(tmp_path: Path) -> None:
    model = Calls(lambda m, x: m.fc(x.mul_(2)), fc=seeded(lambda: nn.Linear(12, 10)))
    batches = inputs()
    trial_model = rig_of(tmp_path, model, batches)

    assert all(one.equal(other) for one, other in zip(batches, inputs(), strict=True))
    assert trial_model.divergence(trial_model.held_out) == 0.0


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_part_is_copied_too(tmp_path: Path) -> None:
    part = seeded(lambda: nn.Linear(12, 10))
    trial_model = rig_of(tmp_path, Calls(lambda m, x: m.part(x), part=torch.jit.script(part)))

    assert trial_model.divergence(trial_model.held_out) == 0.0
    with trial_model.holding({"part.weight": torch.zeros(10, 12)}):
        assert trial_model.divergence(trial_model.held_out) > 0.0


def test_a_model_that_draws_draws_the_same_every_time(tmp_path: Path) -> None:
    model = Calls(lambda m, x: m.fc(x + torch.randn_like(x)), fc=seeded(lambda: nn.Linear(12, 10)))
    state = torch.get_rng_state()
    trial_model = rig_of(tmp_path, model)

    assert trial_model.divergence(trial_model.held_out) == 0.0
    assert torch.get_rng_state().equal(state)


def test_a_model_with_other_parameters_is_refused(tmp_path: Path) -> None:
    with (
        opened(tmp_path, {"0.weight": numbers(16, 12), "0.bias": numbers(16)}) as checkpoint,
        pytest.raises(
            ModelError,
            match=r"Sequential: 2\.weight, 2\.bias, which the checkpoint does not have in that shape; the model has to "
            r"run as it did when it was saved\. Give the model from which the checkpoint was saved\.",
        ),
    ):
        TrialModel(two_layers(), checkpoint, read_batches(inputs()))


def test_a_model_that_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    model = seeded(two_layers)
    model.lock = (number for number in range(3))  # type: ignore[assignment]
    with (
        opened(tmp_path, seeded(two_layers)) as checkpoint,
        pytest.raises(
            ModelError,
            match=r"Sequential: copying the model failed \(TypeError: cannot pickle 'generator' object\); a copy is "
            r"run, so that the given model does not change\. Give a function that builds the model instead, as "
            r"file\.py:name\.",
        ),
    ):
        TrialModel(model, checkpoint, read_batches(inputs()))


def test_batches_that_the_model_does_not_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CalibrationError,
        match=r"Calls: test_trial_model\.py, line \d+: RuntimeError: mat1 and mat2 shapes cannot be multiplied .*; the "
        r"model does not accept the calibration batches\. Give batches that the model can be called with: a tensor, a "
        r"tuple of arguments, or a mapping of named arguments\. If batches are inputs with labels, give the inputs "
        r"alone, or a loss as well\.",
    ):
        rig_of(tmp_path, Calls(lambda m, x: m.fc(x), fc=nn.Linear(12, 10)), [torch.ones(2, 5)])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 3])
def test_outputs_that_are_not_finite_are_refused(tmp_path: Path, bad: float, place: int) -> None:
    batches = inputs()
    batches[place][0, 0] = bad
    with pytest.raises(
        CalibrationError,
        match=r"Sequential: NaN or Inf in the outputs for the calibration batches; the outputs of the "
        r"compressed model cannot be compared with them\. Check these batches and the weights, or compress without "
        r"calibration inputs\.",
    ):
        rig_of(tmp_path, seeded(lambda: nn.Sequential(nn.Linear(12, 10))), batches)


def test_masked_scores_are_finite_enough(tmp_path: Path) -> None:
    model = Calls(lambda m, x: {"logits": m.fc(x).masked_fill(torch.arange(10) > 6, -math.inf)}, fc=nn.Linear(12, 10))
    trial_model = rig_of(tmp_path, model)

    assert trial_model.measure.kind == "classification"
    assert trial_model.divergence(trial_model.held_out) == 0.0


def test_agreement_is_for_classifiers(tmp_path: Path) -> None:
    classifier = rig_of(tmp_path, seeded(two_layers), kind="classification")
    assert classifier.compared(classifier.held_out).agreement == 1.0
    with classifier.holding({"2.bias": 100 * torch.eye(10)[0]}):
        outputs = torch.cat(list(classifier.held_out.outputs)).argmax(1)
        expected = float((outputs == 0).float().mean())
        assert classifier.compared(classifier.held_out).agreement == pytest.approx(expected)
    trial_model = rig_of(tmp_path, seeded(two_layers))
    assert trial_model.compared(trial_model.held_out).agreement is None
