"""Models set up for training, and restored after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mpocompress.finetuning.train_mode import TrainMode, execution_from_cores, training_mode
from tests.finetuning.runs import Odd, pair


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_layers_run_from_their_cores_in_the_block() -> None:
    student, _ = pair()
    student[0].execution = "materialised"

    def leave() -> None:
        with execution_from_cores(student):
            assert [student[place].execution for place in (0, 2)] == ["factorised"] * 2
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    assert [student[place].execution for place in (0, 2)] == ["materialised", "auto"]
    with execution_from_cores(nn.Linear(2, 2)):
        pass


def test_a_model_in_evaluation_mode_is_trained_whole() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    TrainMode(model).enable()

    assert modes(model) == [True, True, True]


@torch.no_grad()
def test_both_models_are_set_up_and_restored() -> None:
    models: tuple[Any, Any] = pair(Odd)
    student, teacher = models
    student.norm.eval()
    teacher.drop.eval()
    student.last.bias.requires_grad_(False)
    before = modes(student), modes(teacher), [each.requires_grad for each in student.parameters()]
    trained = [student.norm.weight]

    with training_mode(student, teacher, trained) as mode:
        assert torch.is_grad_enabled()
        assert not any([*modes(student), *modes(teacher)])
        assert [each for each in student.parameters() if each.requires_grad] == trained
        mode.enable()
        assert [name for name, module in student.named_modules() if not module.training] == ["norm"]
        student.norm.weight.sum().backward()

    assert (modes(student), modes(teacher), [each.requires_grad for each in student.parameters()]) == before
    assert all(each.grad is None for each in student.parameters())
    assert not torch.is_grad_enabled()
